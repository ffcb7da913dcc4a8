"""The worker's loop with a scripted engine, and replay in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from replay.buffer import ReplayBuffer
from replay.scripted import scripted_group, scripted_prompt
from rollout_worker.engine import GREEDY, GenerationRequest
from rollout_worker.groups import rollout_seed
from rollout_worker.scripted_engine import ScriptedEngine
from slipstream.errors import DeadlineExceeded, ProbeMismatch
from slipstream.records import (
    Batch,
    FailureReason,
    Probe,
    RolloutFailure,
    Stop,
    Wait,
)
from tests.helpers.jobs import make_job
from tests.helpers.rollbacks import gone_back
from tests.helpers.workers import World


def test_it_serves_only_after_a_published_version() -> None:
    world = World()
    for _ in range(50):
        world.worker.turn()
    assert world.engine.num_running == 0
    world.receiver.publish(0)
    assert len(world.batch(0).groups) == 4


def test_groups_are_whole_and_free_slots_are_leased_for() -> None:
    world = World()
    world.receiver.publish(0)
    world.turn_until(lambda: world.engine.num_running >= 13)
    batch = world.batch(0)
    assert [len(entry.group.rollouts) for entry in batch.groups] == [4] * 4
    assert world.buffer.stats()["refusals"] == {}


def test_a_lease_of_a_newer_version_waits_for_its_adoption() -> None:
    world = World(max_staleness=0)
    world.receiver.publish(0)
    world.batch(0)
    world.buffer.trained(1)
    for _ in range(50):
        world.worker.turn()
        time.sleep(0.001)
    assert world.buffer.stats()["num_running"] == 4
    assert world.engine.num_running == 0, "it began with weights that are too old"
    world.receiver.publish(1)
    assert all(entry.group.oldest_version == 1 for entry in world.batch(1).groups)


def test_the_same_lease_gives_the_same_tokens_in_another_worker() -> None:
    tokens = []
    for _ in range(2):
        world = World(max_staleness=0)
        world.receiver.publish(0)
        tokens.append(
            [r.token_ids.tolist() for e in world.batch(0).groups for r in e.group.rollouts]
        )
    assert tokens[0] == tokens[1]
    assert (
        len({rollout_seed(0, o, a, p) for o in range(9) for a in range(3) for p in range(9)}) == 243
    )


def test_a_failed_reward_is_refused_by_reason_and_issued_again() -> None:
    failing = RolloutFailure(reason=FailureReason.REWARD_ERROR, detail="no")

    def score(prompt: str, answers: list[str], item: Any) -> list[float | RolloutFailure]:
        return [failing if prompt == "2" else 1.0 for _ in answers]

    world = World(max_attempts=2, score=score)
    world.receiver.publish(0)
    batch = world.batch(0)
    world.turn_until(lambda: world.buffer.stats()["drops"] == {"failed": 1})
    assert 2 not in [entry.group.ordinal for entry in batch.groups]
    assert world.buffer.stats()["failures"] == {"reward_error": 8}
    refused = [event for event in world.events.drain() if event["kind"] == "refused"]
    assert [event["reason"] for event in refused] == ["failed_rollout"] * 2


def test_a_greedy_answer_is_scored_beside_each_group_and_does_not_train() -> None:
    asked: list[float] = []

    class Engine(ScriptedEngine):
        def submit(self, request: GenerationRequest) -> None:
            asked.append(request.temperature)
            super().submit(request)

    def score(prompt: str, answers: list[str], item: Any) -> list[float | RolloutFailure]:
        return [float(index) for index in range(len(answers))]

    world = World(needs_greedy=True, score=score)
    world.job = make_job(algorithm={"advantage": {"kind": "remax"}})
    world.engine = Engine()
    world.worker = world.make_worker()
    world.receiver.publish(0)
    for entry in world.batch(0).groups:
        assert [rollout.reward for rollout in entry.group.rollouts] == [0.0, 1.0, 2.0, 3.0]
        assert entry.group.greedy_reward == 4.0
    assert asked[:5] == [1.0] * 4 + [GREEDY]


def test_on_shared_devices_it_sleeps_for_the_learners_turn() -> None:
    world = World(max_staleness=0, num_sharing_workers=1)
    world.receiver.publish(0)
    world.batch(0)
    assert world.engine.asleep
    world.receiver.publish(1)
    world.buffer.trained(1)
    world.batch(1)
    assert world.engine.version == 1


def test_after_a_discarded_batch_it_wakes_with_the_same_weights() -> None:
    world = World(max_staleness=0, num_sharing_workers=1)
    world.receiver.publish(0)
    discarded = world.batch(0)
    assert world.engine.asleep
    world.buffer.discard(0, number=discarded.number)
    again = world.batch(0)
    ordinals = [[entry.group.ordinal for entry in batch.groups] for batch in (discarded, again)]
    assert ordinals == [[0, 1, 2, 3], [4, 5, 6, 7]]
    adopted = [event["version"] for event in world.events.drain() if event["kind"] == "adopted"]
    assert adopted == [0, 0]


def test_an_adoption_tells_how_long_the_engine_stood_still() -> None:
    world = World()
    tokens = np.arange(5, dtype=np.int32)
    world.receiver.publish(0, Probe(token_ids=tokens, logprobs=world.engine.score(tokens)))
    world.engine.load = slowly(world.engine.load)  # type: ignore[method-assign]
    world.engine.score = slowly(world.engine.score)  # type: ignore[method-assign]
    world.worker.turn()
    (adopted,) = world.events_of("adopted")
    assert adopted["load_s"] >= 0.02
    assert adopted["pause_s"] >= adopted["load_s"] + 0.02, "the probe is part of it"
    assert adopted["wire_s"] == world.receiver.wire_s


def slowly(call: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        time.sleep(0.02)
        return call(*arguments)

    return slow


def test_a_worker_that_wakes_early_sleeps_again_before_the_learners_next_turn() -> None:
    """Two workers in turns; the one that adopts first leaves nothing for the other to do."""
    world = World(max_staleness=0, num_sharing_workers=2)
    other = ("rollout-1", 0, 4, 0.0)
    world.receiver.publish(0)
    world.turn_until(lambda: world.buffer.stats()["num_buffered"] == 4)
    world.turn_until(lambda: world.engine.asleep)
    world.buffer.lease(*other, yielded_version=0)
    world.batch(0)
    world.receiver.publish(1)
    world.turn_until(lambda: world.engine.version == 1)  # before replay knows of it
    for _ in range(50):
        world.worker.turn()
    assert not world.engine.asleep
    world.buffer.trained(1)
    for lease in world.buffer.lease(*other, yielded_version=0).leases:
        world.buffer.put(scripted_group(lease, rewards=(0, 1, 0, 1)), 0.0)
    world.buffer.lease(*other, yielded_version=1)
    assert isinstance(world.buffer.take(1, 0.0), Wait)
    world.turn_until(lambda: isinstance(world.buffer.take(1, 0.0), Batch))
    assert world.engine.asleep


def test_an_evaluation_waits_while_the_engine_sleeps() -> None:
    world = World(max_staleness=0, num_sharing_workers=1)
    world.receiver.publish(0)
    world.batch(0)
    world.worker.request_evaluation(0, {"eval": [scripted_prompt(0)]})
    for _ in range(20):
        world.worker.turn()
    assert world.engine.asleep
    world.receiver.publish(1)
    found: list[dict[str, Any]] = []

    def evaluated() -> bool:
        found.extend(event for event in world.events.drain() if event["kind"] == "eval")
        return bool(found)

    world.turn_until(evaluated)
    assert [event["version"] for event in found] == [1]


def test_stop_abandons_what_is_in_flight() -> None:
    world = World()
    world.receiver.publish(0)
    world.turn_until(lambda: world.engine.num_running > 0)
    world.buffer.stop("enough")
    world.turn_until(lambda: world.engine.num_running == 0)
    assert isinstance(world.buffer.take(0, 0.0), Stop)


def test_a_probe_that_differs_ends_the_worker() -> None:
    world = World()
    tokens = np.arange(5, dtype=np.int32)
    right = world.engine.score(tokens)
    world.receiver.publish(0, Probe(token_ids=tokens, logprobs=right))
    world.worker.turn()
    world.receiver.publish(1, Probe(token_ids=tokens, logprobs=right - np.float32(0.01)))
    with pytest.raises(ProbeMismatch, match=r"version 1 .* 1\.00e-02"):
        world.worker.turn()


def test_a_probe_that_is_not_a_number_ends_the_worker() -> None:
    world = World()
    nothing = np.full(4, np.nan, dtype=np.float32)
    world.receiver.publish(0, Probe(token_ids=np.arange(5, dtype=np.int32), logprobs=nothing))
    with pytest.raises(ProbeMismatch):
        world.worker.turn()


def test_a_silent_replay_ends_the_worker_at_the_deadline() -> None:
    world = World()
    world.job = make_job(replay={"call_timeout_s": 0.02})

    class Silent:
        def lease(self, *_: Any, **__: Any) -> Future[Any]:
            return Future()

    world.replay = Silent()
    world.worker = world.make_worker()
    world.receiver.publish(0)
    with pytest.raises(DeadlineExceeded, match="did not answer lease"):
        world.turn_until(lambda: False)


def test_an_evaluation_is_of_one_version_beside_the_rollouts() -> None:
    world = World()
    world.receiver.publish(0)
    world.worker.request_evaluation(0, {"eval": [scripted_prompt(o) for o in range(5)]})
    found: list[dict[str, Any]] = []

    def evaluated() -> bool:
        world.receiver.publish(1)
        found.extend(event for event in world.events.drain() if event["kind"] == "eval")
        return bool(found)

    world.turn_until(evaluated)
    assert found[0]["version"] == 0
    assert found[0]["num_prompts"] == 5
    assert found[0]["num_failures"] == 0
    world.turn_until(lambda: world.engine.version == 1)


def test_a_transfer_is_carried_out_as_a_whole() -> None:
    world = World()
    world.receiver.publish(0)
    world.turn_until(lambda: world.engine.num_running > 0)
    update = world.receiver.newest
    assert update is not None
    newer = replace(update, version=1)
    calls = [
        ("start_weight_update", {}),
        ("update_weights", {}),
        ("finish_weight_update", {"update": newer}),
    ]
    running = world.engine.num_running
    asked = [world.worker.request_transfer(*calls[0])]

    def learner() -> None:
        for call in calls[1:]:
            asked[-1].result(timeout=5)
            asked.append(world.worker.request_transfer(*call))

    thread = threading.Thread(target=learner)
    thread.start()
    world.worker.turn()
    thread.join()
    asked[-1].result(timeout=5)
    assert world.engine.version == 1
    assert world.engine.num_running >= running - 4


def test_when_the_run_goes_back_it_adopts_the_older_version_and_starts_anew() -> None:
    world = World()
    world.receiver.publish(0)
    world.batch(0)
    world.receiver.publish(1)
    world.buffer.trained(1)
    commit = world.buffer.snapshot()
    world.turn_until(lambda: world.engine.version == 1 and world.engine.num_running > 0)
    first_new = world.buffer.state.next_lease_id
    restored = gone_back(world.buffer.state, commit, world.buffer.rules, timeline=1)
    world.buffer = ReplayBuffer(world.buffer.rules, scripted_prompt, state=restored)
    world.replay.buffer = world.buffer
    for _ in range(100):
        world.worker.turn()
    assert world.engine.num_running == 0, "what ran is void, and the new leases wait"
    assert min(world.buffer.state.running) == first_new
    world.receiver.publish(1, timeline=1)

    def ready() -> bool:
        return isinstance(world.buffer.take(1, time.monotonic(), timeline=1), Batch)

    world.turn_until(ready)
    assert set(world.buffer.stats()["refusals"]) <= {"unknown_lease"}  # what was scored already


def test_one_group_of_so_many_is_told_for_people() -> None:
    failing = RolloutFailure(reason=FailureReason.REWARD_ERROR, detail="no")

    def score(prompt: str, answers: list[str], item: Any) -> list[float | RolloutFailure]:
        return [0.5, failing if prompt == "3" else 1.0, 0.0, 1.0]

    world = World(score=score)
    world.job = make_job(telemetry={"sample_every_groups": 3, "max_sample_chars": 5})
    world.worker = world.make_worker()
    world.receiver.publish(0)
    world.turn_until(lambda: world.buffer.stats()["num_running"] == 0)
    samples = {event["ordinal"]: event for event in world.events_of("sample")}
    assert sorted(samples) == [0, 3, 6]
    assert samples[3]["prompt"] == "3"
    first, failed, *_ = samples[3]["answers"]
    assert (first["reward"], failed["reward"]) == (0.5, None)
    assert len(samples[3]["answers"]) == 4
    assert first["spans"] == [[0, first["num_tokens"]]]
    assert first["finish_reason"] in ("eos", "length")
    assert any(
        answer["text"][5:].startswith(" [and ") and len(answer["text"]) < 40
        for sample in samples.values()
        for answer in sample["answers"]
    )


def test_without_a_share_nothing_is_told_for_people() -> None:
    world = World()
    world.job = make_job(telemetry={"sample_every_groups": 0})
    world.worker = world.make_worker()
    world.receiver.publish(0)
    world.batch(0)
    assert world.events_of("sample") == []
