"""`make bench-replay`: how fast replay moves groups, beside `ray.util.queue.Queue`; writes
docs/results/bench_replay.md.

Both move the same groups between real Ray actors: producers that put them, one consumer that gets
them. Through replay a group is leased, put, taken in a batch and trained; through the queue it is
put and got. Producers hand replay PER_CALL groups a call, as a worker does with what it has scored
in one turn; the queue is shown with one group a call (`put`, `get`), as it is used, and with as
many as replay gets (`put_nowait_batch`, `get_nowait_batch`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.queue import Empty, Full, Queue
from results import ROOT, signature, table, write

from replay.actor import ReplayActor, ReplayClient
from replay.scripted import scripted_group, scripted_lease
from slipstream.config.job import JobConfig
from slipstream.records import Batch, Group, LeaseReply

NUM_PRODUCERS = (1, 4, 16)
PAYLOADS = {"2 kB": 32, "200 kB": 3125}  # tokens an answer; 8 answers of 8 bytes a token
DURABILITIES = ("commit", "flush", "off")
PER_CALL, PER_BATCH, GROUP_SIZE, MAX_PUTS = 8, 32, 8, 4
REWARDS = tuple(float(place % 2) for place in range(GROUP_SIZE))
WARM_UP_S, MEASURED_S, DEADLINE_S = 2.0, 6.0, 60.0
Times = dict[str, list[float]]


class Clock:
    """Seconds of calls by name, from the end of the warm-up on."""

    def __init__(self, start_s: float) -> None:
        self.times: Times = {}
        self.count = 0
        self._started_s: dict[Future[Any], float] = {}
        self._from_s, self.until_s = start_s + WARM_UP_S, start_s + WARM_UP_S + MEASURED_S

    def call(self, name: str, function: Callable[[], Any]) -> Any:
        start_s = time.time()
        answer = function()
        if self._from_s <= start_s:
            self.times.setdefault(name, []).append(time.time() - start_s)
        return answer

    def started(self, call: Future[Any]) -> Future[Any]:
        self._started_s[call] = time.time()
        return call

    def ended(self, name: str, call: Future[Any]) -> None:
        start_s = self._started_s.pop(call)
        if self._from_s <= start_s:
            self.times.setdefault(name, []).append(time.time() - start_s)

    def moved(self, num_groups: int) -> None:
        if self._from_s <= time.time() < self.until_s:
            self.count += num_groups


@ray.remote(num_cpus=0)
class Producer:
    def to_replay(self, name: str, client: ReplayClient, num_tokens: int, start_s: float) -> Times:
        """As a worker does: one lease call under way at a time, and puts beside it."""
        clock = Clock(start_s)
        asked: Future[LeaseReply] | None = None
        puts: dict[Future[Any], list[int]] = {}  # the leases that each is for
        while time.time() < clock.until_s:
            if asked is None and len(puts) < MAX_PUTS:
                held = [lease_id for leases in puts.values() for lease_id in leases]
                asked = client.lease(name, 0, PER_CALL, held=held, yielded_version=None)
                clock.started(asked)
            under_way = [*puts, *([] if asked is None else [asked])]
            for call in wait(under_way, DEADLINE_S, FIRST_COMPLETED).done:
                if call is not asked:
                    clock.ended("put", call)
                    del puts[call]
                    assert all(reply.refused is None for reply in call.result())
                    continue
                clock.ended("lease", call)
                asked, leases = None, call.result().leases
                if leases:
                    groups = [
                        scripted_group(lease, rewards=REWARDS, num_tokens=num_tokens)
                        for lease in leases
                    ]
                    put = clock.started(client.put(groups))
                    puts[put] = [lease.lease_id for lease in leases]
        return clock.times

    def to_queue(self, queue: Queue, num_tokens: int, start_s: float, per_call: int) -> Times:
        clock = Clock(start_s)
        lease = scripted_lease(0, 0)
        while time.time() < clock.until_s:
            groups = [
                scripted_group(lease, rewards=REWARDS, num_tokens=num_tokens)
                for _ in range(per_call)
            ]
            try:
                if per_call == 1:
                    clock.call("put", lambda groups=groups: queue.put(groups[0], timeout=1.0))
                else:
                    clock.call("put", lambda groups=groups: queue.put_nowait_batch(groups))
            except Full:
                time.sleep(0.001)
        return clock.times


@ray.remote(num_cpus=0)
class Consumer:
    def from_replay(self, client: ReplayClient, start_s: float) -> tuple[int, Times]:
        clock, version = Clock(start_s), 0
        while time.time() < clock.until_s:
            batch = client.take(version, 0).result(DEADLINE_S)
            if not isinstance(batch, Batch):
                continue
            version += 1
            trained = client.trained(version, 0)
            clock.call("trained", lambda trained=trained: trained.result(DEADLINE_S))
            clock.moved(len(batch.groups))
        return clock.count, clock.times

    def take_what_is_there(self, client: ReplayClient, num_batches: int) -> Times:
        """Each batch is whole when it is asked for: what `take` itself costs."""
        clock = Clock(time.time() - WARM_UP_S)
        for version in range(num_batches):
            ask = client.take(version, 0)
            batch = clock.call("take", lambda ask=ask: ask.result(DEADLINE_S))
            assert isinstance(batch, Batch)
            client.trained(version + 1, 0).result(DEADLINE_S)
        return clock.times

    def from_queue(self, queue: Queue, start_s: float, per_call: int) -> tuple[int, Times]:
        clock = Clock(start_s)
        while time.time() < clock.until_s:
            try:
                if per_call == 1:
                    clock.call("get", lambda: queue.get(timeout=1.0))
                    clock.moved(1)
                else:
                    got = clock.call("get", lambda: queue.get_nowait_batch(per_call))
                    clock.moved(len(got))
            except Empty:
                time.sleep(0.001)
        return clock.count, clock.times


def job_of(directory: Path, durability: str) -> JobConfig:
    items = directory / "items.jsonl"
    items.write_text("".join(json.dumps({"prompt": f"{i}+1="}) + "\n" for i in range(1000)))
    return JobConfig.model_validate(
        {
            "name": "bench",
            "mode": "buffered",
            "model": {"path": str(ROOT / "examples" / "arithmetic" / "base_model")},
            "data": {"train": {"kind": "jsonl", "path": str(items)}},
            "reward": {"kind": "exact_match"},
            "rollout": {"group_size": GROUP_SIZE},
            "learner": {"num_steps": 10**6, "groups_per_batch": PER_BATCH},
            "replay": {"max_staleness": 15, "on_stale": "requeue", "durability": durability},
        }
    )


def with_replay(durability: str) -> Iterator[ReplayClient]:
    directory = Path(tempfile.mkdtemp(prefix="bench-replay-", dir=ROOT / "runs"))
    actor = (
        ray.remote(ReplayActor).options(num_cpus=0).remote(job_of(directory, durability), directory)
    )
    ray.get(actor.open.remote())
    try:
        yield ReplayClient(actor)
    finally:
        ray.kill(actor)
        shutil.rmtree(directory)


def move_by_replay(durability: str, num_producers: int, num_tokens: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for client in with_replay(durability):
        producers, consumer, start_s = actors(num_producers)
        done = consumer.from_replay.remote(client, start_s)
        puts = [
            producer.to_replay.remote(f"w{index}", client, num_tokens, start_s)
            for index, producer in enumerate(producers)
        ]
        figures = figures_of(ray.get(done), ray.get(puts))
    for client in with_replay(durability):
        _, consumer, _ = actors(0)
        num_batches = 16
        for _ in range(num_batches * PER_BATCH // PER_CALL):
            reply = client.lease("w0", 0, PER_CALL, held=(), yielded_version=None).result()
            groups: list[Group] = [
                scripted_group(lease, rewards=REWARDS, num_tokens=num_tokens)
                for lease in reply.leases
            ]
            client.put(groups).result()
        times = ray.get(consumer.take_what_is_there.remote(client, num_batches))
        figures["calls"] |= calls_of([times])
    return figures


def move_by_queue(per_call: int, num_producers: int, num_tokens: int) -> dict[str, Any]:
    queue = Queue(maxsize=16 * PER_BATCH, actor_options={"num_cpus": 0})
    producers, consumer, start_s = actors(num_producers)
    done = consumer.from_queue.remote(queue, start_s, per_call)
    puts = [p.to_queue.remote(queue, num_tokens, start_s, per_call) for p in producers]
    figures = figures_of(ray.get(done), ray.get(puts))
    queue.shutdown(force=True)
    return figures


def actors(num_producers: int) -> tuple[list[Any], Any, float]:
    """Processes that are up, and when all of them begin."""
    producers, consumer = [Producer.remote() for _ in range(num_producers)], Consumer.remote()
    ray.get([actor.__ray_ready__.remote() for actor in [*producers, consumer]])
    return producers, consumer, time.time()


def figures_of(consumed: tuple[int, Times], produced: list[Times]) -> dict[str, Any]:
    count, times = consumed
    return {"groups_per_s": count / MEASURED_S, "calls": calls_of([times, *produced])}


def calls_of(times: list[Times]) -> dict[str, dict[str, float]]:
    """Milliseconds by call."""
    names = sorted({name for one in times for name in one})
    all_of = {name: [s for one in times for s in one.get(name, [])] for name in names}
    return {
        name: {f"p{q}_ms": 1e3 * float(np.percentile(seconds, q)) for q in (50, 99)}
        for name, seconds in all_of.items()
    }


def main() -> None:
    (ROOT / "runs").mkdir(exist_ok=True)
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    results: dict[str, dict[str, Any]] = {}
    for payload, num_tokens in PAYLOADS.items():
        for num_producers in NUM_PRODUCERS:
            found: dict[str, Any] = {
                "queue": move_by_queue(1, num_producers, num_tokens),
                "queue, batches": move_by_queue(PER_CALL, num_producers, num_tokens),
            }
            for durability in DURABILITIES:
                found[durability] = move_by_replay(durability, num_producers, num_tokens)
            results[f"{payload}, {num_producers}"] = found
            rates = {name: round(figures["groups_per_s"]) for name, figures in found.items()}
            print(payload, num_producers, rates, flush=True)
    ray.shutdown()
    write("bench_replay", page(results), results)


def page(results: dict[str, dict[str, Any]]) -> str:
    head = ["payload, producers", *next(iter(results.values())), "commit over queue"]
    rows = [
        [
            where,
            *(f"{figures['groups_per_s']:,.0f}" for figures in found.values()),
            f"{found['commit']['groups_per_s'] / found['queue']['groups_per_s']:.1f}",
        ]
        for where, found in results.items()
    ]
    calls = ("lease", "put", "take", "trained")
    latencies = [
        [
            where,
            *(
                f"{found['commit']['calls'][call]['p50_ms']:.1f}, "
                f"{found['commit']['calls'][call]['p99_ms']:.1f}"
                for call in calls
            ),
            *(
                f"{found['queue']['calls'][call]['p50_ms']:.1f}, "
                f"{found['queue']['calls'][call]['p99_ms']:.1f}"
                for call in ("put", "get")
            ),
        ]
        for where, found in results.items()
    ]
    return "\n".join(
        [
            "# How fast replay moves groups",
            "",
            signature("make bench-replay"),
            f"Groups of {GROUP_SIZE} answers; {PER_CALL} a call (but for `queue`, one a call), "
            f"{PER_BATCH} a batch, {MEASURED_S:.0f} s each after a warm-up. Groups a second, by "
            "`replay.durability`:",
            "",
            table(head, rows),
            "",
            "Milliseconds of a call as its caller sees it (median, 99th percentile), with "
            "`durability: commit`, and of the queue. `take` of a batch that is whole already, "
            "without load; the others under full load, with the waiting for room and for the "
            "disk.",
            "",
            table(
                ["payload, producers", *calls, "queue put", "queue get"],
                latencies,
            ),
            "",
        ]
    )


if __name__ == "__main__":
    main()
