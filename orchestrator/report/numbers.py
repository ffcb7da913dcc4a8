"""The figures of a run, as `--json` prints them and the top of the page shows them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.report.history import FAULTS, WAIT, Evaluation, History, Step
from orchestrator.report.read import RunRecord
from orchestrator.report.spans import Spans

MAX_ENDS = 50  # steps in the mean of the first rewards, and of the last


def figures(run: RunRecord) -> dict[str, Any]:
    """Everything in plain JSON; what is not known is None.

    Rates are over `training_s`, of all launches, and of the tokens of that time, so without those
    of a launch's first step. What a return to a commit undid counts in both.
    """
    history, steps = run.history, list(run.history.steps.values())
    training_s = history.training_s
    found = {
        "name": run.name,
        "mode": run.setting("mode"),
        "model": run.setting("model.path"),
        "state": state(run),
        "version": steps[-1].version if steps else 0,
        "num_steps": run.setting("learner.num_steps"),
        "wall_s": duration_s(run),
        "training_s": training_s,
        "reward": _ends(steps),
        "evals": {name: _change(evals) for name, evals in by_set(run).items()},
        "generated_tokens_per_s": _rate(history, history.generated),
        "trained_tokens_per_s": _rate(history, history.trained),
        "lag": _lag(run),
        "wait_share": {
            role: _wait_share(phases, history) for role, phases in sorted(history.spans.items())
        },
        "bias": bias(run),
        "sync": {name: _spread(seconds) for name, seconds in history.sync.items()},
        **{name: run.replay.get(name) for name in ("drops", "failures", "reissues")},
        "faults": {k: history.counts[k] for k in FAULTS if history.counts[k]},
        "undone_steps": history.num_undone_steps,
        "max_probe_error": history.max_probe_error,
        "ledger": ledger(run),
        "missing": list(run.missing),
    }
    plain: dict[str, Any] = _finite(found)
    return plain


def state(run: RunRecord) -> str:
    if run.status is not None:
        return run.status.state
    return "ended" if run.result else "unknown"


def duration_s(run: RunRecord) -> float | None:
    """From the first event to the last, launches that follow each other included."""
    history = run.history
    if history.first_s is None or history.last_s is None:
        return None
    return history.last_s - history.first_s


def by_set(run: RunRecord) -> dict[str, list[Evaluation]]:
    """The evaluations of each held-out set, in the order of versions."""
    found: dict[str, list[Evaluation]] = {}
    for key in sorted(run.history.evals):
        found.setdefault(key[0], []).append(run.history.evals[key])
    return found


def bias(run: RunRecord) -> dict[str, float] | None:
    """How trained answers differ from generated ones; None where it is not known."""
    lengths, rewards = run.replay.get("lengths", {}), run.replay.get("rewards", {})
    if not lengths.get("generated_rollouts") or not lengths.get("trained_rollouts"):
        return None
    found = {}
    for which in ("generated", "trained"):
        rollouts = lengths[f"{which}_rollouts"]
        found[f"{which}_length"] = lengths[f"{which}_tokens"] / rollouts
        found[f"{which}_cut"] = lengths.get(f"{which}_cut", 0) / rollouts
        if groups := rewards.get(f"{which}_groups"):
            found[f"{which}_reward"] = rewards[f"{which}_sum"] / groups
    return found


def ledger(run: RunRecord) -> dict[str, Any] | None:
    """The verdict of the audit: whether the promise holds, and on how many prompts."""
    if run.ledger is None:
        return None
    fates = dict(run.ledger["fates"])
    return {
        "holds": run.ledger["holds"],
        "issued": run.ledger["num_issued"],
        "trained": fates.pop("trained", 0),
        "dropped": fates,
        "pending": sum(run.ledger[f"num_{k}"] for k in ("leased", "buffered", "waiting")),
        "duplicates": run.ledger["num_duplicates"],
        "gaps": run.ledger["num_gaps"],
        "findings": len(run.ledger["findings"]),
    }


def mean_share(figures: Mapping[str, Any], role: str) -> float | None:
    """Of the time of all of a kind, the share that they waited."""
    shares = [s for name, s in figures["wait_share"].items() if name.rpartition("-")[0] == role]
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def _ends(steps: Sequence[Step]) -> dict[str, Any] | None:
    """Mean reward of the first and of the last tenth of the steps."""
    rewards = [step.reward for step in steps if step.reward is not None]
    if not rewards:
        return None
    count = min(MAX_ENDS, max(1, len(rewards) // 10))
    first, last = (float(np.mean(part)) for part in (rewards[:count], rewards[-count:]))
    return {"first": first, "last": last, "steps_averaged": count}


def _change(evals: Sequence[Evaluation]) -> dict[str, Any]:
    first, last = evals[0], evals[-1]
    known = [found.accuracy for found in evals if found.accuracy is not None]
    return {
        "first": first.accuracy,
        "last": last.accuracy,
        "best": max(known, default=None),
        "versions": [first.version, last.version],
        "num_prompts": last.num_prompts,
        "pass_at": dict(last.pass_at),
    }


def _rate(history: History, columns: tuple[Sequence[float], Sequence[float]]) -> float | None:
    if history.training_s <= 0:
        return None
    return sum(history.while_training(columns)[1]) / history.training_s


def _lag(run: RunRecord) -> dict[str, Any] | None:
    lags = run.history.lags
    if not (total := sum(lags.values())):
        return None
    bound = run.setting("replay.max_staleness")
    return {
        "mean": sum(lag * count for lag, count in lags.items()) / total,
        "max": max(lags),
        "bound": bound if isinstance(bound, int) else None,
        "groups": {str(lag): lags[lag] for lag in sorted(lags)},
    }


def _wait_share(phases: Mapping[str, Spans], history: History) -> float | None:
    """Of what is known of a role's time from the first step to the last, what it waited."""
    if history.training_s <= 0:
        return None
    edges = np.asarray([min(history.trained[0]), max(history.trained[0])])
    shares = {phase: float(spans.share_of(edges)[0]) for phase, spans in phases.items()}
    total = sum(shares.values())
    return shares.get(WAIT, 0.0) / total if total > 0 else None


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    median, high = np.quantile(np.asarray(seconds), [0.5, 0.95])
    return {"median_s": float(median), "p95_s": float(high), "max_s": max(seconds)}


def _finite(value: Any) -> Any:
    """Without NaN and infinity, which JSON does not have."""
    match value:
        case dict():
            return {key: _finite(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_finite(entry) for entry in value]
        case float() if not math.isfinite(value):
            return None
    return value
