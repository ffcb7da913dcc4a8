"""The Ray shell of a rollout worker.

vLLM is imported in the actor's own process, after its environment is set, and as the actor is
made: that takes seconds in which replay reads the data. SIGTERM means `leave`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectFetchTimedOutError, ObjectLostError

from rollout_worker.preemption import on_sigterm
from rollout_worker.semaphores import remove_own
from slipstream.affinity import bind_process
from slipstream.config.job import JobConfig
from slipstream.errors import UpdateLost, UpdateStalled
from slipstream.protocols import ReplayForWorkers
from slipstream.records import Prompt, WeightUpdate
from slipstream.stacks import stacks
from slipstream.telemetry import Beat, EventLog


class RolloutWorkerActor:
    """`start`, then `run`, which is the loop; the other methods answer beside it."""

    def __init__(self, job: JobConfig, index: int, incarnation: int, cores: Sequence[int]) -> None:
        bind_process(cores)
        self._job = job
        self._name = f"rollout-{index}"
        self._incarnation = incarnation
        self._stopping = threading.Event()
        self._events = EventLog("rollout", index)
        self._worker: Any = None
        self._leave_reason: str | None = None
        on_sigterm(self.leave)
        if job.rollout.engine == "vllm":
            from rollout_worker.vllm_engine import import_vllm

            import_vllm(job.rollout, cores)

    def start(self, replay: ReplayForWorkers, board: Any) -> int:
        """Start the engine and the scoring processes; this process's id."""
        from rollout_worker.build import build_worker

        timeout_s = self._job.weights.timeout_s

        def wait_newer(held: tuple[int, int]) -> Future[WeightUpdate | None]:
            return board.wait_newer.remote(held).future()  # type: ignore[no-any-return]

        def get(buckets: Sequence[Any]) -> Any:
            return get_buckets(buckets, timeout_s)

        self._worker = build_worker(
            self._job,
            self._name,
            self._incarnation,
            replay=replay,
            wait_newer=wait_newer,
            get=get,
            events=self._events,
        )
        return os.getpid()

    def run(self) -> str:
        """Roll out until `stop` ("stopped"), until it has left ("left"), or until a later
        incarnation has its name ("replaced")."""
        if self._leave_reason is not None:  # asked before there was a worker
            self.leave(self._leave_reason)
        try:
            outcome: str = self._worker.run(self._stopping)
            return outcome
        finally:
            self._worker.close()
            remove_own()

    def request_evaluation(self, version: int, sets: Mapping[str, Sequence[Prompt]]) -> None:
        """Evaluate held-out prompts, by the name of their set, once the engine holds `version`."""
        self._worker.request_evaluation(version, sets)

    def transfer(self, call: str, payload: Mapping[str, Any]) -> None:
        """One call of a weight transfer; answers when the loop has carried it out."""
        self._worker.request_transfer(call, payload).result(timeout=self._job.weights.timeout_s)

    def drain(self) -> tuple[Beat | None, Sequence[Mapping[str, Any]]]:
        """What the worker does now, None until it has started, and the events since the last
        call."""
        worker = self._worker
        return worker.beat() if worker else None, self._events.drain()

    def leave(self, reason: str) -> None:
        """Finish what is under way within `rollout.grace_s`; `run` ends then. Answers at once."""
        self._leave_reason = reason
        if self._worker is not None:
            self._worker.leave(reason, self._job.rollout.grace_s)

    def stop(self) -> None:
        self._stopping.set()

    def stacks(self) -> str:
        """What every thread does."""
        return stacks()

    def __repr__(self) -> str:
        """Ray's dashboard shows the one of the moment when the actor was made."""
        name = f"{self._name} incarnation {self._incarnation}"
        return name if self._worker is None else f"{name} {self._worker.beat()}"


def get_buckets(buckets: Sequence[Any], timeout_s: float) -> Any:
    """An update's buckets. Raises UpdateStalled, or UpdateLost where they will never come."""
    try:
        return ray.get(list(buckets), timeout=timeout_s)
    except (GetTimeoutError, ObjectFetchTimedOutError):
        raise UpdateStalled(
            f"the weights did not come within {timeout_s:g} s (weights.timeout_s)"
        ) from None
    except ObjectLostError as error:
        raise UpdateLost(str(error)) from None
