"""What the job file says of replay, as plain values of one record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from slipstream.config.job import JobConfig, OnStale, PriorityConfig, Select


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The settings that the state machine follows; see `slipstream.config.job`."""

    group_size: int  # G, rollouts of one prompt
    needs_greedy: bool = False  # every group comes with the reward of a greedy answer
    groups_per_batch: int  # B, groups of one learner step
    num_steps: int  # the version at which the job is over
    max_staleness: int  # S, bound on lag, in policy versions
    on_stale: OnStale = "wait"
    select: Select = "fifo"
    priority: PriorityConfig = field(default_factory=PriorityConfig)
    whole_batches: bool = False
    max_uses: int = 1
    dynamic_sampling: bool = False
    max_attempts: int = 3  # failed ones of one prompt, before it is dropped
    max_kills: int = 3  # engines that died with a prompt before it is quarantined
    lease_timeout_s: float = 600.0
    num_sharing_workers: int = 0  # workers on the learner's devices, in turns; 0: none
    seed: int = 0

    def budget(self, version: int) -> int:
        """How many groups may be outstanding at `version`: the bound, and the steps left, allow."""
        num_batches = min(self.max_staleness + 1, self.num_steps - version)
        return num_batches * self.groups_per_batch

    @classmethod
    def of(cls, job: JobConfig) -> Self:
        replay = job.replay
        return cls(
            group_size=job.rollout.group_size,
            needs_greedy=job.algorithm.needs_greedy,
            groups_per_batch=job.learner.groups_per_batch,
            num_steps=job.learner.num_steps,
            max_staleness=replay.max_staleness,
            on_stale=replay.on_stale,
            select=replay.select,
            priority=replay.priority,
            whole_batches=replay.whole_batches,
            max_uses=replay.max_uses,
            dynamic_sampling=replay.dynamic_sampling,
            max_attempts=replay.max_attempts,
            max_kills=replay.max_kills,
            lease_timeout_s=replay.lease_timeout_s,
            num_sharing_workers=job.rollout.num_workers if job.rollout.colocate else 0,
            seed=job.seed,
        )
