"""What a worker tells of itself while it works, waits, sleeps or hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from replay.scripted import scripted_prompt
from rollout_worker.engine import Generation
from rollout_worker.scripted_engine import ScriptedEngine
from tests.helpers.workers import World

NEVER_S = 3600.0


class SlowEngine(ScriptedEngine):
    """Its steps wait for `go_on`, and make nothing while `starves`."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.starves = False

    def step(self) -> list[Generation]:
        assert self.go_on.wait(10)
        return [] if self.starves else super().step()


def slow_world(**rules: Any) -> World:
    world = World(**rules)
    world.engine = SlowEngine()
    world.worker = world.make_worker()
    return world


def wait_until(happened: Any) -> None:
    deadline_s = time.monotonic() + 10.0
    while not happened():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.001)


def tokens_of(world: World, num_batches: int) -> list[Any]:
    tokens = []
    for version in range(num_batches):
        if version:
            world.buffer.trained(version)
        world.receiver.publish(version)
        # Idle for a while: the batch is there, and the next version is not.
        for entry in world.batch(version).groups:
            tokens.append([rollout.token_ids.tolist() for rollout in entry.group.rollouts])
        for _ in range(20):
            world.worker.turn()
    return tokens


def test_before_the_first_weights_it_has_no_tokens_to_tell_of() -> None:
    world = World(probe_every_s=1e-6)
    world.worker.turn()
    beat = world.worker.beat()
    assert (beat.timeline, beat.version) == (0, -1)
    assert (beat.phase, beat.token_s, beat.leaving) == ("between", None, False)
    assert world.engine.num_tokens == 0, "it was probed without weights"


def test_a_step_that_hangs_shows_in_the_phase() -> None:
    world = slow_world()
    engine = world.engine
    assert isinstance(engine, SlowEngine)
    world.receiver.publish(0)
    stopping = threading.Event()
    thread = threading.Thread(target=world.worker.run, args=[stopping])
    thread.start()
    wait_until(lambda: world.worker.beat().phase == "generate")
    time.sleep(0.05)
    beat = world.worker.beat()
    assert beat.phase_s >= 0.05
    assert beat.token_s is not None
    assert beat.token_s >= 0.05
    assert beat.version == 0
    engine.go_on.set()
    wait_until(lambda: world.engine.num_tokens > 100)
    assert world.worker.beat().phase_s < 0.05
    stopping.set()
    thread.join(10)


def test_steps_without_tokens_show_in_their_age() -> None:
    world = slow_world()
    engine = world.engine
    assert isinstance(engine, SlowEngine)
    engine.go_on.set()
    world.receiver.publish(0)
    world.turn_until(lambda: engine.num_tokens > 0)
    world.worker.turn()
    engine.starves = True
    time.sleep(0.03)
    world.worker.turn()
    starving = world.worker.beat().token_s
    engine.starves = False
    world.worker.turn()
    fed = world.worker.beat().token_s
    assert starving is not None
    assert fed is not None
    assert fed < 0.03 <= starving


def test_an_adoption_under_way_is_no_engine_that_makes_nothing() -> None:
    world = World()
    world.receiver.publish(0)
    world.worker.turn()
    beats = []

    def tensors(update: Any) -> Iterator[Any]:
        beats.append(world.worker.beat())
        return iter(())

    world.receiver.tensors = tensors  # type: ignore[method-assign]
    world.receiver.publish(1)
    world.worker.turn()
    assert [(beat.phase, beat.token_s, beat.version) for beat in beats] == [("adopt", None, 0)]
    assert world.worker.beat().version == 1


def test_an_idle_engine_makes_a_token_of_a_probe() -> None:
    world = World(max_staleness=0, probe_every_s=0.02)
    world.receiver.publish(0)
    world.batch(0)
    for _ in range(5):
        world.worker.turn()
    made = world.engine.num_tokens
    time.sleep(0.03)
    world.worker.turn()
    beat = world.worker.beat()
    assert world.engine.num_tokens == made + 1
    assert beat.token_s is not None
    assert beat.token_s < 0.02
    world.worker.turn()
    assert world.engine.num_tokens == made + 1, "the next one is due later"


def test_rollouts_are_the_same_with_and_without_probes() -> None:
    seldom = World(max_staleness=0, probe_every_s=NEVER_S)
    often = World(max_staleness=0, probe_every_s=1e-6)
    assert tokens_of(seldom, 3) == tokens_of(often, 3)
    assert often.engine.num_tokens > seldom.engine.num_tokens


def test_a_probe_is_not_counted_among_the_rollouts_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(max_staleness=0, probe_every_s=1e-6)
    world.receiver.publish(0)
    batch = world.batch(0)
    monkeypatch.setattr("rollout_worker.worker.REPORT_EVERY_S", 0.0)
    stopping = threading.Event()
    thread = threading.Thread(target=world.worker.run, args=[stopping])
    thread.start()
    wait_until(lambda: world.engine.num_tokens > 1000)
    stopping.set()
    thread.join(10)
    reported = sum(event["num_tokens"] for event in world.events_of("busy"))
    rollouts = [rollout for entry in batch.groups for rollout in entry.group.rollouts]
    assert reported == sum(len(rollout.token_ids) for rollout in rollouts)


def test_on_shared_devices_nothing_is_asked_of_a_sleeping_engine() -> None:
    world = World(max_staleness=0, num_sharing_workers=1, probe_every_s=1e-6)
    world.receiver.publish(0)
    world.batch(0)
    assert world.engine.asleep
    for _ in range(5):
        world.worker.turn()  # the scripted engine asserts that it is awake
    assert world.worker.beat().token_s is None
    world.receiver.publish(1)
    world.worker.turn()
    assert world.worker.beat().token_s is not None


def test_an_evaluation_and_a_probe_never_meet() -> None:
    world = World(max_staleness=0, probe_every_s=1e-6)
    world.receiver.publish(0)
    world.batch(0)
    world.worker.request_evaluation(0, {"eval": [scripted_prompt(o) for o in range(3)]})
    found: list[Any] = []

    def evaluated() -> bool:
        found.extend(world.events_of("eval"))
        return bool(found)

    world.turn_until(evaluated)
    assert found[0]["num_failures"] == 0
