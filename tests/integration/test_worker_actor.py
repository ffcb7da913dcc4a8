"""A rollout worker as a real Ray actor with the scripted engine; its replay is in its process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.actor import WeightBoard
from replay.buffer import ReplayBuffer
from replay.rules import Rules
from replay.scripted import LocalReplay, scripted_prompt
from rollout_worker.actor import RolloutWorkerActor, get_buckets
from rollout_worker.build import POISON
from slipstream.config.job import JobConfig
from slipstream.errors import UpdateLost, UpdateStalled
from slipstream.records import TensorSpec, WeightUpdate
from slipstream.telemetry import Beat
from tests.helpers.jobs import make_job, make_model

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0


class Worker(RolloutWorkerActor):
    def pid(self) -> int:
        return os.getpid()


class Owner:
    """Owns a bucket, and has one that never comes."""

    def put(self) -> list[Any]:
        import ray

        return [ray.put(np.zeros(1_000_000, dtype=np.uint8))]

    def never(self) -> None:
        time.sleep(3600)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    return make_job(
        make_model(tmp_path_factory.mktemp("job") / "model"),
        rollout={"engine": "scripted", "max_new_tokens": 64, "grace_s": 30.0},
        reward={"kind": "exact_match", "answer_field": "prompt"},
        weights={"probe": False},
    )


@pytest.fixture
def start(ray_cluster: Any, job: JobConfig) -> Iterator[Callable[..., tuple[Any, Any, int]]]:
    """Start a worker and set it to work: the actor, its call to `run`, its process."""
    ray, actors = ray_cluster, []
    board = ray.remote(WeightBoard).options(num_cpus=0).remote()
    bucket = ray.put(np.arange(4, dtype=np.float32).view(np.uint8))
    update = WeightUpdate(
        timeline=0,
        version=0,
        bucket_specs=((TensorSpec(name="a", dtype="float32", shape=(4,)),),),
        buckets=(bucket,),
        probe=None,
        published_at_s=time.time(),
    )
    ray.get(board.announce.remote(update), timeout=TIMEOUT_S)

    def start(poison: str = "") -> tuple[Any, Any, int]:
        environment = {"PYTHONPATH": str(ROOT), POISON: poison}
        options = {"num_cpus": 0, "max_concurrency": 6, "runtime_env": {"env_vars": environment}}
        actor = ray.remote(Worker).options(**options).remote(job, 0, 0, ())
        actors.append(actor)
        assert ray.get(actor.drain.remote(), timeout=TIMEOUT_S) == (None, [])
        replay = LocalReplay(ReplayBuffer(Rules.of(job), scripted_prompt))
        ray.get(actor.start.remote(replay, board), timeout=TIMEOUT_S)
        return actor, actor.run.remote(), ray.get(actor.pid.remote(), timeout=TIMEOUT_S)

    yield start
    for actor in [*actors, board]:
        ray.kill(actor)


def beat_where(ray: Any, actor: Any, is_so: Callable[[Beat], bool]) -> Beat:
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        beat, _ = ray.get(actor.drain.remote(), timeout=TIMEOUT_S)
        if is_so(beat):
            return beat  # type: ignore[no-any-return]
        time.sleep(0.01)
    raise AssertionError(f"it never was: {beat}")


def test_sigterm_means_leave(ray_cluster: Any, start: Callable[..., tuple[Any, Any, int]]) -> None:
    ray = ray_cluster
    actor, running, pid = start()
    beat_where(ray, actor, lambda beat: beat.phase == "generate" and beat.version == 0)
    os.kill(pid, signal.SIGTERM)
    assert ray.get(running, timeout=TIMEOUT_S) == "left"
    beat, events = ray.get(actor.drain.remote(), timeout=TIMEOUT_S)
    assert beat.leaving
    (left,) = [event for event in events if event["kind"] == "left"]
    assert left["reason"] == "SIGTERM"


def test_a_worker_that_hangs_says_so_and_a_second_sigterm_ends_it(
    ray_cluster: Any, start: Callable[..., tuple[Any, Any, int]]
) -> None:
    ray = ray_cluster
    actor, running, pid = start("hang 2")  # the prompt of ordinal 2
    beat_where(ray, actor, lambda beat: beat.phase == "generate" and beat.phase_s > 0.5)
    os.kill(pid, signal.SIGTERM)
    beat_where(ray, actor, lambda beat: beat.leaving)
    assert ray.wait([running], timeout=0.3)[0] == []
    os.kill(pid, signal.SIGTERM)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(running, timeout=10.0)


def test_buckets_that_are_late_may_come_again_and_those_of_the_dead_do_not(
    ray_cluster: Any,
) -> None:
    ray = ray_cluster
    owner = ray.remote(Owner).options(num_cpus=0).remote()
    buckets = ray.get(owner.put.remote(), timeout=TIMEOUT_S)
    assert [len(bucket) for bucket in get_buckets(buckets, TIMEOUT_S)] == [1_000_000]
    with pytest.raises(UpdateStalled, match=r"within 0\.2 s"):
        get_buckets([*buckets, owner.never.remote()], 0.2)
    ray.kill(owner)
    time.sleep(2.0)  # until the cluster knows
    with pytest.raises(UpdateLost, match="(?i)owner") as caught:
        get_buckets(buckets, TIMEOUT_S)
    assert not isinstance(caught.value, UpdateStalled)
