from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from learner.batching import group_ranges, rows_of_ranks

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40)


def test_by_hand() -> None:
    # longest first: 9 | 5 4 | 2 2 2 with a budget of 10 padded tokens
    assert rows_of_ranks([2, 9, 5, 2, 4, 2], max_tokens=10, num_ranks=1) == [
        [[1], [2, 4], [0, 3, 5]]
    ]


def test_ranks_get_the_same_number() -> None:
    assert rows_of_ranks([9, 9, 1], max_tokens=9, num_ranks=2) == [[[0], [2]], [[1], []]]


@given(LENGTHS, st.integers(1, 100), st.integers(1, 4))
def test_every_rollout_once_within_the_budget(
    lengths: list[int], max_tokens: int, num_ranks: int
) -> None:
    ranks = rows_of_ranks(lengths, max_tokens=max_tokens, num_ranks=num_ranks)
    assert len({len(rank) for rank in ranks}) == 1
    parts = [part for rank in ranks for part in rank]
    assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
    for part in parts:
        longest = max((lengths[index] for index in part), default=0)
        assert len(part) <= 1 or longest * len(part) <= max_tokens


@given(st.integers(1, 100), st.integers(1, 10))
def test_minibatches_cut_without_gaps(num_groups: int, count: int) -> None:
    parts = group_ranges(num_groups, count)
    assert [group for part in parts for group in part] == list(range(num_groups))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
