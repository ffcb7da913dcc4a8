"""Workers that are gone, prompts that killed engines, and who gets them next (B = 2, G = 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from replay.state import ReplayState
from replay.suspects import is_suspect, suspects_due
from slipstream.records import Batch, PutReply, RefusalReason, Stop
from tests.helpers.rollbacks import gone_back

Play = Callable[..., Any]


def got(game: Any, worker: str, num_groups: int = 9, **more: Any) -> list[int]:
    return [lease.prompt.ordinal for lease in game.ask(num_groups, worker, **more).leases]


def crash(game: Any, worker: str, incarnation: int = 0) -> None:
    game.buffer.lose(worker, incarnation, game.now_s, blame=True)


def restarted(game: Any) -> None:
    """As from a journal that has all facts."""
    state = ReplayState()
    for fact in game.facts:
        state.apply(fact)
    game.start(state)


def test_a_lost_workers_prompts_are_issued_again_and_its_calls_refused(play: Play) -> None:
    game = play(max_staleness=1)
    old, other = game.lease(2), game.lease(1, "w1")
    game.buffer.lose("w0", 0, game.now_s, blame=False)
    again = game.ask(9, "w1").leases
    assert [(lease.prompt.ordinal, lease.attempt) for lease in again] == [(0, 1), (1, 1), (3, 0)]
    for _ in range(2):
        assert game.put(old[0])[0].refused is RefusalReason.STALE_INCARNATION
        assert game.ask(1).stop == Stop(reason="w0 0 was replaced or lost", replaced=True)
        restarted(game)
    assert game.put(other[2]) == [PutReply()]
    assert game.ask(1, incarnation=1).stop is None
    stats = game.buffer.stats()
    assert (stats["reissues"], stats["num_suspects"]) == ({"worker_lost": 2}, 0)


def test_what_was_accepted_before_stays_and_is_refused_when_repeated(play: Play) -> None:
    game = play()
    lease = game.lease(1)[0]
    game.put(lease)
    crash(game, "w0")
    assert game.put(lease)[0].refused is RefusalReason.STALE_INCARNATION
    assert (game.buffer.stats()["num_buffered"], game.buffer.state.kills) == (1, {})


def test_a_second_loss_and_one_of_a_replaced_incarnation_change_nothing(play: Play) -> None:
    game = play(max_staleness=1)
    game.ask(1, incarnation=1)
    crash(game, "w0", incarnation=0)
    assert game.buffer.stats()["running_by_worker"] == {"w0": 1}
    crash(game, "w0", incarnation=1)
    num_facts = len(game.facts)
    crash(game, "w0", incarnation=1)
    crash(game, "w0", incarnation=0)
    assert len(game.facts) == num_facts
    assert game.buffer.state.kills == {0: 1}


def test_a_later_incarnation_keeps_its_leases_though_it_has_not_asked_since_a_restart(
    play: Play,
) -> None:
    game = play(max_staleness=1)
    (lease,) = game.ask(1, incarnation=1).leases
    restarted(game)
    crash(game, "w0", incarnation=0)
    assert game.put(lease) == [PutReply()]


def test_a_suspect_waits_for_a_worker_that_holds_nothing_and_runs_there_alone(play: Play) -> None:
    game = play(max_staleness=2, max_kills=2)  # 6 outstanding
    assert list(game.lease(2)) == [0, 1]
    busy = game.lease(2, "w1")
    game.lease(1, "w2")
    crash(game, "w0")
    assert game.buffer.stats()["num_suspects"] == 2
    assert got(game, "w1") == [], "reserved"
    assert got(game, "w2") == [5], "others go on, in the room that two suspects leave"
    assert game.buffer.stats()["held_back"] == "prompts that must run alone: 2 wait"
    game.put(busy[2])
    assert got(game, "w1") == [], "it still holds one"
    game.put(busy[3])
    assert got(game, "w1", held=[3]) == [], "it does not know that this one is over"
    assert got(game, "w1") == [0]
    assert got(game, "w1") == [], "alone"
    crash(game, "w1")
    assert game.buffer.stats()["drops"] == {"quarantined": 1}
    assert game.buffer.stats()["num_suspects"] == 1, "ordinal 1 was not there"
    assert got(game, "w0", incarnation=1) == [1]
    assert got(game, "w0", incarnation=1) == [], "alone, though no other suspect waits"
    assert got(game, "w2") == [6], "the sixth outstanding"


def test_an_accepted_group_proves_that_a_prompt_kills_nobody(play: Play) -> None:
    game = play(max_kills=2)
    game.lease(1)
    crash(game, "w0")
    (lease,) = game.ask(1, incarnation=1).leases
    game.put(lease)
    assert (game.buffer.state.kills, game.buffer.stats()["num_suspects"]) == ({}, 0)
    game.put(*game.ask(1, incarnation=1).leases)
    assert game.step() == [0, 1]


def test_a_refused_group_proves_nothing(play: Play) -> None:
    game = play(max_kills=2)
    game.lease(1)
    crash(game, "w0")
    game.put(*game.ask(1, incarnation=1).leases, rewards=(0.0, float("nan")))
    assert game.buffer.state.kills == {0: 1}


def test_a_prompt_without_guilt_survives_beside_one_that_kills(play: Play) -> None:
    """Ordinal 0 kills every engine. The three beside it died with it twice, and train."""
    game = play(max_staleness=1, max_kills=3)
    assert got(game, "w0", incarnation=0) == [0, 1, 2, 3]
    crash(game, "w0", 0)
    assert got(game, "w0", incarnation=1) == [0, 1, 2, 3]
    crash(game, "w0", 1)
    assert got(game, "w0", incarnation=2) == [0]
    crash(game, "w0", 2)
    for ordinal in (1, 2, 3):
        (lease,) = game.ask(9, incarnation=3).leases
        assert lease.prompt.ordinal == ordinal
        game.put(lease)
    assert game.step() == [1, 2]
    assert game.buffer.stats()["drops"] == {"quarantined": 1}


def test_with_one_kill_allowed_all_that_ran_there_is_dropped(play: Play) -> None:
    game = play(max_kills=1)
    game.lease(2)
    crash(game, "w0")
    assert game.buffer.stats()["drops"] == {"quarantined": 2}
    assert got(game, "w0", incarnation=1) == [2, 3]


def test_a_loss_without_blame_never_quarantines(play: Play) -> None:
    game = play(max_kills=1)
    for incarnation in range(4):
        assert got(game, "w0", incarnation=incarnation) == [0, 1]
        game.buffer.lose("w0", incarnation, game.now_s, blame=False)
    assert (game.buffer.stats()["drops"], game.buffer.state.kills) == ({}, {})


def reserved(play: Play) -> Any:
    """w1 runs ordinals 1 and 2 and is reserved for 0; w2 runs 3 of at most 8."""
    game = play(max_staleness=3, max_kills=2)
    game.lease(1)
    game.lease(2, "w1")
    game.lease(1, "w2")
    crash(game, "w0")
    assert got(game, "w1", 1) == []
    assert got(game, "w2", 1) == [4]
    return game


def test_another_worker_is_reserved_once_the_first_is_silent(play: Play) -> None:
    game = reserved(play)
    game.now_s = 9.0
    assert got(game, "w2", 1) == [5]
    game.now_s = 10.0
    assert got(game, "w2", 1) == []
    assert got(game, "w1", 1) == [6]


@pytest.mark.parametrize("how", ["lost", "asks for none"])
def test_a_reserved_worker_that_takes_no_more_is_so_no_more(play: Play, how: str) -> None:
    game = reserved(play)
    if how == "lost":
        game.buffer.lose("w1", 0, game.now_s, blame=False)
    else:
        assert got(game, "w1", 0) == []
    assert got(game, "w2", 1) == []


def test_a_worker_that_holds_nothing_does_not_wait_for_the_reserved_one(play: Play) -> None:
    game = reserved(play)
    assert got(game, "w3", 9) == [0]
    assert got(game, "w1", 1) == [5], "no suspect waits any more"


def test_shared_devices_with_one_worker_and_a_full_budget_go_on(play: Play) -> None:
    game = play(max_kills=2, num_sharing_workers=1, whole_batches=True)
    assert got(game, "w0") == [0, 1]
    crash(game, "w0")
    for ordinal in (0, 1):
        reply = game.ask(9, incarnation=1)
        assert [lease.prompt.ordinal for lease in reply.leases] == [ordinal]
        assert not game.ask(9, incarnation=1).yield_device
        game.put(*reply.leases)
    assert game.ask(9, incarnation=1).yield_device
    assert game.ask(9, incarnation=1, yielded=True).leases == ()
    assert game.step() == [0, 1]


def test_shared_devices_wait_for_whoever_comes_after_a_lost_worker(play: Play) -> None:
    game = play(num_sharing_workers=1)
    game.put(*game.lease(2).values())
    game.ask(1, yielded=True)
    game.buffer.lose("w0", 0, game.now_s, blame=False)
    assert game.take().reason == "0 of 1 rollout workers have come"
    game.ask(1, incarnation=1, yielded=True)
    assert isinstance(game.take(), Batch)


def test_a_whole_batch_gets_its_suspect_though_others_would_fill_the_budget(play: Play) -> None:
    game = play(max_staleness=1, max_kills=2, whole_batches=True)
    game.lease(1)
    others = game.ask(9, "w1").leases
    assert [lease.prompt.ordinal for lease in others] == [1, 2, 3]
    crash(game, "w0")
    game.put(others[0])
    assert got(game, "w1") == []
    assert got(game, "w2") == [0], "not ordinal 4, which would be the fourth outstanding"


def test_suspects_come_in_their_turn() -> None:
    assert [is_suspect(1, max_kills) for max_kills in (1, 2, 3)] == [True, True, False]
    assert not is_suspect(0, 1)
    assert suspects_due({4, 2, 9}, {9: 1, 4: 1}, 2, room=2) == [4]
    assert suspects_due({4, 2, 9}, {9: 1, 4: 1}, 2, room=3) == [4, 9]
    assert suspects_due({4, 2, 9}, {}, 2, room=3) == []


def test_kills_are_known_after_the_run_went_back(play: Play) -> None:
    """0 was quarantined since the commit, 1 died once, 2 died before it and was accepted since."""
    game = play(max_staleness=1, max_kills=2)
    assert got(game, "w2", 3) == [0, 1, 2]
    crash(game, "w2")
    commit = game.buffer.snapshot()
    assert commit.state["kills"] == [[0, 1], [1, 1], [2, 1]]
    assert got(game, "w0") == [0]
    crash(game, "w0")
    assert got(game, "w1") == [1]
    (lease,) = game.ask(1, "w3").leases
    game.put(lease)
    assert lease.prompt.ordinal == 2
    since = [fact.group for fact in game.facts if hasattr(fact, "group")]
    state = gone_back(game.buffer.state, commit, game.rules, timeline=1, since=since)
    assert state.kills == {0: 2, 1: 1}
    assert set(state.lost) == {"w0", "w2"}, "until another launch counts them anew"
    state.lost.clear()
    game.start(state)
    assert got(game, "w0") == [1], "alone"
    assert game.buffer.stats()["drops"] == {"quarantined": 1}, "not once more"


def test_stats_say_who_runs_what_for_how_long(play: Play) -> None:
    game = play(max_staleness=1)
    assert game.buffer.oldest_lease_s(5.0) is None
    game.now_s = 2.0
    game.lease(1)
    game.now_s = 4.0
    game.lease(2, "w1")
    assert game.buffer.stats()["running_by_worker"] == {"w0": 1, "w1": 2}
    assert game.buffer.oldest_lease_s(9.0) == 7.0
