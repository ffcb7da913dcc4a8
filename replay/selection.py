"""Which of the eligible groups are preferred. Pure functions of the candidates."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from replay.shelf import Buffered
from slipstream.config.job import Select
from slipstream.records import Group


def ranked(
    candidates: Iterable[Buffered], policy: Select, *, seed: int, version: int
) -> list[Buffered]:
    """The candidates, best first; ties go to the lower ordinal.

    fifo      lowest ordinal
    freshest  its oldest token is from the newest version
    priority  largest spread of rewards, see `reward_spread`
    random    a permutation that depends on seed, version and candidates alone
    """
    in_order = sorted(candidates, key=lambda entry: entry.group.ordinal)
    match policy:
        case "fifo":
            return in_order
        case "freshest":
            return sorted(in_order, key=lambda entry: -entry.group.oldest_version)
        case "priority":
            return sorted(in_order, key=lambda entry: -reward_spread(entry.group))
        case "random":
            generator = np.random.Generator(np.random.PCG64([seed, version]))
            return [in_order[index] for index in generator.permutation(len(in_order))]


def reward_spread(group: Group) -> float:
    """Standard deviation of the group's rewards: at 0 a group-relative advantage vanishes."""
    return float(np.std([rollout.reward for rollout in group.rollouts]))
