"""How phases become spans, by a clock of the test's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from slipstream import telemetry
from slipstream.telemetry import Busy

EPOCH_S = 1000.0


class Clock:
    """Moves only as told, in milliseconds."""

    def __init__(self) -> None:
        self.ms = 0

    def phases(self, busy: Busy, *phases: tuple[str, int]) -> None:
        """Each phase in turn, for so many milliseconds; "" is a time in none."""
        for name, ms in phases:
            if name:
                with busy.phase(name):
                    self.ms += ms
            else:
                self.ms += ms


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    times = SimpleNamespace(
        perf_counter=lambda: clock.ms / 1000, time=lambda: EPOCH_S + clock.ms / 1000
    )
    monkeypatch.setattr(telemetry, "time", times)
    return clock


def test_phases_are_spans_since_the_epoch(clock: Clock) -> None:
    busy = Busy()
    clock.phases(busy, ("wait", 300), ("", 100), ("train", 500))
    assert busy.drain_spans() == [["wait", 1000.0, 0.3], ["train", 1000.4, 0.5]]
    assert busy.drain() == {"wait": 0.3, "train": 0.5}
    assert busy.drain_spans() == []


def test_steps_close_together_are_one_span(clock: Clock) -> None:
    busy = Busy()
    clock.phases(busy, *[("generate", 10), ("score", 1), ("", 1), ("hand_over", 2)] * 10)
    clock.phases(busy, ("wait", 100), ("generate", 10))
    assert busy.drain_spans() == [
        ["generate", 1000.0, 0.136],  # and the steps' own short phases between them
        ["hand_over", 1000.136, 0.004],  # longer than the scoring before it
        ["wait", 1000.14, 0.1],
        ["generate", 1000.24, 0.01],
    ]
    seconds = busy.drain()
    assert seconds["generate"] == pytest.approx(0.11)
    assert seconds["score"] == pytest.approx(0.01)


def test_a_short_phase_does_not_swallow_a_longer_one(clock: Clock) -> None:
    busy = Busy()
    clock.phases(busy, ("score", 1), ("generate", 15), ("score", 1), ("generate", 15))
    assert busy.drain_spans() == [["score", 1000.0, 0.001], ["generate", 1000.001, 0.031]]


def test_a_long_pause_parts_two_spans(clock: Clock) -> None:
    busy = Busy()
    clock.phases(busy, ("generate", 100), ("", 21), ("generate", 100), ("", 20), ("generate", 100))
    assert busy.drain_spans() == [["generate", 1000.0, 0.1], ["generate", 1000.121, 0.22]]


@pytest.mark.parametrize("ms", [1, 3, 6])
def test_a_second_of_quick_changes_stays_small(clock: Clock, ms: int) -> None:
    """Two neighbours last `SHORT_S` at least."""
    busy = Busy()
    names = ("generate", "score", "hand_over", "wait", "adopt", "sleep", "probe")
    while clock.ms < 1000:
        clock.phases(busy, *[(name, ms) for name in names])
    spans = busy.drain_spans()
    assert len(spans) <= 2 / telemetry.SHORT_S + 10
    ends = [float(start_s) + float(seconds) for _, start_s, seconds in spans]
    starts = [float(start_s) for _, start_s, _ in spans]
    assert all(end <= start + 1e-3 for end, start in zip(ends, starts[1:], strict=False))
