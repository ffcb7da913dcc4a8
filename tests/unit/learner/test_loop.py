"""The learner's loop: what it does in which order, without Ray, torch or DeepSpeed."""

from __future__ import annotations

import math
import threading
from collections import Counter
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from learner.loop import LearnerLoop
from replay.buffer import ReplayBuffer
from replay.rules import Rules
from replay.scripted import LocalReplay, scripted_group, scripted_lease, scripted_prompt
from slipstream.errors import DeadlineExceeded, NotFinite, Restartable
from slipstream.records import Batch, BatchGroup, Probe, ReplaySnapshot, Stop, Wait
from slipstream.telemetry import Beat, EventLog
from tests.helpers.jobs import make_job

NUM_STEPS = 3


class World:
    """One rank over a replay in this process, with everything that it does in `log`."""

    def __init__(
        self,
        *,
        rank: int = 0,
        every_steps: int = 2,
        timeline: int = 0,
        version: int = 0,
        replay: Any = None,
    ) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.trained: list[Batch] = []
        self.num_reminders = 0
        self.num_bad: Counter[int] = Counter()  # version -> steps of it that are still to be bad
        self.num_skipped = 0  # updates of every good step
        self.logprobs = [-0.5]  # of the probe
        self.job = make_job(
            learner={"num_steps": NUM_STEPS, "groups_per_batch": 2, "max_bad_steps": 2},
            rollout={"group_size": 2},
            checkpoint={"every_steps": every_steps},
            replay={"call_timeout_s": 0.05},
        )
        self.replay: Any = (replay or Replay)(self)
        self.events = EventLog("learner", rank)
        self.loop = LearnerLoop(
            self.job,
            rank=rank,
            timeline=timeline,
            version=version,
            is_new=timeline == 0,
            step=self,  # type: ignore[arg-type]
            replay=self.replay,
            publisher=self,
            prober=self,  # type: ignore[arg-type]
            barrier=lambda: self.log.append(("barrier",)),
            commits=self,  # type: ignore[arg-type]
            events=self.events,
        )

    def run(self, batch: Batch) -> dict[str, float]:
        self.log.append(("train", batch.version))
        self.trained.append(batch)
        if self.num_bad[batch.version]:
            self.num_bad[batch.version] -= 1
            return {"num_updates": 0, "updates_skipped": 4, "loss": math.nan}
        return {"num_updates": 1, "updates_skipped": self.num_skipped, "loss": 0.0}

    def measure(self) -> Probe:
        token_ids = np.zeros(2, np.int32)
        return Probe(token_ids=token_ids, logprobs=np.array(self.logprobs, np.float32))

    def publish(self, timeline: int, version: int, probe: Any) -> dict[str, float]:
        self.log.append(("publish", version))
        return {"gather_s": 0.5, "publish_s": 0.25, "num_bytes": 8}

    def remind(self) -> None:
        self.num_reminders += 1

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


class Batches:
    """A replay that always has a batch: its number is the ordinal of its one group."""

    def __init__(self, world: World) -> None:
        self._log = world.log
        self._version = self._number = 0

    def take(self, version: int, timeline: int) -> Future[Batch | Stop]:
        assert version == self._version
        if version == NUM_STEPS:
            return _done(Stop(reason="all steps are done"))
        group = scripted_group(scripted_lease(self._number, version), rewards=(0, 1))
        return _done(Batch(version=version, groups=(BatchGroup(group=group, lag=0, use=1),)))

    def trained(self, version: int, timeline: int) -> Future[None]:
        self._log.append(("trained", version))
        self._version, self._number = version, self._number + 1
        return _done(None)

    def discard(self, version: int, timeline: int, number: int) -> Future[None]:
        assert number == 0, "the batch's own"
        self._log.append(("discard", version, timeline))
        self._number += 1
        return _done(None)

    def snapshot(self, timeline: int) -> Future[ReplaySnapshot]:
        return _done(ReplaySnapshot(state={"version": self._version}, groups={}))


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
    assert reported == [
        ("published", 0),
        *[("published", 1), ("step", 1)],
        *[("published", 2), ("step", 2)],
        *[("published", 3), ("step", 3)],
    ]
    assert events[0].items() >= {"gather_s": 0.5, "publish_s": 0.25, "num_bytes": 8}.items()


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


def ordinals_of(world: World) -> list[int]:
    return [entry.group.ordinal for batch in world.trained for entry in batch.groups]


