"""Batches without a finite gradient, and a job that is paused (B = 2, G = 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from replay.state import ReplayState
from slipstream.records import Batch, PutReply, Stop, Wait

Play = Callable[..., Any]


def batch_of(game: Any) -> Batch:
    batch = game.take()
    assert isinstance(batch, Batch)
    return batch


def ordinals(batch: Batch) -> list[int]:
    return [entry.group.ordinal for entry in batch.groups]


def test_a_discarded_batch_is_dropped_and_the_version_stays(play: Play) -> None:
    game = play(max_staleness=1)
    game.put(*game.lease(4).values())
    first = batch_of(game)
    assert (first.number, ordinals(first)) == (0, [0, 1])
    game.buffer.discard(0, number=0)
    stats = game.buffer.stats()
    assert (stats["version"], stats["drops"], stats["num_trained"]) == (0, {"not_finite": 2}, 0)
    assert list(game.lease(9)) == [4, 5]
    second = batch_of(game)
    assert (second.version, second.number, ordinals(second)) == (0, 1, [2, 3])
    assert game.step() == [2, 3]
    assert game.buffer.stats()["lengths"]["trained_rollouts"] == 4


def test_a_call_that_comes_again_discards_no_other_batch(play: Play) -> None:
    game = play(max_staleness=1)
    game.put(*game.lease(4).values())
    batch_of(game)
    for _ in range(2):
        game.buffer.discard(0, number=0)
    second = batch_of(game)
    game.buffer.discard(0, number=0)
    assert game.take() is second
    state = ReplayState()
    for fact in game.facts:
        state.apply(fact)
    game.start(state)
    game.buffer.discard(0, number=0)
    assert batch_of(game).number == 1
    assert game.step() == [2, 3]
    game.buffer.discard(0, number=1)  # it has trained; a learner that is late
    assert game.buffer.stats()["drops"] == {"not_finite": 2}


def test_only_the_batch_under_way_can_be_discarded(play: Play) -> None:
    game = play(max_staleness=1)
    with pytest.raises(ValueError, match="batch 0 of version 0, which is not there"):
        game.buffer.discard(0, number=0)
    game.put(*game.lease(2).values())
    batch_of(game)
    for version, number in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match=f"batch {number} of version {version}"):
            game.buffer.discard(version, number=number)
    with pytest.raises(ValueError, match="timeline"):
        game.buffer.discard(0, timeline=1, number=0)


def test_groups_that_have_trained_leave_and_keep_their_fate(play: Play) -> None:
    game = play(max_staleness=3, max_uses=3)
    game.put(*game.lease(2).values())
    assert game.step() == [0, 1]
    game.put(*game.lease(1).values())
    again = batch_of(game)
    assert [(entry.group.ordinal, entry.use) for entry in again.groups] == [(0, 2), (2, 1)]
    game.buffer.discard(1, number=1)
    assert list(game.buffer.state.shelf.entries) == [1]
    assert game.buffer.state.ledger.counts == {"trained": 2, "not_finite": 1}
    game.buffer.state.ledger.check()


def test_shared_devices_generate_again_after_a_discard(play: Play) -> None:
    game = play(num_sharing_workers=1)
    game.put(*game.lease(2).values())
    game.ask(1, yielded=True)
    batch_of(game)
    assert game.ask(9, yielded=True).leases == ()
    game.buffer.discard(0, number=0)
    again = game.ask(9, yielded=True)
    assert ([lease.prompt.ordinal for lease in again.leases], again.yield_device) == ([2, 3], False)
    game.put(*again.leases)
    assert isinstance(game.take(), Wait), "the worker has the devices"
    assert game.ask(1, yielded=True).yield_device
    assert game.step() == [2, 3]


def test_a_paused_job_leases_and_takes_nothing(play: Play) -> None:
    game = play(max_staleness=1)
    leases = game.lease(3)
    game.buffer.pause(True)
    assert game.lease(1) == {}
    assert game.ask(1, held=[0, 1]).leases == (leases[2],), "it has that one, the answer got lost"
    assert game.put(*leases.values()) == [PutReply()] * 3
    assert game.take() == Wait(reason="the job is paused")
    stats = game.buffer.stats()
    assert (stats["paused"], stats["held_back"]) == (True, "paused")
    assert stats["waiting_for"] == "the job is paused"
    game.buffer.pause(False)
    assert game.buffer.stats()["held_back"] is None
    assert game.step() == [0, 1]


def test_what_is_under_way_goes_on_while_paused(play: Play) -> None:
    game = play(max_staleness=1)
    game.put(*game.lease(4).values())
    first = batch_of(game)
    game.buffer.pause(True)
    assert game.take() is first, "for the other ranks"
    assert game.step() == [0, 1]
    assert isinstance(game.take(), Wait)
    game.buffer.stop("interrupted")
    assert game.take() == Stop(reason="interrupted")
