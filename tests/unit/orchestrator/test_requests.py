from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import cluster
from orchestrator.control import Asked, Pause, Request, Resume, Scale, Stop
from orchestrator.requests import Requests
from slipstream.config.job import JobConfig
from slipstream.errors import RoleFailed
from slipstream.telemetry import EventLog
from tests.helpers.jobs import make_job


class Control:
    """What is asked, and what was answered."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.answers: list[tuple[bool, str]] = []

    def poll(self) -> list[Asked]:
        asked, self.asked = self.asked, []
        return [Asked(path=Path(), request=request) for request in asked]

    def answer(self, _asked: Asked, *, ok: bool, message: str) -> None:
        self.answers.append((ok, message))


class Fleet:
    """Two workers, and ranks as in `job`; notes what it is told."""

    def __init__(self, job: JobConfig) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.rollouts = SimpleNamespace(num_wanted=2, scale=self._note("scale"))
        rebuild = self._note("rebuild")
        self.learners = SimpleNamespace(job=job, is_running=True, is_done=False, rebuild=rebuild)
        self.pause = self._note("pause")
        self.dismiss_learner = self._note("dismiss")
        self.request_stop = self._note("stop")

    def _note(self, name: str) -> Any:
        return lambda *given: self.told.append((name, *given))

    def take_told(self) -> list[tuple[Any, ...]]:
        told, self.told = self.told, []
        return told


class Running:
    """Requests to a running job."""

    def __init__(self, **sections: Any) -> None:
        job = make_job(**sections)
        self.control, self.fleet = Control(), Fleet(job)
        self.events = EventLog("driver", 0)
        self.requests = Requests(job, self.control, self.fleet, self.events)  # type: ignore[arg-type]

    def ask(self, request: Request) -> tuple[bool, str]:
        self.control.asked.append(request)
        self.tick()
        return self.control.answers[-1]

    def tick(self, **replay: Any) -> None:
        self.requests.tick(replay)

    def told(self) -> list[tuple[Any, ...]]:
        """Kind, role and numbers of each event."""
        names = ("kind", "role", "num_before", "num_after")
        return [tuple(e[name] for name in names if name in e) for e in self.events.drain()]


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "available", lambda: {"CPU": 8.0})


def test_more_workers() -> None:
    running = Running()
    assert running.ask(Scale(rollout=3)) == (True, "3 rollout workers from now on")
    assert running.fleet.told == [("scale", 3)]
    assert not running.requests.is_rebuilding


def test_workers_may_be_more_than_the_cluster_holds_now() -> None:
    running = Running()
    assert running.ask(Scale(rollout=100))[0]
    assert running.fleet.told == [("scale", 100)]


@pytest.mark.parametrize(
    ("sections", "request_", "why"),
    [
        ({"mode": "sync", "rollout": {"colocate": True}}, Scale(rollout=2), "rollout.colocate"),
        ({"mode": "sync", "rollout": {"colocate": True}}, Scale(learner=2), "rollout.colocate"),
        ({"weights": {"transport": "nccl"}}, Scale(rollout=2), "weights.transport: nccl"),
        ({"weights": {"transport": "nccl"}}, Scale(learner=2), "weights.transport: nccl"),
        (
            {"rollout": {"autoscale": {"min_workers": 1, "max_workers": 4}}},
            Scale(rollout=2),
            "rollout.autoscale",
        ),
        ({}, Scale(learner=7), "7 ranks ask for 7 CPU, and 2 workers leave 6 of the cluster's"),
        (  # with more workers at the same time
            {"rollout": {"cpus": 2}},
            Scale(learner=3, rollout=3),
            "3 ranks ask for 3 CPU, and 3 workers leave 2 of the cluster's",
        ),
        (
            {"learner": {"gpus_per_rank": 1}},
            Scale(learner=2),
            "2 ranks ask for 2 GPU, and 2 workers leave 0 of the cluster's",
        ),
    ],
)
def test_refused(sections: dict[str, Any], request_: Scale, why: str) -> None:
    running = Running(**sections)
    ok, message = running.ask(request_)
    assert not ok
    assert why in message
    assert running.fleet.told == []
    assert not running.requests.is_rebuilding


def test_autoscale_decides_about_workers_alone() -> None:
    running = Running(rollout={"autoscale": {"min_workers": 1, "max_workers": 4}})
    assert running.ask(Scale(learner=2))[0]
    assert running.requests.is_rebuilding


def test_ranks_that_just_fit() -> None:
    assert Running().ask(Scale(learner=6))[0]


def test_ranks_without_gpus_beside_workers_that_wait_for_theirs() -> None:
    assert Running(rollout={"gpus": 1}).ask(Scale(learner=2))[0]


def test_ranks_are_dismissed_each_tick_until_they_have_ended() -> None:
    running = Running()
    ok, message = running.ask(Scale(learner=2))
    assert (ok, message) == (True, "2 learner ranks after this step and a commit")
    assert running.fleet.take_told() == [("dismiss", True)]
    for _ in range(2):  # replay may have died, and forgotten it
        running.tick()
        assert running.fleet.take_told() == [("dismiss", True)]
    assert running.requests.take_num_ranks() == 2
    assert not running.requests.is_rebuilding
    running.tick()
    assert running.fleet.told == []
    assert running.requests.take_num_ranks() is None


def test_as_many_ranks_as_there_are() -> None:
    running = Running(learner={"num_ranks": 2})
    assert running.ask(Scale(learner=2)) == (True, "it is as you say")
    assert running.fleet.told == []


def test_a_learner_that_is_done_is_not_built_anew() -> None:
    running = Running()
    running.fleet.learners.is_done = True
    assert running.ask(Scale(learner=2)) == (False, "the learner has done all its steps")


def test_the_last_word_about_ranks_counts() -> None:
    running = Running()  # with one
    running.ask(Scale(learner=2))
    assert running.ask(Scale(learner=1))[1] == "1 learner ranks after this step and a commit"
    assert running.requests.take_num_ranks() == 1


def test_ranks_that_do_not_run_are_rebuilt_at_once() -> None:
    running = Running()
    running.fleet.learners.is_running = False
    assert running.ask(Scale(learner=2))[0]
    assert ("rebuild", 2) in running.fleet.told
    assert not running.requests.is_rebuilding


def test_ranks_that_died_before_they_could_be_dismissed_are_rebuilt_at_once() -> None:
    running = Running()
    running.ask(Scale(learner=2))
    running.fleet.learners.is_running = False
    running.ask(Scale(learner=3))
    assert running.fleet.told[-2:] == [("dismiss", False), ("rebuild", 3)]
    assert running.requests.take_num_ranks() is None, "2 are not wanted any more"


def test_replay_is_told_again_what_it_has_forgotten() -> None:
    running = Running()
    running.tick(paused=False)
    assert running.ask(Pause())[0]
    assert running.requests.is_paused
    assert running.fleet.take_told() == [("pause", True)]
    running.tick(paused=True)
    running.tick()  # it does not answer
    assert running.fleet.take_told() == []
    running.tick(paused=False)
    assert running.fleet.take_told() == [("pause", True)]
    assert running.ask(Resume())[0]
    assert not running.requests.is_paused
    running.tick(paused=True)
    assert running.fleet.take_told() == [("pause", False), ("pause", False)]


def test_stop() -> None:
    running = Running()
    assert running.ask(Stop(reason="enough"))[0]
    assert running.fleet.told == [("stop", "enough")]


def test_a_role_that_does_not_answer_is_a_refusal_and_no_end_of_the_job() -> None:
    running = Running()

    def silent(_reason: str) -> None:
        raise RoleFailed("replay did not answer within 60 s")

    running.fleet.request_stop = silent
    running.control.asked = [Stop(reason="enough"), Scale(rollout=3)]
    running.tick()
    assert running.control.answers[0] == (
        False,
        "not now, ask again: replay did not answer within 60 s",
    )
    assert running.control.answers[1][0], "the next one is carried out all the same"


def test_what_is_done_is_told() -> None:
    running = Running()
    running.ask(Scale(rollout=3, learner=2))
    assert running.told() == [("scaled", "rollout", 2, 3), ("scaled", "learner", 1, 2)]
    running.ask(Scale(rollout=2, learner=2))
    assert running.told() == [], "as many as there are, or as there will be"
    for request in (Pause(), Pause(), Resume()):
        running.ask(request)
    assert running.told() == [("paused", "driver"), ("resumed", "driver")]
    running.ask(Scale(learner=100))
    assert running.told() == [], "refused"
