"""Counts for people and metrics: what was refused, issued again, generated and trained.

Mean length and mean reward of trained against generated rollouts show whether long answers get
lost, and whether what trains is easier or harder than what there is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from slipstream.records import FailureReason, FinishReason, Group, RefusalReason


@dataclass(slots=True)
class Tally:
    """Totals since the job began, also over a resume."""

    refusals: Counter[str] = field(default_factory=Counter)  # RefusalReason -> groups
    failures: Counter[str] = field(default_factory=Counter)  # FailureReason -> rollouts
    reissues: Counter[str] = field(default_factory=Counter)  # cause -> prompts
    lags: Counter[int] = field(default_factory=Counter)  # lag -> groups trained, each use counts
    lengths: Counter[str] = field(default_factory=Counter)  # rollouts, their tokens, those cut
    # groups, the sum of their mean rewards, those whose rewards are all equal
    rewards: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def refused(self, reason: RefusalReason, failures: Sequence[FailureReason]) -> None:
        self.refusals[reason.value] += 1
        if reason is RefusalReason.FAILED_ROLLOUT:
            self.failures.update(failure.value for failure in failures)

    def generated(self, group: Group) -> None:
        """An accepted group, whatever becomes of it."""
        self._add("generated", group)

    def trained(self, group: Group, *, lag: int, first_use: bool) -> None:
        self.lags[lag] += 1
        if first_use:
            self._add("trained", group)

    def snapshot(self) -> dict[str, Any]:
        """JSON-able; also the form in which it is reported."""
        return {
            "refusals": dict(self.refusals),
            "failures": dict(self.failures),
            "reissues": dict(self.reissues),
            "lags": {str(lag): count for lag, count in sorted(self.lags.items())},
            "lengths": dict(self.lengths),
            "rewards": dict(self.rewards),
        }

    @classmethod
    def restore(cls, snapshot: Mapping[str, Any]) -> Self:
        return cls(
            refusals=Counter(snapshot["refusals"]),
            failures=Counter(snapshot["failures"]),
            reissues=Counter(snapshot["reissues"]),
            lags=Counter({int(lag): count for lag, count in snapshot["lags"].items()}),
            lengths=Counter(snapshot["lengths"]),
            rewards=defaultdict(float, snapshot["rewards"]),
        )

    def _add(self, which: str, group: Group) -> None:
        rollouts = group.rollouts
        self.lengths[f"{which}_rollouts"] += len(rollouts)
        self.lengths[f"{which}_tokens"] += sum(rollout.num_tokens for rollout in rollouts)
        self.lengths[f"{which}_cut"] += sum(
            rollout.finish_reason is FinishReason.LENGTH for rollout in rollouts
        )
        rewards = [rollout.reward for rollout in rollouts]
        self.rewards[f"{which}_groups"] += 1
        self.rewards[f"{which}_sum"] += sum(rewards) / len(rewards)
        self.rewards[f"{which}_equal"] += len(set(rewards)) == 1
