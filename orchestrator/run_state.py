"""What is known of a run, folded from the roles' events. Pure: no clock, no I/O.

The events and their fields are listed in `slipstream/telemetry.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slipstream.config.job import MAIN_SET

WHICH = ("generated", "trained")


@dataclass(slots=True, kw_only=True)
class RunState:
    """Totals and newest figures of one launch. `*_at_s` are seconds since the epoch."""

    num_steps: int
    launched_at_s: float = 0.0
    start_version: int = 0
    version: int = 0
    reward: float | None = None  # mean of the newest batch
    last_step_at_s: float | None = None
    training_started_at_s: float | None = None  # when the roles began to work
    num_trained_groups: int = 0
    num_trained_tokens: int = 0
    num_generated_tokens: int = 0
    lags: Counter[int] = field(default_factory=Counter)  # lag -> groups
    busy_s: dict[str, Counter[str]] = field(default_factory=dict)  # role-index -> phase -> s
    # set -> version -> event; the first set is that of data.eval, where there is one
    evals_by_set: dict[str, dict[int, Mapping[str, Any]]] = field(default_factory=dict)
    best: Mapping[str, Any] | None = None  # the newest `best` event
    max_probe_error: float = 0.0
    num_adoptions: int = 0
    checkpoint: str | None = None  # newest commit
    num_restarts: int = 0  # of the learner
    timeline: int = 0
    branched_at: int = 0  # the version with which it began
    replay: Mapping[str, Any] = field(default_factory=dict)  # replay's own statistics

    def fold(self, event: Mapping[str, Any]) -> None:
        """Take one event into account; unknown kinds are ignored."""
        match event["kind"]:
            case "step":
                self._fold_step(event)
            case "busy":
                self.num_generated_tokens += event["num_tokens"]
                self._add_busy(event)
            case "eval":
                if self.counts(event):
                    evals = self.evals_by_set.setdefault(event.get("set", MAIN_SET), {})
                    evals[event["version"]] = event
            case "best":
                self.best = event
            case "adopted":
                self.num_adoptions += 1
                self.max_probe_error = max(self.max_probe_error, event.get("probe_error") or 0.0)
            case "went_back":
                self.version = self.branched_at = event["version"]
                self.timeline = event["timeline"]
                self._forget_evals()
                self.num_restarts += 1
                self.last_step_at_s = event["time_s"]
            case "commit":
                self.checkpoint = event["path"]

    @property
    def evals(self) -> Mapping[int, Mapping[str, Any]]:
        """Of the first held-out set: version -> event."""
        return next(iter(self.evals_by_set.values()), {})

    def _forget_evals(self) -> None:
        for name, evals in self.evals_by_set.items():
            self.evals_by_set[name] = {v: e for v, e in evals.items() if v <= self.version}
        if self.best is not None and self.best["version"] > self.version:
            self.best = None

    def counts(self, event: Mapping[str, Any]) -> bool:
        """Whether an `eval` or `eval_started` is of weights that are not gone."""
        return bool(event["timeline"] == self.timeline or event["version"] <= self.branched_at)

    def _fold_step(self, event: Mapping[str, Any]) -> None:
        self.version = max(self.version, event["version"])
        self.reward = event["reward"]
        self.last_step_at_s = event["time_s"]
        self.num_trained_groups += event["num_groups"]
        self.num_trained_tokens += event["num_answer_tokens"]
        self.lags.update({int(lag): count for lag, count in event["lags"].items()})
        self._add_busy(event)

    def _add_busy(self, event: Mapping[str, Any]) -> None:
        role = f"{event['role']}-{event['index']}"
        self.busy_s.setdefault(role, Counter()).update(event["seconds"])

    @property
    def training_wall_s(self) -> float:
        """Seconds from the roles' start to the last step; 0 before the first step."""
        if self.last_step_at_s is None or self.training_started_at_s is None:
            return 0.0
        return self.last_step_at_s - self.training_started_at_s

    @property
    def num_steps_done(self) -> int:
        return self.version - self.start_version

    def eta_s(self, now_s: float) -> float | None:
        """Seconds left at the pace so far, or None before the first step."""
        if self.training_started_at_s is None or self.num_steps_done == 0:
            return None
        pace_s = (now_s - self.training_started_at_s) / self.num_steps_done
        return pace_s * (self.num_steps - self.version)

    def busy_share(self) -> dict[str, float]:
        """Role -> share of the training wall time it did not wait."""
        wall_s = self.training_wall_s
        if wall_s <= 0:
            return {}
        return {
            role: min(1.0, sum(s for phase, s in phases.items() if phase != "wait") / wall_s)
            for role, phases in sorted(self.busy_s.items())
        }

    def bias(self) -> dict[str, float]:
        """How what was trained differs from what was generated, over resumes; {} before training.

        A length_ratio below 1 says that long answers got lost, a reward_difference above 0 that
        what trained had better rewards; equal_share is of the generated groups.
        """
        lengths, rewards = self.replay.get("lengths", {}), self.replay.get("rewards", {})
        if not rewards.get("trained_groups"):
            return {}
        length, trained_length = (lengths[f"{w}_tokens"] / lengths[f"{w}_rollouts"] for w in WHICH)
        reward, trained_reward = (rewards[f"{w}_sum"] / rewards[f"{w}_groups"] for w in WHICH)
        return {
            "length_ratio": trained_length / length,
            "reward_difference": trained_reward - reward,
            "equal_share": rewards["generated_equal"] / rewards["generated_groups"],
        }

    def result(self, wall_s: float) -> dict[str, Any]:
        """The figures of this launch, for `result.json`. Rates are over `training_wall_s`.

        `bias` and `replay` alone are of the whole run, over resumes.
        """
        training_s = max(1e-9, self.training_wall_s)
        return {
            "version": self.version,
            "steps": self.num_steps_done,
            "trained_groups": self.num_trained_groups,
            "wall_s": wall_s,
            "training_wall_s": self.training_wall_s,
            "generated_tokens_per_s": self.num_generated_tokens / training_s,
            "trained_tokens_per_s": self.num_trained_tokens / training_s,
            "lags": dict(sorted(self.lags.items())),
            "busy_share": self.busy_share(),
            "evals": [dict(self.evals[version]) for version in sorted(self.evals)],
            "evals_by_set": {
                name: [dict(evals[version]) for version in sorted(evals)]
                for name, evals in self.evals_by_set.items()
            },
            "best": None if self.best is None else dict(self.best),
            "max_probe_error": self.max_probe_error,
            "checkpoint": self.checkpoint,
            "restarts": self.num_restarts,
            "bias": self.bias(),
            "replay": dict(self.replay),
        }
