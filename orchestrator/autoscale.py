"""How many rollout workers a job needs, from the roles' events and replay's statistics. Pure.

    step  {wait, train, ...} ─▶ share of the learner's time without a batch
    busy  {wait, ...} ────────▶ share of the workers' time without a prompt
    replay's statistics ──────▶ share of the staleness budget that is buffered

While nobody waits, n workers keep the learner busy. Where workers are held back for a share h of
their time, and the learner waits for a share w of its own, n (1 - h) / (1 - w) would be enough and
not too many. Both shares are large where the two take turns; then more workers help nobody.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from slipstream.config.job import AutoscaleConfig, JobConfig

MAX_FACTOR = 2.0  # of one change: a share of nearly 1 tells little of what is needed
WINDOW_S = 10.0  # over which shares are means, or longer: until a step has come
QUEUE_IS_LOW = 0.5  # above, the learner does not wait for want of groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Means over the last while, one learner step at least."""

    at_s: float
    queue_share: float  # buffered groups over the staleness budget
    learner_wait_share: float  # of its time, for a batch
    held_back_share: float  # of the workers' time, without a lease as replay grants none


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one decision leaves to the next."""

    changed_at_s: float  # the last change, or the start of the training
    direction: int = 0  # of the change that the figures ask for: 1, -1, or 0 for none
    since_s: float = 0.0  # they ask for it


def target(
    num_now: int, figures: Figures, settings: AutoscaleConfig, memory: Memory
) -> tuple[int, Memory]:
    """The number of workers to have from now on, and what to remember.

    `num_now`: how many there are to be so far, those that are being replaced among them.
    """
    num = _bounded(num_now, settings)
    wish = _bounded(_needed(num, figures, settings.tolerance), settings)
    if num != num_now:
        return num, Memory(changed_at_s=figures.at_s)
    direction = (wish > num) - (wish < num)
    if direction != memory.direction:
        memory = replace(memory, direction=direction, since_s=figures.at_s)
    is_steady = figures.at_s - memory.since_s >= settings.steady_s
    has_rested = figures.at_s - memory.changed_at_s >= settings.cooldown_s
    if direction == 0 or not (is_steady and has_rested):
        return num, memory
    return wish, Memory(changed_at_s=figures.at_s)


def _needed(num: int, figures: Figures, tolerance: float) -> int:
    """`num` where it is right within the tolerance."""
    factor = (1 - figures.held_back_share) / max(1e-9, 1 - figures.learner_wait_share)
    factor = min(MAX_FACTOR, max(1 / MAX_FACTOR, factor))
    if factor > 1 + tolerance and figures.queue_share < QUEUE_IS_LOW:
        return math.ceil(num * factor)
    # What is left must not be too few again.
    return min(num, math.ceil(num * factor * (1 + tolerance)))


def _bounded(num: int, settings: AutoscaleConfig) -> int:
    return min(settings.max_workers, max(settings.min_workers, num))


class Scaling:
    """Of one job with `rollout.autoscale`."""

    def __init__(self, job: JobConfig, now_s: float) -> None:
        assert job.rollout.autoscale is not None
        self._settings = job.rollout.autoscale
        self._budget = (job.replay.max_staleness + 1) * job.learner.groups_per_batch
        self._memory = Memory(changed_at_s=now_s)
        self._since_s = now_s
        self._seconds: dict[str, Counter[str]] = {"rollout": Counter(), "learner": Counter()}
        self._num_steps = 0

    def hear(self, event: Mapping[str, Any]) -> None:
        """An event of a role."""
        if event["kind"] in ("step", "busy"):
            self._seconds[event["role"]].update(event["seconds"])
            self._num_steps += event["kind"] == "step"

    def target(self, num_now: int, replay: Mapping[str, Any], now_s: float) -> int:
        """How many workers to have from now on, where there are to be `num_now` so far."""
        if now_s - self._since_s < WINDOW_S or self._num_steps == 0:
            return num_now
        figures = Figures(
            at_s=now_s,
            queue_share=replay.get("num_buffered", 0) / self._budget,
            learner_wait_share=self._waited("learner"),
            held_back_share=self._waited("rollout"),
        )
        num, self._memory = target(num_now, figures, self._settings, self._memory)
        self._since_s, self._num_steps = now_s, 0
        for seconds in self._seconds.values():
            seconds.clear()
        return num

    def _waited(self, role: str) -> float:
        seconds = self._seconds[role]
        return seconds["wait"] / max(1e-9, sum(seconds.values()))
