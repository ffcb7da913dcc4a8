from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import autoscale
from orchestrator.autoscale import Figures, Memory, Scaling, target
from slipstream.config.job import AutoscaleConfig
from tests.helpers.jobs import make_job

SETTINGS = AutoscaleConfig(
    min_workers=2, max_workers=16, tolerance=0.1, steady_s=60, cooldown_s=300
)
SHARE = st.floats(0, 1)


def figures(
    at_s: float = 0.0, *, queue: float = 0.0, waits: float = 0.0, held: float = 0.0
) -> Figures:
    return Figures(at_s=at_s, queue_share=queue, learner_wait_share=waits, held_back_share=held)


def pressed(direction: int) -> Memory:
    """The figures have asked for it long enough, and the last change is long ago."""
    return Memory(changed_at_s=-1e6, direction=direction, since_s=-1e6)


@pytest.mark.parametrize(
    ("num_now", "queue", "waits", "held", "expected"),
    [
        (4, 0.0, 0.0, 0.0, 4),  # just right
        (4, 0.0, 0.2, 0.0, 5),  # 4 / 0.8
        (4, 0.0, 0.3, 0.0, 6),  # 4 / 0.7 = 5.7
        (4, 0.0, 0.9, 0.0, 8),  # no more than twice as many
        (10, 0.0, 0.9, 0.0, 16),  # no more than there may be
        (4, 0.0, 0.09, 0.0, 4),  # 4.4 and less are within the tolerance
        (4, 0.6, 0.9, 0.0, 4),  # the groups are there: the learner waits for something else
        (8, 0.9, 0.0, 0.5, 5),  # 4, and the tolerance: 4.4
        (8, 0.9, 0.0, 0.15, 8),  # 7.48: seven would be too few
        (8, 0.9, 0.0, 0.25, 7),  # 6.6
        (8, 0.9, 0.0, 1.0, 5),  # no less than half, and the tolerance: 4.4
        (3, 0.9, 0.0, 1.0, 2),  # no fewer than there must be
        (4, 0.1, 0.5, 0.5, 4),  # they take turns
        (1, 0.0, 0.0, 0.0, 2),  # out of bounds
        (20, 0.0, 0.9, 0.0, 16),
    ],
)
def test_what_is_needed(
    num_now: int, queue: float, waits: float, held: float, expected: int
) -> None:
    given = figures(queue=queue, waits=waits, held=held)
    memory = pressed((expected > num_now) - (expected < num_now))
    assert target(num_now, given, SETTINGS, memory)[0] == expected


def test_a_need_must_last_and_changes_must_rest() -> None:
    memory = Memory(changed_at_s=0.0)
    sizes, num = {}, 4
    for at_s in range(0, 1000, 10):
        waits = 0.0 if at_s == 290 else 0.5  # for a moment it does not wait
        num, memory = target(num, figures(at_s, waits=waits), SETTINGS, memory)
        sizes.setdefault(num, at_s)
    # Rested at 300; steady since 300, again, at 360; then 300 s later.
    assert sizes == {4: 0, 8: 360, 16: 660}


@given(num=st.integers(0, 40), queue=SHARE, waits=SHARE, held=SHARE)
def test_constant_figures_never_flap_and_keep_the_bounds(
    num: int, queue: float, waits: float, held: float
) -> None:
    memory, sizes = Memory(changed_at_s=0.0), []
    for at_s in range(0, 10_000, 30):
        given = figures(at_s, queue=queue, waits=waits, held=held)
        num, memory = target(num, given, SETTINGS, memory)
        assert 2 <= num <= 16
        sizes.append(num)
    assert sizes in (sorted(sizes), sorted(sizes, reverse=True))
    assert len(set(sizes[-100:])) == 1


@given(num=st.integers(2, 16), demand=st.floats(0.5, 20))
def test_it_settles_where_the_learner_is_fed(num: int, demand: float) -> None:
    """`demand` workers would just do: fewer let the learner wait, more are held back."""
    memory, sizes = Memory(changed_at_s=0.0), []
    for at_s in range(0, 10_000, 30):
        waits, held = max(0.0, 1 - num / demand), max(0.0, 1 - demand / num)
        given = figures(at_s, queue=0.9 if held else 0.1, waits=waits, held=held)
        num, memory = target(num, given, SETTINGS, memory)
        sizes.append(num)
    assert len(set(sizes[-200:])) == 1
    assert len(set(sizes)) <= 5
    assert num >= min(16, demand / 1.1) - 1e-6
    assert num <= max(2, 1.1 * demand + 1)


