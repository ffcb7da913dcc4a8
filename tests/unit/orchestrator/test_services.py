"""Replay and the weight board: their return is noticed, and silence ends them."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import RayError

from orchestrator import services
from orchestrator.services import Service


class Clock:
    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


class FakeRay:
    """And the actor: it answers with its process, with an error, or (None) not at all."""

    def __init__(self) -> None:
        self.answer: int | RayError | None = 1
        self.num_asked = 0
        self.killed: list[bool] = []
        self.stats = self  # actor.stats.remote()

    def remote(self) -> str:
        self.num_asked += 1
        return "call"

    def wait(self, calls: list[str], *, timeout: float) -> tuple[list[str], list[str]]:
        return ([], calls) if self.answer is None else (calls, [])

    def get(self, call: str) -> dict[str, Any]:
        if isinstance(self.answer, RayError):
            raise self.answer
        return {"pid": self.answer, "num_buffered": 3}

    def kill(self, actor: Any, *, no_restart: bool) -> None:
        self.killed.append(no_restart)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(services, "time", clock)
    return clock


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay()
    monkeypatch.setattr(services, "ray", ray)
    return ray


def test_the_first_answer_and_the_same_process_are_no_event(clock: Clock, ray: FakeRay) -> None:
    service = Service("replay", ray, 60.0)
    for _ in range(3):
        service.look()
    assert service.stats == {"num_buffered": 3}
    assert service.take_events() == []


def test_another_process_is_told_once(clock: Clock, ray: FakeRay) -> None:
    service = Service("replay", ray, 60.0)
    service.look()
    ray.answer = RayError()
    service.look()
    assert service.stats == {"num_buffered": 3}, "the newest that it has told"
    ray.answer = 2
    service.look()
    service.look()
    (event,) = service.take_events()
    assert (event["kind"], event["role"]) == ("restarted", "replay")
    assert event["cause"].startswith("replay died:")
    assert service.take_events() == []


def test_silence_ends_it_once_until_it_answers_again(clock: Clock, ray: FakeRay) -> None:
    service = Service("weights", ray, 60.0)
    service.look()
    ray.answer = None
    service.look()
    clock.now_s = 60.0
    service.look()
    assert ray.killed == []
    clock.now_s = 61.0
    service.look()
    assert ray.killed == [False], "Ray starts it again"
    (event,) = service.take_events()
    assert event["cause"] == "weights does not answer: silent for 61 s, killed"
    clock.now_s = 1e6
    service.look()
    assert ray.killed == [False], "it may be starting"
    ray.answer = 2
    service.look()
    assert service.take_events() == [], "told when it was killed"
    ray.answer = None
    service.look()
    clock.now_s += 61.0
    service.look()
    assert ray.killed == [False, False]


def test_one_that_is_silent_from_the_start_is_killed_too(clock: Clock, ray: FakeRay) -> None:
    service = Service("weights", ray, 60.0)
    ray.answer = None
    service.look()
    clock.now_s = 61.0
    service.look()
    assert ray.killed == [False]
    ray.answer = 1
    service.look()
    ray.answer = 2
    service.look()
    causes = [event["cause"] for event in service.take_events()]
    assert causes == [
        "weights does not answer: silent for 61 s, killed",
        "weights died: it is process 2 now",
    ]


def test_one_that_would_not_come_back_is_left_alone(clock: Clock, ray: FakeRay) -> None:
    service = Service("replay", ray, None)
    ray.answer = None
    service.look()
    clock.now_s = 1e6
    service.look()
    assert ray.killed == []
    assert ray.num_asked == 1
