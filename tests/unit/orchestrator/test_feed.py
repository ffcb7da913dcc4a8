"""Whatever a tracker does, the run goes on: scripted trackers that fail, hang and are slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.trackers.curves import Figures
from orchestrator.trackers.feed import Feed, end_all
from orchestrator.trackers.tracker import Tracker
from slipstream.telemetry import EventLog

END_S = 0.3  # for trackers that never finish
LONG_S = 10.0


def figures(version: int) -> Figures:
    return Figures(version=version, at_s=0.0, values={"train/loss": 0.5})


class Scripted:
    """Keeps what it is told; fails, or waits, where it is told to."""

    def __init__(self, fail_at: str = "", wait_at: str = "") -> None:
        self.go_on = threading.Event()
        self.heard: list[int] = []
        self.is_finished = False
        self._fail_at, self._wait_at = fail_at, wait_at
        self._pass("open")

    def log(self, figures: Figures) -> None:
        self._pass("log")
        self.heard.append(figures.version)

    def finish(self) -> None:
        self._pass("finish")
        self.is_finished = True

    def _pass(self, place: str) -> None:
        if place == self._wait_at:
            self.go_on.wait(LONG_S)
        if place == self._fail_at:
            raise ConnectionError(f"no way at {place}")


class Fed:
    """A feed, its tracker once it is open, and what it has told."""

    def __init__(self, make: Callable[[], Scripted], **settings: Any) -> None:
        self.events = EventLog("driver", 0)
        self.opened: list[Scripted] = []
        self.feed = Feed("scripted", lambda: self._open(make), self.events, **settings)

    def _open(self, make: Callable[[], Scripted]) -> Tracker:
        self.opened.append(make())
        return self.opened[-1]

    def messages(self) -> list[str]:
        events = self.events.drain()
        assert all(e["kind"] == "tracker_failed" for e in events)
        assert all(e["tracker"] == "scripted" for e in events)
        return [e["message"] for e in events]


def test_all_figures_arrive_in_order_before_the_end() -> None:
    fed = Fed(Scripted)
    for version in range(50):
        fed.feed.log(figures(version))
    end_all([fed.feed])
    assert fed.opened[0].heard == list(range(50))
    assert fed.opened[0].is_finished
    assert fed.messages() == []


@pytest.mark.parametrize("place", ["open", "log", "finish"])
def test_a_tracker_that_fails_is_told_once_and_used_no_more(place: str) -> None:
    fed = Fed(lambda: Scripted(fail_at=place))
    for version in range(20):
        fed.feed.log(figures(version))
        time.sleep(0.001)
    end_all([fed.feed], END_S)
    assert fed.messages() == [f"ConnectionError: no way at {place}"]


def test_a_missing_package_and_an_exit_are_failures_too() -> None:
    def missing() -> Scripted:
        raise ModuleNotFoundError("No module named 'wandb'")

    def leaves() -> Scripted:
        raise SystemExit(3)

    for make, message in ((missing, "ModuleNotFoundError: No module"), (leaves, "SystemExit: 3")):
        fed = Fed(make)
        end_all([fed.feed], END_S)
        assert fed.messages()[0].startswith(message)


@pytest.mark.parametrize("place", ["open", "log"])
def test_a_tracker_that_hangs_keeps_nobody_waiting(place: str) -> None:
    made: list[Scripted] = []

    class Hanging(Scripted):
        def _pass(self, at: str) -> None:
            made.append(self)
            super()._pass(at)

    fed = Fed(lambda: Hanging(wait_at=place), max_waiting=10)
    start_s = time.monotonic()
    for version in range(1000):
        fed.feed.log(figures(version))
    assert time.monotonic() - start_s < 1.0
    end_all([fed.feed], END_S)
    assert time.monotonic() - start_s < 1.0 + END_S
    slow, late = fed.messages()
    assert "too slow" in slow
    assert "did not finish" in late
    made[0].go_on.set()


def test_what_a_slow_tracker_cannot_take_is_left_out_and_it_ends_in_order() -> None:
    class Slow(Scripted):
        def log(self, figures: Figures) -> None:
            time.sleep(0.005)
            super().log(figures)

    fed = Fed(Slow, max_waiting=4)
    for version in range(40):
        fed.feed.log(figures(version))
    end_all([fed.feed], LONG_S)
    heard = fed.opened[0].heard
    assert heard == sorted(heard)
    assert 3 <= len(heard) < 40
    assert fed.opened[0].is_finished
    assert fed.messages() == ["it is too slow; what it does not take in time is left out"]


def test_a_secret_in_a_failure_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "correct-horse-battery")

    def refused() -> Scripted:
        raise PermissionError("the key correct-horse-battery is wrong")

    fed = Fed(refused)
    end_all([fed.feed], END_S)
    assert fed.messages() == ["PermissionError: the key <redacted> is wrong"]


def test_two_that_hang_share_the_time_to_finish() -> None:
    feds = [Fed(lambda: Scripted(wait_at="finish")) for _ in range(3)]
    start_s = time.monotonic()
    end_all([fed.feed for fed in feds], END_S)
    assert time.monotonic() - start_s < 2 * END_S
    for fed in feds:
        assert len(fed.messages()) == 1
        fed.opened[0].go_on.set()
