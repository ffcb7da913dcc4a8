"""Workers come, die, hang and leave. Ray is replaced; the test answers for the actors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from orchestrator import actors, rollouts
from orchestrator.health import State
from orchestrator.rollouts import Rollouts
from slipstream.errors import DeadlineExceeded, ProbeMismatch, RoleFailed, UpdateTorn
from slipstream.telemetry import Beat
from tests.helpers.jobs import make_job

PID = 77


class Call:
    """Under way until it has an outcome: what it returns, or raises."""

    outcome: Any = None


class Actor:
    """Notes what was asked of it last, and with what."""

    def __init__(self, index: int, incarnation: int) -> None:
        self.index, self.incarnation = index, incarnation
        self.asked: dict[str, tuple[Any, ...]] = {}
        self.calls: dict[str, Call] = {}

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: self._ask(name, given))

    def _ask(self, name: str, given: tuple[Any, ...]) -> Call:
        self.asked[name], self.calls[name] = given, Call()
        return self.calls[name]


class Bundle:
    """On a node of its own."""

    is_placed = True
    is_removed = False

    def __init__(self, node: str) -> None:
        self.node = node
        self.options: dict[str, Any] = {}

    def remove(self) -> None:
        self.is_removed = True


class World:
    """What Ray, replay and the clock would be."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.made: list[Actor] = []
        self.killed: list[Actor] = []
        self.lost: list[tuple[str, int, bool]] = []
        self.bundles: list[Bundle] = []
        self.dead_nodes: set[str] = set()
        self.draining: set[str] = set()
        self.replay = SimpleNamespace(lose=SimpleNamespace(remote=self._lose))

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = SimpleNamespace(time=lambda: self.now_s, monotonic=lambda: self.now_s)
        for module in (rollouts, actors):
            monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(ray, "wait", _wait)
        monkeypatch.setattr(ray, "get", _get)
        monkeypatch.setattr(ray, "kill", self.killed.append)
        maker = SimpleNamespace(remote=self._make)
        monkeypatch.setattr(rollouts, "make_actor", lambda *_, **__: maker)
        monkeypatch.setattr(rollouts, "worker_bundle", lambda _job: self.bundle())
        monkeypatch.setattr(rollouts, "draining_nodes", lambda: self.draining)
        monkeypatch.setattr(rollouts, "living_nodes", self._living_nodes)

    def bundle(self) -> Bundle:
        self.bundles.append(Bundle(f"node-{len(self.bundles)}"))
        return self.bundles[-1]

    def _living_nodes(self) -> set[str]:
        return {bundle.node for bundle in self.bundles} - self.dead_nodes

    def _make(self, _job: Any, index: int, incarnation: int, _cores: Any) -> Actor:
        self.made.append(Actor(index, incarnation))
        return self.made[-1]

    def _lose(self, name: str, incarnation: int, *, blame: bool) -> None:
        self.lost.append((name, incarnation, blame))


def _wait(calls: list[Call], **_: Any) -> tuple[list[Call], list[Call]]:
    return [call for call in calls if call.outcome is not None], []


def _get(call: Call, **_: Any) -> Any:
    if isinstance(call.outcome, Exception):
        raise call.outcome
    return call.outcome


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    found = World()
    found.patch(monkeypatch)
    return found


def fleet(world: World, num_workers: int, *, shared: bool = False, **sections: Any) -> Rollouts:
    """Workers that run."""
    rollout = {"num_workers": num_workers, **sections.pop("rollout", {})}
    bundles: Any = [world.bundle() for _ in range(num_workers)] if shared else None
    found = Rollouts(
        make_job(rollout=rollout, **sections), (), replay=world.replay, board=None, bundles=bundles
    )
    found.may_start = True
    bring_up(found)
    return found


def bring_up(found: Rollouts) -> None:
    """Every worker that is on its way comes to run."""
    for _ in range(2):  # placed; asked to start
        found.tick()
    for worker in found.workers.values():
        if worker.stage == "starting":
            worker.call.outcome = PID
    found.tick()
    assert all(worker.stage == "running" for worker in found.workers.values())


def end(found: Rollouts, index: int, outcome: Any) -> None:
    found.workers[index].call.outcome = outcome
    found.tick()


def say(found: Rollouts, index: int, *events: dict[str, Any], **changes: Any) -> None:
    """The worker answers what it does, and what has happened."""
    fields = {"timeline": 0, "version": 0, "phase": "generate", "phase_s": 0.0, **changes}
    found.ask()
    found.workers[index].actor.calls["drain"].outcome = (Beat(**fields), events)
    found.tick()


def raised(cause: Exception) -> RayError:
    """As Ray tells it."""
    error: RayError = RayTaskError("run", "the trace", cause).as_instanceof_cause()
    return error


def died(message: str) -> ActorDiedError:
    return ActorDiedError(ActorDiedErrorContext(error_message=message, actor_id=bytes(16)))


CRASHED = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"


