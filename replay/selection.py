"""Which of the eligible groups make the batch. Pure functions of the candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from slipstream.records import Group

Policy = Literal["fifo", "freshest", "priority", "random"]


@dataclass(slots=True)
class Buffered:
    """An accepted group and how often it has trained."""

    group: Group
    uses: int = 0


def ranked(
    candidates: Sequence[Buffered], policy: Policy, *, seed: int, version: int
) -> list[Buffered]:
    """The candidates, best first; ties go to the lower ordinal."""
    in_order = sorted(candidates, key=lambda entry: entry.group.ordinal)
    match policy:
        case "fifo":
            return in_order
        case "freshest":
            return sorted(in_order, key=lambda entry: -entry.group.oldest_version)
        case "priority":
            return sorted(in_order, key=lambda entry: -reward_spread(entry.group))
        case "random":
            generator = np.random.default_rng([seed, version])
            return [in_order[index] for index in generator.permutation(len(in_order))]


def reward_spread(group: Group) -> float:
    """Standard deviation of the group's rewards: 0 carries no group-relative signal."""
    return float(np.std([rollout.reward for rollout in group.rollouts]))
