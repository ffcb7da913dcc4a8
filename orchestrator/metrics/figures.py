"""From a run's events, replay's statistics and the roles' states to metrics. Pure: no Ray, no
clock.

The events and their fields are listed in `slipstream/telemetry.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from orchestrator.health import State
from orchestrator.metrics import catalog
from orchestrator.metrics.catalog import Metric
from orchestrator.run_state import RunState
from orchestrator.status import RoleStatus
from slipstream.records import DropReason, FailureReason, RefusalReason

Event = Mapping[str, Any]
Tags = tuple[str, ...]  # values, in the order of Metric.tags
Cause = Literal["died", "silent", "hangs", "failed"]

OF_STEP = {
    metric.name: metric
    for metric in (
        *(catalog.LEARNING_RATE, catalog.GRAD_NORM, catalog.ENTROPY, catalog.KL_OLD),
        *(catalog.KL_REFERENCE, catalog.RATIO, catalog.CLIP_SHARE, catalog.MU_MISMATCH),
        *(catalog.CORRECTION_WEIGHT, catalog.PADDING_SHARE),
    )
}
OF_EVAL = {
    "greedy_accuracy": catalog.GREEDY_ACCURACY,
    "greedy_reward": catalog.GREEDY_REWARD,
    "sampled_reward": catalog.SAMPLED_REWARD,
    "version": catalog.EVAL_VERSION,
}
OF_REPLAY = {
    "num_buffered": catalog.BUFFERED_GROUPS,
    "num_running": catalog.RUNNING_LEASES,
    "num_requeued": catalog.REQUEUED_PROMPTS,
    "num_issued": catalog.ISSUED_PROMPTS,
    "num_trained": catalog.TRAINED_PROMPTS,
    "paused": catalog.PAUSED,
}
BY_REASON: Mapping[str, tuple[Metric, type[StrEnum]]] = {
    "drops": (catalog.DROPPED_PROMPTS, DropReason),
    "refusals": (catalog.REFUSED_GROUPS, RefusalReason),
    "failures": (catalog.FAILED_ROLLOUTS, FailureReason),
}
OF_ADOPTION = {
    "wire_s": catalog.SYNC_WIRE,
    "load_s": catalog.SYNC_LOAD,
    "pause_s": catalog.SYNC_PAUSE,
    "since_published_s": catalog.SYNC_DELAY,
    "probe_error": catalog.PROBE_ERROR,
}
OF_PUBLICATION = {
    "gather_s": catalog.SYNC_GATHER,
    "publish_s": catalog.SYNC_PUBLISH,
    "num_bytes": catalog.SYNC_BYTES,
}


@dataclass(slots=True)
class Figures:
    """The newest value of each gauge, and what histograms have not been told yet."""

    gauges: dict[tuple[Metric, Tags], float] = field(default_factory=dict)
    lags: Counter[int] = field(default_factory=Counter)  # lag -> groups, since the last take
    _restarts: Counter[Tags] = field(default_factory=Counter)  # (role, cause)
    _last_s: dict[tuple[str, str], float] = field(default_factory=dict)  # report, by role and index

    def __post_init__(self) -> None:
        """What can be counted is 0 before it happens first."""
        for role in ("rollout", "learner"):
            for cause in ("died", "silent", "hangs", "failed"):
                self._set(catalog.RESTARTS, 0, role, cause)
        for service in ("replay", "weights"):
            for cause in ("died", "silent"):
                self._set(catalog.RESTARTS, 0, service, cause)
        self._set(catalog.FAILED_COMMITS, 0)

    def hear(self, event: Event) -> None:
        """One event of any role; kinds that give no figure are ignored."""
        match event["kind"]:
            case "step":
                self._step(event)
            case "busy":
                self._busy(event)
            case "eval":
                self._eval(event)
            case "published":
                self._each(OF_PUBLICATION, event)
            case "adopted":
                self._each(OF_ADOPTION, event, str(event["index"]))
            case "commit":
                self._set(catalog.COMMIT_SECONDS, event["seconds"])
                self._set(catalog.COMMIT_PAUSE, event["pause_s"])
                self._set(catalog.COMMIT_VERSION, event["version"])
            case "commit_failed":
                self.gauges[catalog.FAILED_COMMITS, ()] += 1
            case "worker_died":
                self._restarted("rollout", event)
            case "restarted":
                self._restarted(event["role"], event)
            case "went_back":
                self._restarted("learner", event)
                self._forget_evals_after(event["version"])

    def look(self, state: RunState, roles: Sequence[RoleStatus]) -> None:
        """At what is known of the run as a whole."""
        self._set(catalog.VERSION, state.version)
        self._set(catalog.GOAL_VERSION, state.num_steps)
        self._set(catalog.TIMELINE, state.timeline)
        self._look_at_roles(roles)
        if state.replay:
            self._look_at_replay(state.replay)
        bias = state.bias()
        if bias:
            self._set(catalog.LENGTH_RATIO, bias["length_ratio"])
            self._set(catalog.REWARD_DIFFERENCE, bias["reward_difference"])

    def take_lags(self) -> Counter[int]:
        """Lag -> groups that have trained since the last call."""
        lags, self.lags = self.lags, Counter()
        return lags

    # --- events -----------------------------------------------------------------------

    def _step(self, event: Event) -> None:
        metrics = event["metrics"]
        self._set(catalog.REWARD, event["reward"])
        self._set(catalog.LOSS, event["loss"])
        self._set(catalog.SKIPPED_UPDATES, metrics.get("updates_skipped", 0))
        self._each(OF_STEP, metrics)
        self.lags.update({int(lag): count for lag, count in event["lags"].items()})
        elapsed_s = self._phases(event)
        if elapsed_s is not None:
            self._set(catalog.STEP_SECONDS, elapsed_s)
            self._set(catalog.TRAINING_RATE, event["num_answer_tokens"] / elapsed_s)

    def _busy(self, event: Event) -> None:
        elapsed_s = self._phases(event)
        if elapsed_s is not None:
            rate = event["num_tokens"] / elapsed_s
            self._set(catalog.GENERATION_RATE, rate, str(event["index"]))

    def _phases(self, event: Event) -> float | None:
        """The seconds since this role's report before, None for its first one."""
        place, now_s = (event["role"], str(event["index"])), event["time_s"]
        last_s = self._last_s.get(place)
        self._last_s[place] = now_s
        if last_s is None or now_s <= last_s:
            return None
        elapsed_s = float(now_s - last_s)
        shares = {p: min(1.0, s / elapsed_s) for p, s in event["seconds"].items()}
        for metric, tags in list(self.gauges):
            if metric is catalog.PHASE_SHARE and tags[:2] == place:
                self._set(metric, 0, *tags)
        for phase, share in shares.items():
            self._set(catalog.PHASE_SHARE, share, *place, phase)
        busy = sum(share for phase, share in shares.items() if phase != "wait")
        self._set(catalog.BUSY_SHARE, min(1.0, busy), *place)
        return elapsed_s

    def _eval(self, event: Event) -> None:
        name = str(event.get("set", "eval"))
        self._each(OF_EVAL, event, name)
        for k, share in event.get("pass_at", {}).items():
            self._set(catalog.PASS_AT, share, name, str(k))

    def _forget_evals_after(self, version: int) -> None:
        """The weights are gone of which they tell."""
        told = {tags[0]: v for (m, tags), v in self.gauges.items() if m is catalog.EVAL_VERSION}
        of_eval = (*OF_EVAL.values(), catalog.PASS_AT)
        for metric, tags in list(self.gauges):
            if metric in of_eval and told.get(tags[0], 0) > version:
                del self.gauges[metric, tags]

    def _restarted(self, role: str, event: Event) -> None:
        place = (role, cause_of(event["cause"]))
        self._restarts[place] += 1
        self._set(catalog.RESTARTS, self._restarts[place], *place)

    # --- the run as a whole -----------------------------------------------------------

    def _look_at_roles(self, roles: Sequence[RoleStatus]) -> None:
        counts = Counter((_split(role.name)[0], role.state) for role in roles)
        for role in ("rollout", "learner"):
            for state in State:
                self._set(catalog.ROLES, counts[role, state], role, state)
        versions = {_split(role.name): role.version for role in roles if role.version is not None}
        self._forget_all_but(versions)
        for place, version in versions.items():
            self._set(catalog.ROLE_VERSION, version, *place)

    def _look_at_replay(self, stats: Mapping[str, Any]) -> None:
        self._each(OF_REPLAY, stats)
        self._set(catalog.OLDEST_LEASE, stats.get("oldest_lease_s") or 0.0)
        self._set(catalog.GENERATED_TOKENS, stats["lengths"].get("generated_tokens", 0))
        self._set(catalog.TRAINED_TOKENS, stats["lengths"].get("trained_tokens", 0))
        for key, (metric, reasons) in BY_REASON.items():
            for reason in reasons:
                self._set(metric, stats[key].get(reason.value, 0), reason.value)

    # --- the gauges -------------------------------------------------------------------

    def _set(self, metric: Metric, value: float, *tags: str) -> None:
        self.gauges[metric, tags] = float(value)

    def _each(self, metrics: Mapping[str, Metric], values: Mapping[str, Any], *tags: str) -> None:
        """Those that are there."""
        for key, metric in metrics.items():
            if (value := values.get(key)) is not None:
                self._set(metric, value, *tags)

    def _forget_all_but(self, places: Collection[tuple[str, str]]) -> None:
        """What a role has told is of the past once it is gone, or starts again without weights."""
        self._last_s = {place: s for place, s in self._last_s.items() if place in places}
        gone = [key for key in self.gauges if (place := _place(*key)) and place not in places]
        for key in gone:
            del self.gauges[key]


def cause_of(text: str) -> Cause:
    """The kind of a death, of what `orchestrator.health` and `orchestrator.actors` say."""
    first = text.splitlines()[0] if text else ""
    if "does not answer" in first:
        return "silent"
    if "hangs:" in first:
        return "hangs"
    return "died" if " died:" in first else "failed"


def _place(metric: Metric, tags: Tags) -> tuple[str, str] | None:
    """Role and index of whose figure it is; None where it is the whole run's."""
    if metric.tags[:2] == catalog.ROLE:
        return tags[0], tags[1]
    return ("rollout", tags[0]) if metric.tags[:1] == ("index",) else None


def _split(name: str) -> tuple[str, str]:
    """`rollout-0` as role and index."""
    role, _, index = name.rpartition("-")
    return role, index