def kinds(found: Rollouts) -> list[tuple[str, int]]:
    """What was told of the workers' lives since the last time, but for their starts."""
    told = [(e["kind"], e["index"]) for e in found.events if e["kind"] != "worker_started"]
    found.events = []
    return told


def asked_to_leave(found: Rollouts) -> dict[int, str]:
    workers = found.workers.items()
    return {
        i: w.actor.asked["leave"][0] for i, w in workers if w.actor and "leave" in w.actor.asked
    }


# --- sizes ------------------------------------------------------------------------


def test_workers_come_to_run(world: World) -> None:
    found = fleet(world, 2)
    assert found.is_ready
    assert [(e["kind"], e["index"], e["incarnation"], e["pid"]) for e in found.events] == [
        ("worker_started", 0, 0, PID),
        ("worker_started", 1, 0, PID),
    ]


def test_one_more(world: World) -> None:
    found = fleet(world, 2)
    found.scale(3)
    assert asked_to_leave(found) == {}
    bring_up(found)
    assert [(actor.index, actor.incarnation) for actor in world.made] == [(0, 0), (1, 0), (2, 0)]
    assert len(found.running) == 3


def test_the_highest_leave(world: World) -> None:
    found = fleet(world, 3)
    found.scale(1)
    assert asked_to_leave(found) == {1: "scaled down", 2: "scaled down"}
    assert [worker.index for worker in found.running] == [0]
    found.tick()
    assert sorted(found.workers) == [0, 1, 2], "they finish what they have"
    for index in (1, 2):
        end(found, index, "left")
    assert sorted(found.workers) == [0]
    assert world.lost == [("rollout-1", 0, False), ("rollout-2", 0, False)]
    assert kinds(found) == [("worker_left", 1), ("worker_left", 2)]
    assert [bundle.is_removed for bundle in world.bundles] == [False, True, True]


def test_one_that_leaves_is_not_counted(world: World) -> None:
    found = fleet(world, 3)
    found.scale(2)
    found.scale(3)
    bring_up(found)
    assert [worker.index for worker in found.running] == [0, 1, 3]
    found.scale(2)
    assert asked_to_leave(found) == {2: "scaled down", 3: "scaled down"}
    found.scale(2)
    end(found, 2, "left")
    end(found, 3, "left")
    assert sorted(found.workers) == [0, 1]


def test_one_that_has_not_started_goes_at_once(world: World) -> None:
    found = fleet(world, 1)
    found.scale(3)
    found.tick()  # their processes are there
    found.scale(1)
    assert sorted(found.workers) == [0]
    assert [actor.index for actor in world.killed] == [1, 2]


# --- deaths -----------------------------------------------------------------------


def test_another_incarnation_takes_its_place_on_other_devices(world: World) -> None:
    found = fleet(world, 2)
    end(found, 1, died(CRASHED))
    assert kinds(found) == [("worker_died", 1)]
    assert [actor.index for actor in world.killed] == [1]
    bring_up(found)
    assert (world.made[-1].index, world.made[-1].incarnation) == (1, 1)
    assert found.workers[1].node == "node-2"
    assert [status.num_restarts for status in found.statuses((0, 0))] == [0, 1]


@pytest.mark.parametrize(
    ("outcome", "blame"),
    [
        (died(CRASHED), True),
        (died("The actor died because its node has died. Node Id: 12"), False),
        (raised(ValueError("the engine")), True),
        (raised(UpdateTorn("half")), False),
        (raised(DeadlineExceeded("replay")), False),
        (raised(ActorDiedError()), False),  # another role, that it talks to
        ("stop", False),  # before the job did
    ],
)
def test_what_a_death_says_of_the_prompts(world: World, outcome: Any, blame: bool) -> None:
    found = fleet(world, 2)
    end(found, 0, outcome)
    assert world.lost == [("rollout-0", 0, blame)]
    told = [event for event in found.events if event["kind"] == "worker_died"]
    assert [event["blame"] for event in told] == [blame]


def test_one_on_a_lost_node_blames_nobody(world: World) -> None:
    found = fleet(world, 1, rollout={"max_restarts": 1})
    world.dead_nodes = {"node-0"}
    end(found, 0, died(CRASHED))
    assert world.lost == [("rollout-0", 0, False)]


@pytest.mark.parametrize(
    ("doing", "blame"),
    [
        ({"phase": "generate", "phase_s": 61.0}, True),
        ({"phase": "wait", "token_s": 366.0}, True),  # 5 s, 60 s and 300 s are allowed
        ({"phase": "adopt", "phase_s": 301.0}, False),
    ],
)
def test_what_a_hang_says_of_the_prompts(world: World, doing: dict[str, Any], blame: bool) -> None:
    found = fleet(world, 2)
    say(found, 0, **doing)
    assert world.lost == [("rollout-0", 0, blame)]


def test_silence_blames_nobody(world: World) -> None:
    found = fleet(world, 1)
    found.ask()
    world.now_s += 7.0
    found.tick()
    assert world.lost == []
    assert found.statuses((0, 0))[0].state == State.SUSPECT
    world.now_s += 0.1
    found.tick()
    assert world.lost == [("rollout-0", 0, False)]


