"""Batches, the bound, reuse, shared devices, stop and resume, played by hand (B = 2, G = 2)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from slipstream.records import Batch, PutReply, RefusalReason, Stop, Wait

Play = Callable[..., Any]


def test_every_rank_gets_the_very_same_batch(play: Play) -> None:
    game = play(max_staleness=1)
    leases = game.lease(4)
    assert game.take() == Wait(reason="groups: 0 of 2 are here, 0 unused")
    game.put(leases[3], leases[1])
    batch = game.take()
    assert isinstance(batch, Batch)
    assert [entry.group.ordinal for entry in batch.groups] == [1, 3]
    assert (batch.version, batch.num_rollouts, batch.num_answer_tokens) == (0, 4, 8)
    game.put(leases[0])
    assert game.take() is batch


def test_take_is_for_the_newest_version_only(play: Play) -> None:
    game = play()
    for version in (-1, 1):
        with pytest.raises(ValueError, match="the newest version is 0"):
            game.buffer.take(version, 0.0)


def test_trained_twice_is_harmless_and_out_of_order_is_an_error(play: Play) -> None:
    game = play()
    with pytest.raises(ValueError, match="without a batch"):
        game.buffer.trained(1)
    game.put(*game.lease(2).values())
    assert game.step() == [0, 1]
    game.buffer.trained(1)
    assert game.buffer.stats()["num_trained"] == 2
    with pytest.raises(ValueError, match="without a batch"):
        game.buffer.trained(3)
    game.put(*game.lease(2).values())
    game.take()
    game.buffer.trained(1)  # late, with the next batch under way
    assert game.step() == [2, 3]


def test_the_last_step_ends_the_job_for_everyone(play: Play) -> None:
    game = play(num_steps=1)
    game.put(*game.lease(2).values())
    game.step()
    done = Stop(reason="all steps are done")
    assert game.ask(1).stop == done
    assert game.take() == game.take() == done


def test_a_stop_waits_for_the_batch_under_way_and_sticks(play: Play) -> None:
    game = play()
    game.put(*game.lease(2).values())
    game.take()
    game.buffer.stop("interrupted")
    game.buffer.stop("another reason")
    assert isinstance(game.take(), Batch)  # other ranks have it
    assert game.ask(1).leases == ()
    assert game.step() == [0, 1]
    assert game.take() == game.ask(1).stop == Stop(reason="interrupted")


def test_a_stop_without_a_batch_is_given_to_every_rank(play: Play) -> None:
    game = play()
    leases = game.lease(2)
    game.buffer.stop("interrupted")
    assert game.put(*leases.values()) == [PutReply(), PutReply()]
    assert game.take() == Stop(reason="interrupted")


def test_lag_is_from_the_oldest_token(play: Play) -> None:
    game = play(max_staleness=1)
    leases = game.lease(4)
    game.put(leases[0], leases[1])
    game.step()
    game.put(leases[2], version=0)
    game.put(leases[3], version=1)
    batch = game.take()
    assert [entry.lag for entry in batch.groups] == [1, 0]
    game.step()
    assert game.buffer.stats()["lags"] == {"0": 3, "1": 1}


def late_by_two(play: Play, on_stale: str, **rules: Any) -> Any:
    """S = 1; a prompt (ordinal 0) leased at version 0 is still running while others train."""
    game = play(max_staleness=1, on_stale=on_stale, **rules)
    slow, *fast = game.lease(4).values()
    game.put(*fast[:2])
    assert game.step() == [1, 2]  # version 1
    game.put(fast[2], *game.lease(1).values())
    return game, slow


def test_wait_holds_the_batch_for_a_slow_prompt_that_is_due(play: Play) -> None:
    game, slow = late_by_two(play, "wait")
    assert game.take() == Wait(reason="1 running prompts, due by version 1")
    game.put(slow)
    assert game.step() == [0, 3]  # both of version 0; 4 is of version 1
    assert game.buffer.stats()["drops"] == {}


def test_wait_ends_when_the_slow_prompt_expires(play: Play) -> None:
    game, _slow = late_by_two(play, "wait")
    game.now_s = 599.0
    game.put(*game.lease(1).values())
    game.now_s = 601.0
    assert game.step() == [3, 4]
    (again,) = game.ask(1).leases
    assert (again.prompt.ordinal, again.attempt, again.min_version) == (0, 1, 2)


def late_group(play: Play, on_stale: str, **rules: Any) -> Any:
    """As `late_by_two`, and the slow prompt arrives at version 2, one past the bound."""
    game, slow = late_by_two(play, on_stale, **rules)
    assert game.step() == [3, 4]  # version 2
    game.put(slow, *game.lease(1).values())
    return game


def test_requeue_issues_the_same_ordinal_again(play: Play) -> None:
    game = late_group(play, "requeue", max_attempts=1)
    assert isinstance(game.take(), Wait)
    (again,) = game.ask(1).leases
    assert (again.prompt.ordinal, again.attempt, again.min_version) == (0, 1, 2)
    game.put(again)
    assert game.step() == [0, 5]
    stats = game.buffer.stats()
    assert stats["reissues"] == {"stale": 1}
    assert stats["drops"] == {}
    assert stats["lags"] == {"0": 5, "1": 1}


def test_drop_gives_a_stale_group_its_fate(play: Play) -> None:
    game = late_group(play, "drop")
    assert isinstance(game.take(), Wait)
    game.put(*game.lease(1).values())
    assert game.step() == [5, 6]
    assert game.buffer.stats()["drops"] == {"stale": 1}


def test_clip_trains_a_stale_group_and_reports_its_lag(play: Play) -> None:
    game = late_group(play, "clip")
    assert game.step() == [0, 5]
    assert game.buffer.stats()["lags"]["2"] == 1


def test_whole_batches_wait_for_the_lowest_ordinals(play: Play) -> None:
    game = play(max_staleness=1, whole_batches=True)
    leases = game.lease(4)
    game.put(leases[3], leases[2], leases[0])
    assert game.take() == Wait(reason="the batch's prompts: 1 of 2 are here")
    game.put(leases[1])
    assert game.step() == [0, 1]
    assert game.step() == [2, 3]


def test_whole_batches_wait_for_a_prompt_that_is_issued_again(play: Play) -> None:
    game = play(max_staleness=1, whole_batches=True)
    leases = game.lease(4)
    game.put(leases[0], leases[2], leases[3])
    game.now_s = 600.0
    assert isinstance(game.take(), Wait)
    (again,) = game.ask(9).leases
    game.put(again)
    assert game.step() == [0, 1]


def test_a_group_trains_up_to_max_uses(play: Play) -> None:
    game = play(max_staleness=9, max_uses=2)
    leases = game.lease(4)
    game.put(leases[0], leases[1])
    assert game.step() == [0, 1]
    assert isinstance(game.take(), Wait)  # nothing but used groups
    game.put(leases[2])
    batch = game.take()
    assert [(e.group.ordinal, e.use, e.lag) for e in batch.groups] == [(0, 2, 1), (2, 1, 1)]
    assert game.step() == [0, 2]
    game.put(leases[3])
    assert game.step() == [1, 3]
    assert isinstance(game.take(), Wait)
    stats = game.buffer.stats()
    assert stats["num_trained"] == 4
    assert stats["lengths"]["trained_rollouts"] == 8


def test_a_used_group_past_the_bound_is_let_go(play: Play) -> None:
    game = play(max_uses=9)  # S = 0
    game.put(*game.lease(2).values())
    game.step()
    assert game.buffer.stats()["num_buffered"] == 0


def test_a_batch_under_way_counts_in_full_though_part_of_it_is_reused(play: Play) -> None:
    """Otherwise three groups of version 1 would be due at version 2, where two fit."""
    game = play(max_staleness=1, max_uses=2)
    leases = game.lease(4)
    game.put(*leases.values())
    assert game.step() == [0, 1]
    assert game.step() == [2, 3]  # 2, 3 may train again until version 1: now they are past it
    at_2 = game.lease(3)
    game.put(at_2[4], at_2[5])
    assert game.step() == [4, 5]
    game.put(at_2[6])
    assert game.take().groups[-1].group.ordinal == 6  # with 4 or 5 reused
    assert len(game.lease(9)) == 2  # (S + 1) B, less the B of the batch under way


def shared(play: Play, **rules: Any) -> Any:
    return play(num_sharing_workers=2, **rules)


def test_shared_devices_go_to_the_learner_in_turns(play: Play) -> None:
    game = shared(play)
    mine, other = game.lease(1), game.lease(1, worker="w1")
    assert not game.ask(1).yield_device
    game.put(*mine.values())
    assert not game.ask(1).yield_device  # w1 still works
    game.put(*other.values())
    assert game.take() == Wait(reason="w0, w1 to release the shared devices")
    assert game.ask(1).yield_device
    assert game.ask(1, worker="w1").yield_device
    assert game.ask(1, yielded=True).yield_device
    assert game.take() == Wait(reason="w1 to release the shared devices")
    game.ask(1, worker="w1", yielded=True)
    assert isinstance(game.take(), Batch)
    assert game.ask(1, yielded=True).yield_device  # while the learner trains
    game.step()
    reply = game.ask(1, yielded=True)
    assert (len(reply.leases), reply.yield_device) == (1, False)
    assert list(game.lease(1, worker="w1")) == [3]


def test_the_learner_waits_for_workers_that_have_not_come_yet(play: Play) -> None:
    game = shared(play)
    game.put(*game.lease(2).values())
    game.ask(1, yielded=True)
    assert game.take() == Wait(reason="1 of 2 rollout workers have come")


def test_a_worker_that_gets_a_lease_has_not_yielded(play: Play) -> None:
    game = shared(play, lease_timeout_s=10.0)
    game.put(*game.lease(1).values())
    game.lease(1, worker="w1")
    game.now_s = 10.0  # the prompt of w1 expires
    reply = game.ask(1, yielded=True)
    assert len(reply.leases) == 1
    game.put(*reply.leases)
    game.ask(1, worker="w1", yielded=True)
    assert game.take() == Wait(reason="w0 to release the shared devices")


def test_apart_devices_are_never_asked_for(play: Play) -> None:
    game = play()
    game.put(*game.lease(2).values())
    assert not game.ask(1).yield_device
    assert isinstance(game.take(), Batch)
    assert not game.ask(1).yield_device


def test_resume_keeps_what_is_buffered_and_issues_the_rest_again(play: Play) -> None:
    game = play(max_staleness=1, lease_timeout_s=10.0)
    leases = game.lease(4)
    game.put(leases[0], leases[2], leases[3])
    game.step()  # 0 and 2 are trained; 1 runs, 3 is buffered
    game.lease(1)  # 4

    resumed = play(max_staleness=1, snapshot=game.buffer.snapshot())
    assert resumed.buffer.version == 1
    assert resumed.put(leases[1])[0].refused is RefusalReason.UNKNOWN_LEASE
    again = resumed.ask(9).leases
    assert [lease.prompt.ordinal for lease in again] == [1, 4, 5]
    assert {(lease.min_version, lease.timeline) for lease in again} == {(1, 1)}
    assert not {lease.lease_id for lease in again} & set(range(5))
    resumed.put(*again)
    assert resumed.step() == [1, 3]
    stats = resumed.buffer.stats()
    assert (stats["num_trained"], stats["lags"]) == (4, {"0": 3, "1": 1})
    assert stats["reissues"] == {"went_back": 2}


def test_resume_after_the_last_step_stops(play: Play) -> None:
    game = play(num_steps=1)
    game.put(*game.lease(2).values())
    game.step()
    resumed = play(num_steps=1, snapshot=game.buffer.snapshot())
    assert resumed.ask(1).stop == resumed.take() == Stop(reason="all steps are done")
    longer = play(num_steps=2, snapshot=game.buffer.snapshot())
    assert list(longer.lease(9)) == [2, 3]


def test_stats_say_what_is_awaited(play: Play) -> None:
    game = play()
    assert game.buffer.stats()["waiting_for"] == "the first prompts"
    leases = game.lease(2)
    game.take()
    assert game.buffer.stats()["waiting_for"] == "groups: 0 of 2 are here, 0 unused"
    game.put(*leases.values())
    game.take()
    stats = game.buffer.stats()
    assert stats["waiting_for"] == "the learner"
    assert json.loads(json.dumps(stats)) == stats


def test_no_lease_while_the_learner_has_the_shared_devices(play: Play) -> None:
    game = shared(play, max_staleness=1)
    game.put(*game.lease(2).values())
    for worker in ("w0", "w1"):
        game.ask(0, worker=worker, yielded=True)
    assert isinstance(game.take(), Batch)
    assert game.lease(5) == {}
    assert game.buffer.stats()["held_back"] == "the shared devices are the learner's"
    game.step()
    assert len(game.lease(5)) == 4
