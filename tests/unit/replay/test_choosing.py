"""Preferences, deadlines and whole batches, with numbers worked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from replay.choosing import choose
from replay.facts import Leased
from replay.rules import Rules
from replay.scripted import scripted_group, scripted_lease
from replay.selection import Chosen, preferred
from replay.shelf import Buffered
from slipstream.config.job import Select
from slipstream.records import Wait


def leased(ordinal: int, version: int) -> Leased:
    return Leased(
        ordinal=ordinal,
        attempt=0,
        num_failed=0,
        lease_id=ordinal,
        worker="w0",
        incarnation=0,
        min_version=version,
    )


def entry(
    ordinal: int, version: int = 0, *, uses: int = 0, rewards: Sequence[float] = (0.0, 1.0)
) -> Buffered:
    return Buffered(scripted_group(scripted_lease(ordinal, version), rewards=rewards), uses)


def ordinals(choices: Sequence[Chosen]) -> list[int]:
    return [choice.entry.group.ordinal for choice in choices]


def ranked(
    candidates: Sequence[Buffered], policy: Select, *, version: int, seed: int = 0
) -> list[int]:
    """The ordinals of all candidates, best first."""
    return ordinals(
        preferred(candidates, len(candidates), rules(select=policy, seed=seed), version)
    )


def rules(**more: Any) -> Rules:
    settings = {"group_size": 2, "groups_per_batch": 2, "num_steps": 100, "max_staleness": 1}
    return Rules(**(settings | more))


def chosen(
    buffered: Sequence[Buffered],
    *,
    version: int,
    running: Sequence[Leased] = (),
    requeued: Sequence[int] = (),
    **more: Any,
) -> list[int] | str:
    """The ordinals of a batch of 2, or the reason to wait."""
    by_ordinal = {e.group.ordinal: e for e in buffered}
    choice = choose(by_ordinal, running, requeued, rules(**more), version)
    return choice.reason if isinstance(choice, Wait) else ordinals(choice)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("fifo", [2, 5, 7, 9]),
        ("freshest", [7, 9, 2, 5]),  # versions 4, 4, 3, 3
    ],
)
def test_preferences(policy: Select, expected: list[int]) -> None:
    candidates = [
        entry(9, 4, rewards=(0, 2)),
        entry(2, 3, rewards=(1, 1)),
        entry(7, 4, rewards=(0, 0)),
        entry(5, 3, rewards=(0, 1)),
    ]
    assert ranked(candidates, policy, version=4) == expected


def test_random_depends_on_seed_version_and_candidates_alone() -> None:
    candidates = [entry(o) for o in range(20)]
    one = ranked(candidates, "random", seed=1, version=3)
    assert one == ranked(candidates[::-1], "random", seed=1, version=3)
    assert sorted(one) == list(range(20)) != one
    assert one != ranked(candidates, "random", seed=2, version=3)
    assert one != ranked(candidates, "random", seed=1, version=4)


def test_a_batch_is_in_the_order_of_ordinals() -> None:
    assert chosen([entry(4), entry(1), entry(3)], version=0, select="freshest") == [1, 3]
    assert chosen([entry(4, 1), entry(1, 0), entry(3, 1)], version=1, select="freshest") == [1, 3]


def test_it_waits_for_a_full_batch() -> None:
    assert chosen([entry(0)], version=0) == "groups: 1 of 2 are here, 1 unused"


def test_it_waits_for_running_prompts_that_are_due() -> None:
    here = [entry(2, 1), entry(3, 1)]
    assert chosen(here, version=1, running=[leased(0, 0)]) == "1 running prompts, due by version 1"
    # Leased one version later, it may come into the next batch.
    assert chosen(here, version=1, running=[leased(0, 1)]) == [2, 3]


def test_what_is_due_goes_before_what_is_preferred() -> None:
    here = [entry(0, 0), entry(1, 1), entry(2, 1)]
    assert chosen(here, version=1, select="freshest") == [0, 1]


def test_the_next_step_is_thought_of_as_well() -> None:
    # S = 2, version 2: nothing is due now, but 0, 1, 2 are at 3, where 2 fit.
    here = [entry(0, 1), entry(1, 1), entry(2, 1), entry(3, 2), entry(4, 2)]
    assert chosen(here, version=2, max_staleness=2, select="freshest") == [0, 3]


def test_it_waits_where_too_many_running_prompts_share_a_deadline() -> None:
    running = [leased(o, 1) for o in range(3)]
    here = [entry(8, 2), entry(9, 2)]
    reply = chosen(here, version=2, max_staleness=2, running=running)
    assert reply == "3 running prompts, due by version 3"


def test_only_wait_knows_deadlines() -> None:
    here = [entry(0, 0), entry(1, 1), entry(2, 1)]
    running = [leased(9, 0)]
    for on_stale in ("requeue", "drop", "clip"):
        reply = chosen(here, version=1, running=running, select="freshest", on_stale=on_stale)
        assert reply == [1, 2]


def test_used_groups_fill_what_unused_ones_leave() -> None:
    used = [entry(0, 1, uses=1), entry(1, 1, uses=1)]
    assert chosen([*used, entry(2, 1)], version=1) == [0, 2]
    assert chosen([*used, entry(2, 1), entry(3, 1)], version=1) == [2, 3]
    assert chosen(used, version=1) == "groups: 2 of 2 are here, 0 unused"


def test_whole_batches_are_the_lowest_ordinals() -> None:
    here = [entry(0), entry(1), entry(2)]
    assert chosen(here, version=0, whole_batches=True) == [0, 1]
    missing = "the batch's prompts: 1 of 2 are here"
    late = [entry(1), entry(2)]
    assert chosen(late, version=0, whole_batches=True, running=[leased(0, 0)]) == missing
    assert chosen(late, version=0, whole_batches=True, requeued=[0]) == missing
    assert chosen(late, version=0, whole_batches=True) == [1, 2]  # 0 was dropped


def test_whole_batches_do_not_reuse() -> None:
    here = [entry(0, uses=1), entry(1), replace(entry(2))]
    assert chosen(here, version=0, whole_batches=True) == [1, 2]
