"""How many rollout workers a job needs. Pure.

While nobody waits, n workers keep the learner busy. Where workers are held back for a share h of
their time, and the learner waits for a share w of its own, n (1 - h) / (1 - w) would be enough and
not too many. Both shares are large where the two take turns; then more workers help nobody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from slipstream.config.job import AutoscaleConfig

MAX_FACTOR = 2.0  # of one change: a share of nearly 1 tells little of what is needed
QUEUE_IS_LOW = 0.5  # above, the learner does not wait for want of groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Means over the last while, a few learner steps at least."""

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
