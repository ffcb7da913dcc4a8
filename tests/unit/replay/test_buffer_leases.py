"""Admission, re-issue, expiry, incarnations and fates, played by hand (B = 2, G = 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from replay.scripted import scripted_group
from slipstream.records import (
    FailureReason,
    Lease,
    PutReply,
    RefusalReason,
    RolloutFailure,
    Stop,
)

Play = Callable[..., Any]


def spoiled(lease: Lease) -> Any:
    return scripted_group(lease, rewards=(0.0, float("nan")))


def test_leases_follow_the_stream_and_name_version_and_deadline(play: Play) -> None:
    game = play(max_staleness=1, lease_timeout_s=30.0)
    game.now_s = 5.0
    reply = game.ask(3)
    assert [lease.prompt.ordinal for lease in reply.leases] == [0, 1, 2]
    first = reply.leases[0]
    assert (first.worker, first.incarnation, first.attempt, first.min_version) == ("w0", 0, 0, 0)
    assert first.expires_at_s == 35.0
    assert (reply.yield_device, reply.stop) == (False, None)


def test_a_worker_that_keeps_its_weights_gets_nothing_that_needs_newer_ones(play: Play) -> None:
    game = play(max_staleness=1)
    game.put(*game.lease(2).values())
    game.step()
    held = [lease.lease_id for lease in game.lease(3).values()]
    assert len(held) == 3  # of version 1
    reply = game.buffer.lease("w0", 0, 1, 0.0, held=held, pinned=(0, 0))
    assert (reply.leases, list(reply.revoked)) == ((), held)
    assert game.buffer.stats()["reissues"] == {"pinned": 3}
    assert list(game.lease(4, worker="w1")) == [2, 3, 4, 5], "others get them"
    assert game.buffer.lease("w0", 0, 1, 0.0, pinned=(0, 1)).leases == ()  # no room


def test_a_worker_that_keeps_the_newest_weights_gets_prompts(play: Play) -> None:
    game = play(max_staleness=1)
    leases = game.buffer.lease("w0", 0, 2, 0.0, pinned=(0, 0)).leases
    held = [lease.lease_id for lease in leases]
    assert len(game.buffer.lease("w0", 0, 1, 0.0, held=held, pinned=(0, 0)).leases) == 1
    assert game.buffer.stats()["reissues"] == {}


@pytest.mark.parametrize(("max_staleness", "admitted"), [(0, 2), (1, 4), (3, 8)])
def test_admission_is_bound_plus_one_batches(play: Play, max_staleness: int, admitted: int) -> None:
    game = play(max_staleness=max_staleness)
    assert len(game.lease(100)) == admitted
    assert game.lease(1, worker="w1") == {}


def test_admission_counts_groups_until_they_are_trained(play: Play) -> None:
    game = play()
    leases = game.lease(2)
    game.put(*leases.values())
    assert game.lease(1) == {}  # buffered
    game.take()
    assert game.lease(1) == {}  # in the batch under way
    assert game.step() == [0, 1]
    assert list(game.lease(5)) == [2, 3]


def test_no_lease_beyond_what_the_steps_left_can_use(play: Play) -> None:
    game = play(max_staleness=4, num_steps=2)
    leases = game.lease(100)
    assert list(leases) == [0, 1, 2, 3]
    game.put(*leases.values())
    assert game.step() == [0, 1]
    assert game.lease(1) == {}
    assert game.step() == [2, 3]
    assert game.buffer.state.ledger.num_issued == 4


def test_an_expired_prompt_is_issued_again_first(play: Play) -> None:
    game = play(max_staleness=1, lease_timeout_s=10.0)
    old = game.lease(2)
    game.now_s = 5.0
    game.put(*game.lease(2).values())
    game.now_s = 10.0
    again = game.ask(9, worker="w1").leases
    assert [(lease.prompt.ordinal, lease.attempt) for lease in again] == [(0, 1), (1, 1)]
    assert game.put(old[0]) == [
        PutReply(refused=RefusalReason.UNKNOWN_LEASE, detail="lease 0 of w0 0")
    ]
    assert game.put(*again) == [PutReply(), PutReply()]
    assert game.buffer.stats()["reissues"] == {"expired": 2}


def test_expiry_never_uses_up_a_prompts_attempts(play: Play) -> None:
    game = play(lease_timeout_s=10.0, max_attempts=1)
    for attempt in range(5):
        assert [lease.attempt for lease in game.ask(2).leases] == [attempt, attempt]
        game.now_s += 10.0
    assert game.buffer.stats()["drops"] == {}


def test_a_lease_is_completed_once(play: Play) -> None:
    game = play()
    leases = game.lease(2)
    assert game.put(leases[0], leases[0], leases[1]) == [PutReply()] * 3
    assert game.buffer.stats()["lengths"]["generated_rollouts"] == 4
    assert game.step() == [0, 1]
    assert game.put(leases[1]) == [PutReply()]
    assert game.buffer.stats()["num_buffered"] == 0


def test_a_refused_group_that_is_put_again_gets_the_same_answer(play: Play) -> None:
    game = play()
    lease = game.lease(1)[0]
    for _ in range(2):
        assert game.buffer.put(spoiled(lease), 0.0).refused is RefusalReason.BAD_REWARD
    assert game.buffer.stats()["refusals"] == {"bad_reward": 1}
    assert game.put(lease)[0].refused is RefusalReason.BAD_REWARD


def test_leases_whose_answer_got_lost_are_handed_out_again(play: Play) -> None:
    game = play(max_staleness=3)
    lost = game.ask(2).leases
    reply = game.ask(3, held=[])
    assert reply.leases[:2] == lost
    assert [lease.prompt.ordinal for lease in reply.leases] == [0, 1, 2]
    assert game.ask(1, held=[0, 1, 2]).leases[0].prompt.ordinal == 3


def test_a_worker_hears_of_leases_that_run_no_more(play: Play) -> None:
    game = play(max_staleness=3, lease_timeout_s=10.0)
    game.ask(2)
    game.now_s = 10.0
    reply = game.ask(2, held=[0, 1])
    assert reply.revoked == (0, 1)
    assert [(lease.prompt.ordinal, lease.attempt) for lease in reply.leases] == [(0, 1), (1, 1)]


def test_a_lease_belongs_to_its_worker(play: Play) -> None:
    game = play()
    leases = game.lease(2)
    game.lease(1, worker="w1")
    foreign = replace(scripted_group(leases[0], rewards=(0, 1)), worker="w1")
    assert game.buffer.put(foreign, 0.0).refused is RefusalReason.UNKNOWN_LEASE
    assert game.put(leases[0]) == [PutReply()]  # the lease was left alone


def test_a_replaced_workers_prompts_are_issued_again_and_its_pushes_refused(play: Play) -> None:
    game = play()
    old = game.lease(2)
    reply = game.ask(2, incarnation=1)
    assert [(lease.prompt.ordinal, lease.attempt) for lease in reply.leases] == [(0, 1), (1, 1)]
    assert game.put(old[0])[0].refused is RefusalReason.STALE_INCARNATION
    assert game.put(*reply.leases) == [PutReply(), PutReply()]
    assert game.buffer.stats()["reissues"] == {"worker_replaced": 2}


def test_a_replaced_worker_is_told_to_leave(play: Play) -> None:
    game = play(max_staleness=1)
    game.ask(1, incarnation=2)
    reply = game.ask(1, incarnation=1)
    assert reply.leases == ()
    assert reply.stop == Stop(reason="w0 1 was replaced or lost", replaced=True)


def test_other_workers_keep_their_leases(play: Play) -> None:
    game = play()
    mine = game.lease(1, worker="w1")
    game.lease(1)
    game.ask(1, incarnation=1)
    assert game.put(mine[0]) == [PutReply()]


def test_a_refused_group_is_tried_again_until_its_attempts_are_spent(play: Play) -> None:
    game = play(max_attempts=3)
    healthy = game.lease(2)[1]
    game.put(healthy)
    game.now_s = 700.0  # ordinal 0 expires once: this does not count
    for attempt in (1, 2, 3):
        (lease,) = game.ask(9).leases
        assert (lease.prompt.ordinal, lease.attempt) == (0, attempt)
        assert game.buffer.put(spoiled(lease), game.now_s).refused is RefusalReason.BAD_REWARD
    assert game.buffer.stats()["drops"] == {"failed": 1}
    assert game.buffer.stats()["refusals"] == {"bad_reward": 3}
    game.put(*game.lease(9).values())
    assert game.step() == [1, 2]


def test_failures_are_counted_by_reason_and_never_become_rewards(play: Play) -> None:
    game = play()
    lease = game.lease(1)[0]
    group = scripted_group(lease, rewards=(1.0,))
    timeout = RolloutFailure(reason=FailureReason.REWARD_TIMEOUT, detail="10 s")
    reply = game.buffer.put(replace(group, failures=(timeout,)), 0.0)
    assert reply.refused is RefusalReason.FAILED_ROLLOUT
    stats = game.buffer.stats()
    assert stats["failures"] == {"reward_timeout": 1}
    assert stats["reissues"] == {"failed": 1}
    assert stats["lengths"] == {}


def test_an_over_long_prompt_has_its_fate_at_the_lease(play: Play) -> None:
    game = play(too_long={0, 2})
    assert list(game.lease(9)) == [1, 3]
    assert game.buffer.stats()["drops"] == {"prompt_too_long": 2}
    game.buffer.state.ledger.check()


def test_tokens_of_a_version_that_is_published_but_not_reported_yet(play: Play) -> None:
    """Weights of v + 1 reach workers before trained(v + 1) reaches replay."""
    game = play(max_staleness=1)
    leases = game.lease(4)
    game.put(leases[0], leases[1])
    assert game.put(leases[2], version=1)[0].refused is RefusalReason.UNKNOWN_VERSION
    game.take()
    assert game.put(leases[3], version=1) == [PutReply()]
    assert game.put(*game.lease(1).values(), version=2)[0].refused is RefusalReason.UNKNOWN_VERSION


def test_tokens_from_before_the_lease_are_refused(play: Play) -> None:
    game = play()
    game.put(*game.lease(2).values())
    game.step()
    assert game.put(*game.lease(1).values(), version=0)[0].refused is RefusalReason.OLD_VERSION


def test_groups_of_one_value_are_dropped_and_refilled(play: Play) -> None:
    game = play(dynamic_sampling=True)
    leases = game.lease(2)
    assert game.put(leases[0], rewards=(1.0, 1.0)) == [PutReply()]
    game.put(leases[1])
    refill = game.lease(9)
    assert list(refill) == [2]
    game.put(refill[2])
    assert game.step() == [1, 2]
    assert game.buffer.stats()["drops"] == {"zero_variance": 1}


def test_groups_of_one_value_train_without_dynamic_sampling(play: Play) -> None:
    game = play()
    game.put(*game.lease(2).values(), rewards=(1.0, 1.0))
    assert game.step() == [0, 1]


def test_lengths_of_generated_and_trained_rollouts(play: Play) -> None:
    game = play(dynamic_sampling=True, max_staleness=1)
    leases = game.lease(4)
    game.put(leases[0], rewards=(1.0, 1.0), num_tokens=10)  # generated, not trained
    game.put(leases[1], num_tokens=3)
    game.put(leases[2], num_tokens=4)
    game.step()
    assert game.buffer.stats()["lengths"] == {
        "generated_rollouts": 6,
        "generated_tokens": 34,
        "generated_cut": 0,
        "trained_rollouts": 4,
        "trained_tokens": 14,
        "trained_cut": 0,
    }


def test_rewards_of_generated_and_trained_groups(play: Play) -> None:
    game = play(dynamic_sampling=True, max_staleness=1, max_uses=2)
    leases = game.lease(4)
    game.put(leases[0], rewards=(1.0, 1.0))  # generated, not trained
    game.put(leases[1], rewards=(0.0, 1.0))
    game.put(leases[2], rewards=(0.0, 0.5))
    game.step()
    expected = {
        "generated_groups": 3,
        "generated_sum": 1.75,
        "generated_equal": 1,
        "trained_groups": 2,
        "trained_sum": 0.75,
        "trained_equal": 0,
    }
    assert game.buffer.stats()["rewards"] == expected
    game.put(leases[3], rewards=(0.0, 0.5))
    assert game.step() == [1, 3]  # 1 for the second time
    assert game.buffer.stats()["rewards"]["trained_groups"] == 3
    snapshot = game.buffer.snapshot()
    resumed = play(max_staleness=1, snapshot=snapshot).buffer.stats()
    assert resumed["rewards"] == game.buffer.stats()["rewards"]


def test_stats_say_why_a_worker_gets_no_lease(play: Play) -> None:
    game = play(max_staleness=1, num_steps=2)

    def held_back() -> str | None:
        reason: str | None = game.buffer.stats()["held_back"]
        return reason

    assert held_back() is None
    leases = game.lease(9)
    assert held_back() == "staleness budget: 4 of 4 groups outstanding"
    game.put(*leases.values())
    game.step()
    assert held_back() == "steps left: 2 of 2 groups outstanding"
    game.step()
    assert held_back() == "all steps are done"


def test_prompt_tokens_are_compared(play: Play) -> None:
    game = play()
    group = scripted_group(game.lease(1)[0], rewards=(0, 1))
    other = replace(group, prompt_token_ids=np.array([1], np.int32))
    assert game.buffer.put(other, 0.0).refused is RefusalReason.WRONG_PROMPT
    assert list(game.lease(1)) == [0]  # the lease has ended, the prompt is issued again
