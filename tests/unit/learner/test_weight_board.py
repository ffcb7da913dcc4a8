"""The board: which version a worker gets next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from learner.actor import WeightBoard
from slipstream.records import WeightUpdate


def update(version: int, timeline: int = 0, *, at_s: float = 0.0) -> WeightUpdate:
    return WeightUpdate(
        timeline=timeline,
        version=version,
        bucket_specs=(),
        buckets=(),
        probe=None,
        published_at_s=at_s,
    )


def told(
    announced: Sequence[tuple[int, int]], held: tuple[int, int], every: int
) -> tuple[int, int] | None:
    """(timeline, version) of what a worker that holds `held` gets."""

    async def ask() -> WeightUpdate | None:
        board = WeightBoard(every)
        for timeline, version in announced:
            await board.announce(update(version, timeline))
        return await board.wait_newer(held)

    found = asyncio.run(ask())
    return None if found is None else found.order


def test_the_newest_alone() -> None:
    assert told([(0, v) for v in range(8)], (0, 2), every=0) == (0, 7)


def test_a_multiple_comes_before_newer_ones() -> None:
    versions = [(0, v) for v in range(8)]
    assert told(versions, (0, 2), every=5) == (0, 5)
    assert told(versions, (0, 5), every=5) == (0, 7)
    assert told(versions, (0, 4), every=2) == (0, 6), "only the last one is held"
    assert told(versions, (0, -1), every=7) == (0, 7)


def test_a_multiple_of_weights_that_are_gone_does_not_come() -> None:
    assert told([(0, 4), (0, 5), (0, 6), (1, 3)], (0, 4), every=5) == (1, 3)


def test_a_multiple_goes_with_the_ranks_that_published_it() -> None:
    async def told_after(again_at_s: float) -> list[int]:
        board = WeightBoard(50)
        for version, at_s in ((50, 1.0), (57, 2.0), (57, again_at_s), (58, 4.0)):
            await board.announce(update(version, at_s=at_s))
        found = [await board.wait_newer((0, held)) for held in (40, 57)]
        return [newer.version for newer in found if newer is not None]

    assert asyncio.run(told_after(2.0)) == [50, 58], "a reminder"
    assert asyncio.run(told_after(3.0)) == [58, 58], "other ranks, at the same version"
