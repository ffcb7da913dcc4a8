"""A rollout worker with a scripted engine, and replay in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from replay.buffer import ReplayBuffer
from replay.rules import Rules
from replay.scripted import LocalReplay, scripted_prompt
from rollout_worker.scripted_engine import ScriptedEngine
from rollout_worker.worker import RolloutWorker
from slipstream.records import Batch, Probe, RolloutFailure, WeightUpdate
from slipstream.telemetry import EventLog
from tests.helpers.jobs import make_job

Scores = Callable[[str, list[str], Any], list[float | RolloutFailure]]


class Receiver:
    """Hands out the newest update that a test has published."""

    def __init__(self) -> None:
        self.newest: WeightUpdate | None = None
        self.wire_s = 0.25

    def publish(self, version: int, probe: Probe | None = None, timeline: int = 0) -> None:
        self.newest = WeightUpdate(
            timeline=timeline,
            version=version,
            bucket_specs=(),
            buckets=(),
            probe=probe,
            published_at_s=time.time(),
        )

    def poll(self, held: tuple[int, int]) -> WeightUpdate | None:
        newer = self.newest is not None and self.newest.order > held
        return self.newest if newer else None

    def tensors(self, update: WeightUpdate) -> Iterator[tuple[str, Any]]:
        return iter(())


class Rewards:
    """Scores at once, by the function given."""

    def __init__(self, score: Scores) -> None:
        self._score = score

    def score(self, prompt: str, answers: list[str], item: Any) -> Future[list[Any]]:
        done: Future[list[Any]] = Future()
        done.set_result(self._score(prompt, answers, item))
        return done

    def close(self) -> None:
        pass


class World:
    """A worker, its engine, and a replay of B = 4 groups of G = 4."""

    def __init__(
        self,
        *,
        max_staleness: int = 1,
        score: Scores | None = None,
        probe_every_s: float = 3600.0,
        **rules: Any,
    ) -> None:
        colocate = rules.get("num_sharing_workers", 0) > 0
        self.job = make_job(
            rollout={"colocate": colocate},
            replay={"max_staleness": max_staleness},
            health={"probe_every_s": probe_every_s},
        )
        self.buffer = ReplayBuffer(
            Rules(
                **{
                    "group_size": 4,
                    "groups_per_batch": 4,
                    "num_steps": 3,
                    "max_staleness": max_staleness,
                    **rules,
                }
            ),
            scripted_prompt,
        )
        self.engine, self.receiver = ScriptedEngine(), Receiver()
        self.events = EventLog("rollout", 0)
        self.replay: Any = LocalReplay(self.buffer)
        self.score = score or (lambda prompt, answers, item: [float(len(a) % 2) for a in answers])
        self.worker = self.make_worker()

    def make_worker(self) -> RolloutWorker:
        return RolloutWorker(
            self.job,
            "rollout-0",
            0,
            engine=self.engine,
            replay=self.replay,
            receiver=self.receiver,
            rewards=Rewards(self.score),  # type: ignore[arg-type]
            decode=lambda token_ids: " ".join(map(str, token_ids)),
            events=self.events,
        )

    def turn_until(self, happened: Callable[[], bool], turns: int = 3000) -> None:
        for _ in range(turns):
            self.worker.turn()
            if happened():
                return
            time.sleep(0.0005)
        raise AssertionError("it never happened")

    def batch(self, version: int) -> Batch:
        reply: Any = None

        def ready() -> bool:
            nonlocal reply
            reply = self.buffer.take(version, time.monotonic())
            return isinstance(reply, Batch)

        self.turn_until(ready)
        assert isinstance(reply, Batch)
        return reply

    def events_of(self, kind: str) -> list[dict[str, Any]]:
        """Those since the last call; the others are gone."""
        return [dict(event) for event in self.events.drain() if event["kind"] == kind]
