"""How a worker ends: told to leave, replaced by another, or with half of a version."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from replay.scripted import scripted_prompt
from rollout_worker.engine import Generation
from rollout_worker.scripted_engine import ScriptedEngine
from slipstream.errors import UpdateLost, UpdateStalled, UpdateTorn
from slipstream.records import LeaseReply
from tests.helpers.workers import World

RUNNING = threading.Event()  # never set


def under_way(world: World) -> int:
    """Turn until the engine has something; how many groups it has."""
    world.receiver.publish(0)
    world.turn_until(lambda: world.engine.num_running >= 13)
    return int(world.buffer.stats()["num_running"])


class StuckEngine(ScriptedEngine):
    """Nothing ever finishes."""

    def step(self) -> list[Generation]:
        return []


class SilentPuts:
    """Replay, which does not answer what is handed over until `answers` is set."""

    def __init__(self, world: World) -> None:
        self._replay = world.replay
        self.answers = threading.Event()
        self.puts: list[Future[Any]] = []

    def lease(self, *arguments: Any, **options: Any) -> Future[LeaseReply]:
        answer: Future[LeaseReply] = self._replay.lease(*arguments, **options)
        return answer

    def put(self, groups: Any) -> Future[Any]:
        late: Future[Any] = Future()
        done = self._replay.put(groups).result()
        threading.Thread(target=lambda: self.answers.wait(10) and late.set_result(done)).start()
        self.puts.append(late)
        return late


def test_it_hands_over_what_is_under_way_and_asks_for_nothing_more() -> None:
    world = World()
    num_groups = under_way(world)
    first_new = world.buffer.state.next_lease_id
    world.worker.leave("enough", grace_s=60.0)
    assert world.worker.beat().leaving
    assert world.worker.run(RUNNING) == "left"
    assert world.buffer.stats()["num_running"] == 0
    assert world.buffer.stats()["num_buffered"] >= num_groups
    assert world.buffer.state.next_lease_id == first_new
    (left,) = world.events_of("left")
    assert (left["reason"], left["num_given_back"]) == ("enough", 0)


def test_what_waits_for_its_version_is_given_back_at_once() -> None:
    world = World(max_staleness=0)
    world.receiver.publish(0)
    world.batch(0)
    world.buffer.trained(1)
    world.turn_until(lambda: world.buffer.stats()["num_running"] == 4)
    world.worker.turn()
    world.worker.leave("enough", grace_s=60.0)
    start_s = time.monotonic()
    assert world.worker.run(RUNNING) == "left"
    assert time.monotonic() - start_s < 5.0, "it waited for nothing"
    assert [event["num_given_back"] for event in world.events_of("left")] == [4]


def test_after_its_grace_it_aborts_the_rest() -> None:
    world = World()
    world.engine = StuckEngine()
    world.worker = world.make_worker()
    world.receiver.publish(0)
    world.turn_until(lambda: world.engine.num_running == 16)
    start_s = time.monotonic()
    world.worker.leave("enough", grace_s=0.05)
    world.worker.leave("again", grace_s=60.0)  # the first call counts
    assert world.worker.run(RUNNING) == "left"
    assert 0.05 <= time.monotonic() - start_s < 5.0
    assert world.engine.num_running == 0
    (left,) = world.events_of("left")
    assert (left["reason"], left["num_given_back"]) == ("enough", 4)
    assert world.buffer.stats()["num_running"] == 4, "replay hears of it from who watches"


@pytest.mark.parametrize("grace_s", [0.1, 60.0])
def test_it_waits_for_its_puts_to_be_answered_but_not_past_its_grace(grace_s: float) -> None:
    world = World()
    silent = SilentPuts(world)
    world.replay = silent
    world.worker = world.make_worker()
    under_way(world)
    world.worker.leave("enough", grace_s=grace_s)
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.append(world.worker.run(RUNNING)))
    thread.start()
    if grace_s > 1:
        time.sleep(0.3)
        assert not outcomes
        assert silent.puts
        silent.answers.set()
    thread.join(10)
    silent.answers.set()
    assert outcomes == ["left"]
    assert [event["num_given_back"] for event in world.events_of("left")] == [0]


def test_an_evaluation_under_way_or_asked_for_is_dropped() -> None:
    world = World()
    world.engine = StuckEngine(num_slots=64)
    world.worker = world.make_worker()
    world.receiver.publish(0)
    prompts = [scripted_prompt(ordinal) for ordinal in range(3)]
    for version in (0, 7):
        world.worker.request_evaluation(version, {"eval": prompts})
    world.turn_until(lambda: world.engine.num_running >= 6)
    world.worker.leave("enough", grace_s=0.05)
    assert world.worker.run(RUNNING) == "left"
    assert world.engine.num_running == 0
    assert [event["version"] for event in world.events_of("eval_dropped")] == [0, 7]


def test_it_leaves_from_its_sleep_too() -> None:
    world = World(max_staleness=0, num_sharing_workers=1)
    world.receiver.publish(0)
    world.batch(0)
    assert world.engine.asleep
    world.worker.leave("enough", grace_s=60.0)
    assert world.worker.run(RUNNING) == "left"


def test_a_worker_that_was_replaced_ends() -> None:
    world = World()
    under_way(world)
    world.buffer.lease("rollout-0", 1, 0, time.monotonic())
    assert world.worker.run(RUNNING) == "replaced"


def test_a_worker_that_was_replaced_while_it_hands_over_ends() -> None:
    world = World()
    lease_calls: list[Any] = []

    class NoLeases:
        """Answers the first call for leases alone: only a put can tell."""

        def lease(self, *arguments: Any, **options: Any) -> Future[Any]:
            lease_calls.append(arguments)
            return local.lease(*arguments, **options) if len(lease_calls) == 1 else Future()

        def put(self, groups: Any) -> Future[Any]:
            answers: Future[Any] = local.put(groups)
            return answers

    local, world.replay = world.replay, NoLeases()
    world.worker = world.make_worker()
    world.receiver.publish(0)
    world.turn_until(lambda: world.engine.num_running > 0)
    world.buffer.lease("rollout-0", 1, 0, time.monotonic())
    assert world.worker.run(RUNNING) == "replaced"


def test_stopped_is_another_end() -> None:
    stopping = threading.Event()
    stopping.set()
    assert World().worker.run(stopping) == "stopped"


def test_weights_that_failed_half_way_are_never_served() -> None:
    class Torn(ScriptedEngine):
        def load(self, version: int, tensors: Iterator[Any]) -> None:
            if version == 1:
                raise RuntimeError("out of memory after the third tensor")
            super().load(version, tensors)

    world = World()
    world.engine = Torn()
    world.worker = world.make_worker()
    under_way(world)
    accepted = world.buffer.stats()["num_buffered"]
    world.receiver.publish(1)
    with pytest.raises(UpdateTorn, match="third tensor"):
        world.worker.run(RUNNING)
    assert world.buffer.stats()["num_buffered"] == accepted
    assert world.worker.beat().version == 0


@pytest.mark.parametrize("error", [UpdateLost("owner died"), UpdateStalled("late")])
def test_without_the_new_weights_it_goes_on_with_the_old(error: UpdateLost) -> None:
    world = World()
    world.receiver.publish(0)
    world.worker.turn()
    kept = world.receiver.tensors

    def tensors(update: Any) -> Iterator[Any]:
        world.receiver.tensors = kept  # type: ignore[method-assign]
        raise error

    world.receiver.tensors = tensors  # type: ignore[method-assign]
    world.receiver.publish(1)
    world.worker.turn()
    assert world.engine.version == 0
    (lost,) = world.events_of("update_lost")
    assert (lost["version"], lost["message"]) == (1, str(error))
    world.worker.turn()
    assert world.engine.version == 1, "the board told of it again"


def test_an_engine_sleeps_on_when_an_update_is_lost() -> None:
    world = World(max_staleness=0, num_sharing_workers=1)
    world.receiver.publish(0)
    world.batch(0)
    kept = world.receiver.tensors

    def tensors(update: Any) -> Iterator[Any]:
        raise UpdateLost("owner died")

    world.receiver.tensors = tensors  # type: ignore[method-assign]
    world.receiver.publish(1)
    world.buffer.trained(1)
    for _ in range(5):
        world.worker.turn()
    assert world.engine.asleep
    assert world.worker.beat().token_s is None
    world.receiver.tensors = kept  # type: ignore[method-assign]
    world.batch(1)
    assert world.engine.version == 1
