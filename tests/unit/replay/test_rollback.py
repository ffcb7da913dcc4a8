"""Going back to a commit, by hand (B = 2, G = 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from slipstream.records import Group, ReplaySnapshot
from tests.helpers.rollbacks import gone_back

Play = Callable[..., Any]


def go(game: Any, snapshot: ReplaySnapshot, since: Sequence[Group] = ()) -> None:
    """The game goes on from the commit."""
    now = game.buffer.state
    state = gone_back(now, snapshot, game.rules, timeline=now.timeline + 1, since=since)
    game.start(state)


def accepted(game: Any) -> list[Group]:
    return [fact.group for fact in game.facts if hasattr(fact, "group")]


def test_what_trained_since_the_commit_is_pending_again(play: Play) -> None:
    game = play(max_staleness=1)
    game.put(*game.lease(2).values())
    assert game.step() == [0, 1]
    commit = game.buffer.snapshot()
    game.put(*game.lease(2).values())
    assert game.step() == [2, 3]  # sampled at version 1, which is the commit's
    game.put(*game.lease(2).values())  # sampled at version 2, which is gone
    go(game, commit, accepted(game))
    stats = game.buffer.stats()
    assert (stats["version"], stats["timeline"], stats["num_trained"]) == (1, 1, 2)
    assert sorted(game.buffer.state.shelf.entries) == [2, 3]
    assert game.buffer.state.requeued == {4, 5}
    assert game.step() == [2, 3]
    assert [lease.prompt.ordinal for lease in game.ask(9).leases][:2] == [4, 5]
    assert game.buffer.stats()["lengths"]["generated_rollouts"] == 8


def test_prompts_start_with_the_attempts_of_the_commit(play: Play) -> None:
    game = play(max_staleness=2, max_attempts=3)
    commit = game.buffer.snapshot()
    lease = game.lease(1)[0]
    game.put(lease, rewards=(0.0, float("nan")))
    go(game, commit)
    again = game.ask(1).leases[0]
    assert (again.prompt.ordinal, again.num_failed) == (0, 0)


def test_drops_since_the_commit_are_undone(play: Play) -> None:
    game = play(dynamic_sampling=True, too_long={1})
    commit = game.buffer.snapshot()
    game.put(*game.lease(1).values(), rewards=(1.0, 1.0))
    game.lease(1)
    assert game.buffer.stats()["drops"] == {"zero_variance": 1, "prompt_too_long": 1}
    go(game, commit, accepted(game))
    assert game.buffer.stats()["drops"] == {}
    assert [lease.prompt.ordinal for lease in game.ask(9).leases] == [0, 2]


def test_old_leases_and_learners_are_of_another_timeline(play: Play) -> None:
    game = play(max_staleness=1)
    leases = game.lease(2)
    commit = game.buffer.snapshot()
    go(game, commit)
    assert game.put(leases[0])[0].refused is not None
    reply = game.ask(9, held=[0, 1])
    assert reply.revoked == (0, 1)
    with pytest.raises(ValueError, match="timeline"):
        game.buffer.take(0, 0.0, timeline=0)
    with pytest.raises(ValueError, match="timeline"):
        game.buffer.trained(1, timeline=0)


def test_reused_groups_have_the_uses_of_the_commit(play: Play) -> None:
    game = play(max_uses=2, max_staleness=3)
    game.put(*game.lease(3).values())
    assert game.step() == [0, 1]
    commit = game.buffer.snapshot()
    game.put(*game.lease(1).values())
    first = game.step()
    after = {o: entry.uses for o, entry in game.buffer.state.shelf.entries.items()}
    go(game, commit, accepted(game))
    assert game.step() == first
    assert {o: entry.uses for o, entry in game.buffer.state.shelf.entries.items()} == after


@pytest.mark.parametrize(("on_stale", "kept"), [("drop", []), ("clip", [2, 3])])
def test_a_tighter_bound_issues_again_what_is_now_too_old(
    play: Play, on_stale: str, kept: list[int]
) -> None:
    game = play(max_staleness=1)
    game.put(*game.lease(4).values())
    game.step()
    tighter = play(max_staleness=0, on_stale=on_stale, snapshot=game.buffer.snapshot())
    assert sorted(tighter.buffer.state.shelf.entries) == kept


@pytest.mark.parametrize("tighter", [{"max_staleness": 1}, {"groups_per_batch": 1}])
def test_under_tighter_rules_no_more_comes_along_than_can_train_in_time(
    play: Play, tighter: dict[str, int]
) -> None:
    game = play(max_staleness=4)
    game.put(*game.lease(10).values())
    game.step()
    again = play(**({"max_staleness": 4} | tighter), snapshot=game.buffer.snapshot())
    for _ in range(6):
        again.put(*again.lease(9).values())
        again.step()
    assert "stale" not in again.buffer.stats()["reissues"]


def test_the_stop_of_before_is_over(play: Play) -> None:
    game = play()
    commit = game.buffer.snapshot()
    game.buffer.stop("interrupted")
    assert game.ask(1).stop is not None
    go(game, commit)
    assert game.ask(1).stop is None