def test_a_flicker_changes_nothing() -> None:
    memory, num = Memory(changed_at_s=0.0), 8
    for at_s in range(0, 10_000, 30):
        given = figures(at_s, waits=0.5) if at_s % 60 else figures(at_s, queue=0.9, held=0.6)
        num, memory = target(num, given, SETTINGS, memory)
        assert num == 8


# --- figures from events ----------------------------------------------------------


def step(wait_s: float, train_s: float) -> dict[str, Any]:
    return {"kind": "step", "role": "learner", "seconds": {"wait": wait_s, "train": train_s}}


def busy(wait_s: float, generate_s: float) -> dict[str, Any]:
    return {"kind": "busy", "role": "rollout", "seconds": {"wait": wait_s, "generate": generate_s}}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Figures]:
    """The figures that were decided on; each decision adds a worker."""
    found: list[Figures] = []

    def decide(num_now: int, given: Figures, _settings: Any, memory: Memory) -> tuple[int, Memory]:
        found.append(given)
        return num_now + 1, memory

    monkeypatch.setattr(autoscale, "target", decide)
    return found


def scaling() -> Scaling:
    settings = {"autoscale": {"min_workers": 1, "max_workers": 8}}
    job = make_job(rollout=settings, learner={"groups_per_batch": 4}, replay={"max_staleness": 3})
    return Scaling(job, now_s=100.0)


def test_shares_are_of_the_time_of_each_role(asked: list[Figures]) -> None:
    one = scaling()
    for event in (step(1.0, 3.0), step(2.0, 2.0), busy(1.0, 4.0), busy(0.0, 5.0)):
        one.hear(event)
    one.hear({"kind": "adopted", "role": "rollout"})
    assert one.target(2, {"num_buffered": 4}, 110.0) == 3
    # 3 s of 8 s; 1 s of 10 s; 4 groups of (3 + 1) x 4.
    assert asked == [figures(110.0, queue=0.25, waits=0.375, held=0.1)]


def test_nothing_is_decided_before_the_window_is_over_and_a_step_was_made(
    asked: list[Figures],
) -> None:
    one = scaling()
    one.hear(busy(0.0, 10.0))
    assert one.target(2, {}, 150.0) == 2, "no step"
    one.hear(step(1.0, 1.0))
    assert one.target(2, {}, 109.0) == 2, "9 s"
    assert asked == []
    assert one.target(2, {}, 150.0) == 3
    assert asked == [figures(150.0, waits=0.5)]


def test_each_window_begins_anew(asked: list[Figures]) -> None:
    one = scaling()
    one.hear(step(10.0, 0.0))
    one.hear(busy(10.0, 0.0))
    one.target(2, {}, 110.0)
    one.hear(step(1.0, 3.0))
    assert one.target(3, {}, 119.0) == 3, "9 s"
    assert one.target(3, {}, 120.0) == 4
    assert asked[1:] == [figures(120.0, waits=0.25)]
    assert one.target(4, {}, 200.0) == 4, "no step since"


def test_a_learner_that_waits_gets_more_workers() -> None:
    """Without a fake: half of its time means twice as many."""
    settings = {"min_workers": 1, "max_workers": 8, "steady_s": 20, "cooldown_s": 30}
    one = Scaling(make_job(rollout={"autoscale": settings}), now_s=0.0)
    sizes, num = {}, 2
    for now_s in range(10, 100, 10):
        one.hear(step(5.0, 5.0))
        one.hear(busy(0.0, 10.0))
        num = one.target(num, {"num_buffered": 0}, float(now_s))
        sizes.setdefault(num, now_s)
    # Steady for 20 s and rested for 30 s at 30; the need is seen again at 40, rested at 60.
    assert sizes == {2: 10, 4: 30, 8: 60}
