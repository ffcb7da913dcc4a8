"""The Ray shell of a rollout worker.

vLLM is imported in the actor's own process, after its environment is set, and as the actor is
made: that takes seconds in which replay reads the data.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import ray

from slipstream.affinity import bind_process
from slipstream.config.job import JobConfig
from slipstream.errors import UpdateLost
from slipstream.protocols import ReplayForWorkers
from slipstream.records import Prompt, WeightUpdate
from slipstream.telemetry import EventLog


class RolloutWorkerActor:
    """`start`, then `run`, which is the loop; the other methods answer beside it."""

    def __init__(self, job: JobConfig, index: int, incarnation: int, cores: Sequence[int]) -> None:
        bind_process(cores)
        from rollout_worker.vllm_engine import import_vllm

        import_vllm(job.rollout, cores)
        self._job = job
        self._name = f"rollout-{index}"
        self._incarnation = incarnation
        self._stopping = threading.Event()
        self._events = EventLog("rollout", index)
        self._worker: Any = None

    def start(self, replay: ReplayForWorkers, board: Any) -> None:
        """Start the engine and the scoring processes."""
        from rollout_worker.build import build_worker

        timeout_s = self._job.weights.timeout_s

        def wait_newer(held: tuple[int, int]) -> Future[WeightUpdate | None]:
            return board.wait_newer.remote(held).future()  # type: ignore[no-any-return]

        def get(reference: Any) -> Any:
            try:
                return ray.get(reference, timeout=timeout_s)
            except ray.exceptions.OwnerDiedError as error:
                raise UpdateLost(str(error)) from None

        self._worker = build_worker(
            self._job,
            self._name,
            self._incarnation,
            replay=replay,
            wait_newer=wait_newer,
            get=get,
            events=self._events,
        )

    def run(self) -> None:
        """Roll out until `stop`."""
        try:
            self._worker.run(self._stopping)
        finally:
            self._worker.close()

    def request_evaluation(self, version: int, prompts: tuple[Prompt, ...]) -> None:
        """Evaluate held-out prompts once the engine holds `version`."""
        self._worker.request_evaluation(version, prompts)

    def transfer(self, call: str, payload: Mapping[str, Any]) -> None:
        """One call of a weight transfer; answers when the loop has carried it out."""
        self._worker.request_transfer(call, payload).result(timeout=self._job.weights.timeout_s)

    def drain(self) -> Sequence[Mapping[str, Any]]:
        return self._events.drain()

    def stop(self) -> None:
        self._stopping.set()

    def __repr__(self) -> str:
        return f"{self._name} v{self._worker.version if self._worker else '-'}"
