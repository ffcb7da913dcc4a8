"""Cuts a batch into minibatches, ranks and microbatches. Pure and deterministic.

Rows (`learner/tensors.py`) are right-padded, so sorting by length keeps padding small. Every rank
gets the same number of microbatches: under ZeRO-2 and 3 each forward and backward is a collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Microbatch = list[int]  # indices of rows; empty where another rank has one more


def group_ranges(num_groups: int, count: int) -> list[range]:
    """`count` contiguous ranges of groups, sizes differing by at most one."""
    bounds = [num_groups * index // count for index in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


def rows_of_ranks(
    lengths: Sequence[int], *, max_tokens: int, num_ranks: int
) -> list[list[Microbatch]]:
    """The microbatches of every rank, one at least.

    `lengths` are those of the rows. A microbatch holds at most `max_tokens` padded tokens, or a
    single longer row.
    """
    longest_first = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    ranks = [
        _fill(longest_first[rank::num_ranks], lengths, max_tokens) for rank in range(num_ranks)
    ]
    most = max(1, *(len(rank) for rank in ranks))
    return [rank + [[]] * (most - len(rank)) for rank in ranks]


def _fill(
    longest_first: Sequence[int], lengths: Sequence[int], max_tokens: int
) -> list[Microbatch]:
    """Pack in order; the first sequence of a microbatch is its longest."""
    packed: list[Microbatch] = []
    for index in longest_first:
        if packed and lengths[packed[-1][0]] * (len(packed[-1]) + 1) <= max_tokens:
            packed[-1].append(index)
        else:
            packed.append([index])
    return packed
