"""Replay and the weight board: their return is noticed, and silence ends them."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest
from ray.exceptions import RayError, RayTaskError

from orchestrator import services
from orchestrator.services import Service
from slipstream.errors import RoleFailed


class Clock:
    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class FakeRay:
    """And the actor: it answers with its process, with an error, or (None) not at all.

    `after_kill`: how it answers then.
    """

    def __init__(self, clock: Clock) -> None:
        self.answer: int | RayError | None = 1
        self.after_kill: int | None = None
        self.num_asked = 0
        self.killed: list[bool] = []
        self.stats = self  # actor.stats.remote()
        self.is_there = True  # its process
        self._clock = clock

    def remote(self) -> str:
        self.num_asked += 1
        return "call"

    def wait(self, calls: list[str], *, timeout: float) -> tuple[list[str], list[str]]:
        if self.answer is None:
            self._clock.sleep(timeout)
        return ([], calls) if self.answer is None else (calls, [])

    def get(self, call: str) -> dict[str, Any]:
        if isinstance(self.answer, RayError):
            raise self.answer
        return {"pid": self.answer, "num_buffered": 3}

    def kill(self, actor: Any, *, no_restart: bool) -> None:
        self.killed.append(no_restart)
        self.answer = self.after_kill


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(services, "time", clock)
    return clock


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> FakeRay:
    ray = FakeRay(clock)
    monkeypatch.setattr(services, "ray", ray)
    monkeypatch.setattr(services, "_is_there", lambda pid: ray.is_there)
    return ray


def look(service: Service) -> None:
    """As at a tick."""
    service.ask()
    service.hear()


def test_the_first_answer_and_the_same_process_are_no_event(clock: Clock, ray: FakeRay) -> None:
    service = Service("replay", ray, 60.0)
    for _ in range(3):
        look(service)
    assert service.stats == {"num_buffered": 3}
    assert service.take_events() == []


def test_another_process_is_told_once(clock: Clock, ray: FakeRay) -> None:
    service = Service("replay", ray, 60.0)
    look(service)
    ray.answer = RayError()
    look(service)
    assert service.stats == {"num_buffered": 3}, "the newest that it has told"
    ray.answer = 2
    look(service)
    look(service)
    (event,) = service.take_events()
    assert (event["kind"], event["role"]) == ("restarted", "replay")
    assert event["cause"].startswith("replay died:")
    assert service.take_events() == []


def test_silence_ends_it_once_until_it_answers_again(clock: Clock, ray: FakeRay) -> None:
    service = Service("weights", ray, 60.0)
    look(service)
    ray.answer = None
    look(service)
    clock.now_s = 60.0
    look(service)
    assert ray.killed == []
    clock.now_s = 61.0
    look(service)
    assert ray.killed == [False], "Ray starts it again"
    (event,) = service.take_events()
    assert event["cause"] == "weights does not answer: silent for 61 s, killed"
    clock.now_s = 1e6
    look(service)
    assert ray.killed == [False], "it may be starting"
    ray.answer = 2
    look(service)
    assert service.take_events() == [], "told when it was killed"
    ray.answer = None
    look(service)
    clock.now_s += 61.0
    look(service)
    assert ray.killed == [False, False]


def test_one_that_is_silent_from_the_start_is_killed_too(clock: Clock, ray: FakeRay) -> None:
    service = Service("weights", ray, 60.0)
    ray.answer = None
    look(service)
    clock.now_s = 61.0
    look(service)
    assert ray.killed == [False]
    ray.answer = 1
    look(service)
    ray.answer = 2
    look(service)
    causes = [event["cause"] for event in service.take_events()]
    assert causes == [
        "weights does not answer: silent for 61 s, killed",
        "weights died: it is process 2 now",
    ]


def test_one_that_would_not_come_back_is_left_alone(clock: Clock, ray: FakeRay) -> None:
    service = Service("replay", ray, None)
    ray.answer = None
    look(service)
    clock.now_s = 1e6
    look(service)
    assert ray.killed == []
    assert ray.num_asked == 1


def test_one_that_died_and_is_starting_is_left_alone(clock: Clock, ray: FakeRay) -> None:
    service = Service("replay", ray, 60.0)
    look(service)
    ray.answer, ray.is_there = None, False  # its successor reads data and journal
    look(service)
    clock.now_s = 1e6
    look(service)
    assert ray.killed == []
    ray.answer, ray.is_there = 2, True
    look(service)
    (event,) = service.take_events()
    assert event["cause"].startswith("replay died:")
    ray.answer = None
    look(service)
    clock.now_s += 61.0
    look(service)
    assert ray.killed == [False], "it is watched again"


def test_one_that_answers_as_it_is_killed_is_told_once(clock: Clock, ray: FakeRay) -> None:
    service = Service("weights", ray, 60.0)
    look(service)
    ray.answer = None
    look(service)
    ray.after_kill = 1  # the old process: the kill takes a moment
    clock.now_s = 61.0
    look(service)
    look(service)
    ray.answer = RayError()
    look(service)
    ray.answer = 2
    look(service)
    assert len(service.take_events()) == 1


def test_one_that_fails_has_answered(clock: Clock, ray: FakeRay) -> None:
    service = Service("replay", ray, 60.0)
    ray.answer = RayTaskError("stats", "a full disk", OSError())
    service.await_answer(10.0)
    assert clock.now_s == 0.0


def test_who_waits_for_one_that_hangs_has_it_killed(clock: Clock, ray: FakeRay) -> None:
    service = Service("replay", ray, 60.0)
    look(service)
    service.ask()
    ray.answer, ray.after_kill = None, 2
    clock.now_s = 50.0  # silence that counts
    service.await_answer(100.0)
    assert ray.killed == [False]
    assert 60.0 < clock.now_s < 62.0
    ray.answer = ray.after_kill = None
    with pytest.raises(RoleFailed, match="replay did not answer within 100 s"):
        service.await_answer(100.0)
    Service("replay", ray, None).await_answer(100.0)  # what is asked of it next says so


def test_an_answer_that_lies_ready_says_nothing_of_now(clock: Clock, ray: FakeRay) -> None:
    service = Service("replay", ray, 60.0)
    service.ask()
    service.await_answer(100.0)
    assert ray.num_asked == 2


def test_whether_a_process_is_there() -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    assert services._is_there(os.getpid())
    assert not services._is_there(ended.pid)
