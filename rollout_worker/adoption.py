"""A worker's end of the weight channel: the engine takes a version whole, between two decode steps.

    object_store   `adopt` loads the newest version that the board has told of, once it is here
    nccl           the learner asks for calls by `request`; `adopt` carries them out, from the
                   first to the last, so that the engine decodes nothing with half of a version

After either, the engine's log-probs of the update's probe must be the learner's.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from rollout_worker.engine import Engine
from slipstream.config.job import WeightsConfig
from slipstream.errors import DeadlineExceeded, ProbeMismatch, UpdateLost, UpdateTorn
from slipstream.faults import fault_point
from slipstream.protocols import WeightReceiver
from slipstream.records import WeightUpdate
from slipstream.telemetry import EventLog

# After these the engine may decode again: the group is formed, or a version is whole.
LAST_CALLS = ("init_weight_transfer_engine", "finish_weight_update")


@dataclass(slots=True)
class _Transfer:
    """One call of a weight transfer, asked for by the learner."""

    call: str
    payload: Mapping[str, Any]
    done: Future[None] = field(default_factory=Future)


class Adoption:
    """Both transports; what raises here ends the worker."""

    def __init__(
        self,
        config: WeightsConfig,
        name: str,
        *,
        engine: Engine,
        receiver: WeightReceiver,
        events: EventLog,
    ) -> None:
        self._config = config
        self._name = name
        self._engine = engine
        self._receiver = receiver
        self._events = events
        self.held = (0, -1)  # timeline and version of the engine's weights; read by any thread
        self._transfers: queue.Queue[_Transfer] = queue.Queue()
        self._update: WeightUpdate | None = None
        self._wire_s = 0.0  # of the transfer under way

    def request(self, call: str, payload: Mapping[str, Any]) -> Future[None]:
        """Have `adopt` carry out one call of a weight transfer. For other threads."""
        transfer = _Transfer(call, payload)
        self._transfers.put(transfer)
        return transfer.done

    def reload(self) -> None:
        """The engine has slept, and its weights are gone: the same version is due once more."""
        timeline, version = self.held
        self.held = (timeline, version - 1)

    @property
    def due(self) -> bool:
        """Whether `adopt` has something to do. Never blocks."""
        if self._update is None:
            self._update = self._receiver.poll(self.held)
        return self._update is not None or not self._transfers.empty()

    def adopt(self) -> None:
        """Carry out what is due. Raises ProbeMismatch, DeadlineExceeded, UpdateTorn."""
        start_s = time.perf_counter()
        if self._update is not None:
            update, self._update = self._update, None
            try:
                tensors = self._receiver.tensors(update)
            except UpdateLost as error:  # before anything has changed: the engine goes on
                self._events.emit("update_lost", version=update.version, message=str(error))
                return
            self._engine.wake()
            fault_point(f"adopt.{self._name}")
            try:
                self._engine.load(update.version, tensors)
            except Exception as error:
                raise UpdateTorn(
                    f"{self._name} could not load {update.version}: {error}"
                ) from error
            load_s = time.perf_counter() - start_s
            self._adopted(update, start_s, load_s=load_s, wire_s=self._receiver.wire_s)
            return
        self._wire_s = 0.0
        transfer = self._transfers.get()
        while transfer.call not in LAST_CALLS:
            self._carry_out(transfer, start_s)
            transfer = self._next_transfer()
        self._carry_out(transfer, start_s)

    def _next_transfer(self) -> _Transfer:
        timeout_s = self._config.timeout_s
        try:
            return self._transfers.get(timeout=timeout_s)
        except queue.Empty:
            raise DeadlineExceeded(
                f"{self._name}: the learner began a weight transfer and did not go on within "
                f"{timeout_s} s (weights.timeout_s)"
            ) from None

    def _carry_out(self, transfer: _Transfer, start_s: float) -> None:
        try:
            if transfer.call == "finish_weight_update":
                update: WeightUpdate = transfer.payload["update"]
                self._engine.finish_transfer(update.version)
                load_s = time.perf_counter() - start_s - self._wire_s
                self._adopted(update, start_s, load_s=load_s, wire_s=self._wire_s)
            else:
                call_s = time.perf_counter()
                self._engine.transfer(transfer.call, transfer.payload)
                self._wire_s += time.perf_counter() - call_s
        except Exception as error:
            transfer.done.set_exception(error)
            raise
        transfer.done.set_result(None)

    def _adopted(
        self, update: WeightUpdate, start_s: float, *, load_s: float, wire_s: float
    ) -> None:
        """The engine has decoded nothing since `start_s`."""
        self.held = update.order
        since_published_s = time.time() - update.published_at_s
        probe_error = self._probe(update)
        self._events.emit(
            "adopted",
            timeline=update.timeline,
            version=update.version,
            pause_s=time.perf_counter() - start_s,
            wire_s=wire_s,
            load_s=load_s,
            since_published_s=since_published_s,
            probe_error=probe_error,
        )

    def _probe(self, update: WeightUpdate) -> float | None:
        """Largest difference between engine and learner on the probe's tokens."""
        if update.probe is None:
            return None
        logprobs = self._engine.score(update.probe.token_ids)
        error = float(abs(logprobs - update.probe.logprobs).max())
        limit = self._config.max_probe_error
        if not error <= limit:
            raise ProbeMismatch(
                f"{self._name}: after the update to version {update.version} the engine's "
                f"log-probs differ from the learner's by {error:.2e}, more than "
                f"weights.max_probe_error ({limit:.0e}). The weights did not arrive as sent"
            )
        return error
