"""The learner's loop: what it does in which order, without Ray, torch or DeepSpeed."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from learner.loop import LearnerLoop
from replay.buffer import ReplayBuffer
from replay.rules import Rules
from replay.scripted import LocalReplay, scripted_group, scripted_prompt
from slipstream.errors import DeadlineExceeded
from slipstream.records import Batch, ReplaySnapshot, Stop, Wait
from slipstream.telemetry import EventLog
from tests.helpers.jobs import make_job

NUM_STEPS = 3


class World:
    """One rank over a replay in this process, with everything that it does in `log`."""

    def __init__(
        self, *, rank: int = 0, every_steps: int = 2, timeline: int = 0, version: int = 0
    ) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.job = make_job(
            learner={"num_steps": NUM_STEPS, "groups_per_batch": 2},
            rollout={"group_size": 2},
            checkpoint={"every_steps": every_steps},
            replay={"call_timeout_s": 0.05},
        )
        self.replay: Any = Replay(self)
        self.events = EventLog("learner", rank)
        self.loop = LearnerLoop(
            self.job,
            rank=rank,
            timeline=timeline,
            version=version,
            step=self,  # type: ignore[arg-type]
            replay=self.replay,
            publisher=self,
            prober=None,
            barrier=lambda: self.log.append(("barrier",)),
            commits=self,  # type: ignore[arg-type]
            events=self.events,
        )

    def run(self, batch: Batch) -> dict[str, float]:
        self.log.append(("train", batch.version))
        return {"loss": 0.0}

    def publish(self, timeline: int, version: int, probe: Any) -> dict[str, float]:
        self.log.append(("publish", version))
        return {"wire_s": 0.0}

    def due(self, version: int) -> bool:
        return version % self.job.checkpoint.every_steps == 0

    def start(self, version: int, snapshot: ReplaySnapshot | None) -> None:
        self.log.append(("commit", version, snapshot and snapshot.state["version"]))

    def join(self) -> None: ...

    def wait(self) -> None:
        self.log.append(("wait",))


class Replay(LocalReplay):
    """Its groups come by themselves; every second take has to wait."""

    def __init__(self, world: World) -> None:
        super().__init__(ReplayBuffer(Rules.of(world.job), scripted_prompt))
        self._world = world
        self._asked = 0

    def take(self, version: int, timeline: int = 0) -> Future[Batch | Wait | Stop]:
        self._asked += 1
        if self._asked % 2 == 0:
            for lease in self.lease("w", 0, 2, held=[], yielded_version=None).result().leases:
                self.put([scripted_group(lease, rewards=(0, 1))]).result()
        return super().take(version, timeline)

    def trained(self, version: int, timeline: int = 0) -> Future[None]:
        self._world.log.append(("trained", version))
        return super().trained(version, timeline)


def test_a_version_is_published_before_replay_hears_of_it_and_then_committed() -> None:
    world = World()
    assert world.loop.run() == NUM_STEPS
    assert world.log == [
        ("publish", 0),
        ("commit", 0, 0),  # of a new run
        *[("train", 0), ("publish", 1), ("trained", 1), ("barrier",)],
        *[("train", 1), ("publish", 2), ("trained", 2), ("barrier",)],
        ("commit", 2, 2),  # the replay snapshot is of the same boundary
        *[("train", 2), ("publish", 3), ("trained", 3), ("barrier",)],
        ("commit", 3, 3),
        ("wait",),
    ]
    events = world.events.drain()
    reported = [(event["kind"], event["version"]) for event in events]
    assert reported == [("step", 1), ("step", 2), ("step", 3)]


def test_the_last_version_is_committed_once() -> None:
    world = World(every_steps=NUM_STEPS)
    world.loop.run()
    assert [entry for entry in world.log if entry[0] == "commit"] == [
        ("commit", 0, 0),
        ("commit", 3, 3),
    ]


def test_a_run_that_goes_on_has_its_commit_already() -> None:
    world = World(timeline=1)
    world.replay.take = lambda version, timeline: _done(Stop(reason=f"{version} of {timeline}"))
    assert world.loop.run() == 0
    assert world.log == [("publish", 0), ("wait",)]


def test_another_rank_publishes_and_commits_with_rank_0_but_does_not_speak_to_replay() -> None:
    world = World(rank=1, every_steps=1)
    first = world.replay.buffer
    world.replay.trained = None  # would raise if it were called
    world.replay.take = lambda version, _timeline: _done(_stop_after(version, first, world))
    world.loop.run()
    assert ("trained", 1) not in world.log
    assert world.log.count(("barrier",)) == NUM_STEPS
    assert [entry[:2] for entry in world.log if entry[0] == "commit"] == [
        ("commit", version) for version in (0, 1, 2, 3)
    ]
    assert world.events.drain() == []


def test_a_silent_replay_ends_the_rank_at_the_deadline() -> None:
    world = World()
    world.replay.take = lambda _version, _timeline: Future()
    with pytest.raises(DeadlineExceeded, match="take of version 0"):
        world.loop.run()


def _stop_after(version: int, buffer: ReplayBuffer, world: World) -> Batch | Stop:
    """What rank 0 has taken already; rank 0's calls are made here."""
    if version > buffer.version:
        buffer.trained(version)
    if version == NUM_STEPS:
        return Stop(reason="all steps are done")
    for lease in buffer.lease("w", 0, 2, 0.0).leases:
        buffer.put(scripted_group(lease, rewards=(0, 1)), 0.0)
    batch = buffer.take(version, 0.0)
    assert isinstance(batch, Batch)
    return batch


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