def test_a_batch_without_a_finite_gradient_is_discarded_and_the_next_one_trains() -> None:
    world = World(replay=Batches, timeline=4, every_steps=NUM_STEPS)
    world.num_bad[1] = 2
    assert world.loop.run() == NUM_STEPS
    assert world.log == [
        ("publish", 0),
        *[("train", 0), ("publish", 1), ("trained", 1), ("barrier",)],
        *[("train", 1), ("discard", 1, 4), ("barrier",)],
        *[("train", 1), ("discard", 1, 4), ("barrier",)],
        *[("train", 1), ("publish", 2), ("trained", 2), ("barrier",)],
        *[("train", 2), ("publish", 3), ("trained", 3), ("barrier",)],
        ("commit", 3, 3),
        ("wait",),
    ]
    assert ordinals_of(world) == [0, 1, 2, 3, 4], "each batch was another one"
    told = [event for event in world.events.drain() if event["kind"] != "published"]
    events = [(event["kind"], event["version"]) for event in told]
    assert events == [("step", 1), ("skipped", 1), ("skipped", 1), ("step", 2), ("step", 3)]


def test_a_skipped_step_says_what_was_lost() -> None:
    world = World(replay=Batches)
    world.num_bad[0] = 1
    world.loop.run()
    event = world.events.drain()[1]
    assert (event["kind"], event["num_groups"]) == ("skipped", 1)
    assert event["detail"] == "loss nan, and no finite gradient in 4 updates"


@pytest.mark.parametrize("rank", [0, 1])
def test_too_many_such_batches_in_a_row_end_every_rank_and_nothing_is_published(rank: int) -> None:
    world = World(replay=Batches, rank=rank, timeline=1)
    world.replay._version = world.loop.version = 1
    world.num_bad[1] = 99
    with pytest.raises(NotFinite, match="3 batches in a row gave version 1 no finite") as raised:
        world.loop.run()
    assert isinstance(raised.value, Restartable)
    assert "learner.learning_rate, the rewards and the log-probs" in str(raised.value)
    assert len(world.trained) == world.job.learner.max_bad_steps + 1
    assert [entry for entry in world.log if entry[0] == "publish"] == [("publish", 1)]
    assert world.log.count(("discard", 1, 1)) == (3 if rank == 0 else 0)
    assert world.log.count(("barrier",)) == 3
    assert not [entry for entry in world.log if entry[0] == "trained"]
    told = [event["kind"] for event in world.events.drain()]
    assert told == (["published", "skipped", "skipped", "skipped"] if rank == 0 else [])


def test_a_good_step_in_between_forgives() -> None:
    world = World(replay=Batches)
    world.num_bad.update({0: 2, 1: 2, 2: 2})  # as many in a row as are allowed
    assert world.loop.run() == NUM_STEPS
    assert len(world.trained) == 9


@pytest.mark.parametrize(("num_updates", "num_skipped"), [(1, 3), (0, 0)])
def test_a_step_with_any_update_or_with_nothing_to_train_counts(
    num_updates: int, num_skipped: int
) -> None:
    world = World(replay=Batches)
    world.run = lambda _batch: {  # type: ignore[method-assign]
        "num_updates": num_updates,
        "updates_skipped": num_skipped,
        "loss": 0.0,
    }
    assert world.loop.run() == NUM_STEPS
    steps = [event for event in world.events.drain() if event["kind"] != "published"]
    assert [event["kind"] for event in steps] == ["step"] * NUM_STEPS
    assert steps[0]["metrics"]["updates_skipped"] == num_skipped


def test_a_policy_whose_own_log_probs_are_not_finite_is_not_published() -> None:
    world = World(replay=Batches)
    world.logprobs = [-0.5, -math.inf]
    with pytest.raises(NotFinite, match="version 0"):
        world.loop.run()
    assert world.log == []


def test_the_newest_version_is_announced_again_while_replay_waits() -> None:
    world = World()
    replies = iter([Wait(reason="no groups"), Wait(reason="no groups"), Stop(reason="enough")])
    world.replay.take = lambda _version, _timeline: _done(next(replies))
    world.loop.run()
    assert world.num_reminders == 2


def test_a_beat_tells_the_phase_and_the_version_to_another_thread() -> None:
    world = World(replay=Batches, timeline=3)
    beats: list[Beat] = []

    def trained(version: int, timeline: int) -> Future[None]:
        asking = threading.Thread(target=lambda: beats.append(world.loop.beat()))
        asking.start()
        asking.join()
        return Batches.trained(world.replay, version, timeline)

    world.replay.trained = trained
    beats.append(world.loop.beat())
    world.loop.run()
    assert [(beat.phase, beat.version) for beat in beats] == [
        ("between", 0),
        *[("publish", version) for version in (1, 2, 3)],
    ]
    assert all(beat.timeline == 3 for beat in beats)
    assert all(0 <= beat.phase_s < 60 for beat in beats)


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