def test_one_that_starts_for_too_long_blames_nobody(world: World) -> None:
    found = fleet(world, 1, rollout={"start_timeout_s": 30})
    found.scale(2)
    found.tick()
    found.tick()  # asked to start
    world.now_s += 30.1
    found.tick()
    assert world.lost == [("rollout-1", 0, False)]
    assert kinds(found) == [("worker_died", 1)]


def test_one_that_was_leaving_has_left(world: World) -> None:
    found = fleet(world, 2)
    found.scale(1)
    end(found, 1, raised(ValueError("the engine")))
    assert world.lost == [("rollout-1", 0, False)]
    assert kinds(found) == [("worker_left", 1)]
    assert sorted(found.workers) == [0]


def test_one_that_says_what_another_start_would_not_cure_ends_the_job(world: World) -> None:
    found = fleet(world, 2)
    with pytest.raises(RoleFailed, match="rollout-0: they differ"):
        end(found, 0, raised(ProbeMismatch("they differ")))


def test_with_nccl_the_first_death_ends_the_job(world: World) -> None:
    found = fleet(world, 2, weights={"transport": "nccl"})
    with pytest.raises(RoleFailed, match="go on with --resume"):
        end(found, 0, died(CRASHED))


# --- too many deaths --------------------------------------------------------------


def test_one_that_dies_again_and_again_is_given_up_while_another_runs(world: World) -> None:
    found = fleet(world, 2, rollout={"max_restarts": 1})
    end(found, 1, died(CRASHED))
    bring_up(found)
    assert (found.num_wanted, len(found.running)) == (2, 2)
    end(found, 1, died(CRASHED))
    assert kinds(found) == [("worker_died", 1), ("worker_died", 1), ("worker_given_up", 1)]
    assert world.lost == [("rollout-1", 0, True), ("rollout-1", 1, True)]
    assert (found.num_wanted, sorted(found.workers)) == (1, [0])
    found.tick()
    assert sorted(found.workers) == [0]


def test_without_another_one_the_job_ends(world: World) -> None:
    found = fleet(world, 2, rollout={"max_restarts": 1})
    found.scale(1)  # one that leaves is no other one
    end(found, 0, died(CRASHED))
    bring_up(found)
    with pytest.raises(RoleFailed, match="died 2 times in a row"):
        end(found, 0, died(CRASHED))


def test_on_shared_devices_none_is_given_up(world: World) -> None:
    sections = {"mode": "sync", "rollout": {"colocate": True, "max_restarts": 0}}
    found = fleet(world, 2, shared=True, **sections)
    with pytest.raises(RoleFailed, match="died 1 times in a row"):
        end(found, 1, died(CRASHED))


@pytest.mark.parametrize(("num_tokens", "survives"), [(1, True), (0, False)])
def test_deaths_are_in_a_row_until_tokens_are_made(
    world: World, num_tokens: int, survives: bool
) -> None:
    found = fleet(world, 2, rollout={"max_restarts": 1})
    end(found, 1, died(CRASHED))
    bring_up(found)
    say(found, 1, {"kind": "busy", "num_tokens": num_tokens})
    end(found, 1, died(CRASHED))
    assert (1 in found.workers) == survives


# --- nodes that go ----------------------------------------------------------------


def test_those_on_a_drained_node_leave_and_others_come(world: World) -> None:
    found = fleet(world, 2)
    world.draining = {"node-1"}
    world.now_s += 1.9
    found.tick()
    assert asked_to_leave(found) == {}, "looked for every 2 s"
    world.now_s += 0.2
    found.tick()
    assert asked_to_leave(found) == {1: "its node is drained"}
    assert found.statuses((0, 0))[1].state == State.DRAINING
    assert sorted(found.workers) == [0, 1, 2], "another one starts before it has left"
    end(found, 1, "left")
    assert sorted(found.workers) == [0, 2]


@pytest.mark.parametrize(
    ("shared", "sections"),
    [
        (True, {"mode": "sync", "rollout": {"colocate": True}}),
        (False, {"weights": {"transport": "nccl"}}),
    ],
)
def test_those_that_could_not_be_replaced_elsewhere_stay(
    world: World, shared: bool, sections: dict[str, Any]
) -> None:
    found = fleet(world, 2, shared=shared, **sections)
    world.draining = {"node-1"}
    world.now_s += 2.1
    found.tick()
    assert asked_to_leave(found) == {}
    assert len(found.running) == 2


def test_one_that_leaves_by_itself_was_preempted(world: World) -> None:
    found = fleet(world, 1)
    say(found, 0, leaving=True)
    assert found.running == []
    assert sorted(found.workers) == [0, 1], "another one takes its place at once"
    end(found, 0, "left")
    assert [e["reason"] for e in found.events if e["kind"] == "worker_left"] == ["preempted"]
