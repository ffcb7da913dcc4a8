from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.autoscale import Figures, Memory, target
from slipstream.config.job import AutoscaleConfig

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
