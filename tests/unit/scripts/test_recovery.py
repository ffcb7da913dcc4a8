from __future__ import annotations

from typing import Any

import pytest
from chaos.recovery import recoveries
from chaos.run import Strike

NOBODY = (None, None)


def strike(role: str, at_s: float, *, how: Any = "kill", pid: int = 1) -> Strike:
    return Strike(role=role, how=how, pid=pid, at_s=at_s, num_steps=0)


def event(at_s: float, kind: str, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "index": index, "time_s": at_s, **fields}


def started(at_s: float, index: int, incarnation: int, pid: int) -> dict[str, Any]:
    return event(at_s, "worker_started", index, incarnation=incarnation, pid=pid)


def died(at_s: float, index: int, incarnation: int) -> dict[str, Any]:
    return event(at_s, "worker_died", index, incarnation=incarnation)


def found(strikes: list[Strike], *events: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Seconds until noticed and mended, of each strike."""
    return [(one["noticed_s"], one["mended_s"]) for one in recoveries(strikes, events)]


STARTS = (started(1.0, 0, 0, pid=10), started(2.0, 1, 0, pid=11))


def test_a_killed_worker_is_mended_by_its_next_incarnation() -> None:
    times = found(
        [strike("rollout", 20.0, pid=11)],
        *STARTS,
        event(20.5, "adopted", 0),  # another worker
        event(21.0, "adopted", 1),  # told before it died
        died(22.0, 1, 0),
        event(23.0, "adopted", 0),
        event(23.5, "step"),
        started(25.0, 1, 1, pid=12),
        event(26.5, "adopted", 1),
        event(27.0, "adopted", 1),
    )
    assert times == [(2.0, 6.5)]


def test_a_worker_that_was_starved_for_a_moment_needs_nothing() -> None:
    """Though another one is killed beside it."""
    strikes = [strike("rollout", 20.0, how="starve", pid=10), strike("rollout", 21.0, pid=11)]
    mended = (died(22.0, 1, 0), started(25.0, 1, 1, pid=12), event(26.0, "adopted", 1))
    assert found(strikes, *STARTS, *mended) == [NOBODY, (1.0, 5.0)]


def test_a_worker_that_was_starved_and_later_killed() -> None:
    """What is noticed then is of the kill."""
    strikes = [strike("rollout", 20.0, how="starve", pid=11), strike("rollout", 60.0, pid=11)]
    mended = (died(61.0, 1, 0), started(65.0, 1, 1, pid=12), event(66.0, "adopted", 1))
    assert found(strikes, *STARTS, *mended) == [NOBODY, (1.0, 6.0)]


def test_each_incarnation_is_told_apart() -> None:
    strikes = [strike("rollout", 20.0, pid=11), strike("rollout", 30.0, pid=12)]
    events = (
        died(21.0, 1, 0),
        started(22.0, 1, 1, pid=12),
        event(23.0, "adopted", 1),
        died(32.0, 1, 1),
        started(33.0, 1, 2, pid=13),
        event(34.0, "adopted", 1),
    )
    assert found(strikes, *STARTS, *events) == [(1.0, 3.0), (2.0, 4.0)]


def test_what_a_later_incarnation_dies_of_is_not_counted() -> None:
    """The one that was struck has left in order."""
    strikes = [strike("rollout", 20.0, how="starve", pid=11), strike("rollout", 60.0, pid=12)]
    events = (started(30.0, 1, 1, pid=12), died(61.0, 1, 1))
    assert found(strikes, *STARTS, *events) == [NOBODY, (1.0, None)]


def test_a_worker_that_had_not_started() -> None:
    assert found([strike("rollout", 20.0, pid=99)], *STARTS, died(21.0, 1, 0)) == [NOBODY]


def test_the_job_ended_before_the_worker_was_back() -> None:
    assert found([strike("rollout", 20.0, pid=11)], *STARTS, died(21.0, 1, 0)) == [(1.0, None)]


def test_the_clock_of_a_worker_may_be_a_little_behind() -> None:
    events = (died(21.0, 1, 0), started(25.0, 1, 1, pid=12), event(24.5, "adopted", 1))
    by_time = sorted((*STARTS, *events), key=lambda one: one["time_s"])
    assert found([strike("rollout", 20.0, pid=11)], *by_time) == [(1.0, 4.5)]


def test_the_learner_is_mended_with_its_first_step_after_it_went_back() -> None:
    events = (event(20.5, "step"), event(23.0, "went_back"), event(31.0, "step"))
    assert found([strike("learner", 20.0)], *events) == [(3.0, 11.0)]


def test_a_learner_that_was_starved_and_later_killed() -> None:
    strikes = [strike("learner", 20.0, how="starve"), strike("learner", 40.0, pid=2)]
    events = (event(30.0, "step"), event(41.0, "went_back"), event(45.0, "step"))
    assert found(strikes, *events) == [NOBODY, (1.0, 5.0)]


@pytest.mark.parametrize("role", ["replay", "weights", "driver"])
def test_others_are_mended_with_the_next_step(role: str) -> None:
    assert found([strike(role, 20.0)], event(19.0, "step"), event(24.0, "step")) == [(None, 4.0)]
    assert found([strike(role, 20.0)], event(19.0, "step")) == [NOBODY]


def test_who_and_how_is_told() -> None:
    [one] = recoveries([strike("replay", 1.0, how="stop")], [])
    assert one == {"role": "replay", "how": "stop", "noticed_s": None, "mended_s": None}
