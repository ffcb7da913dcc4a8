"""The rollout worker's loop. Knows neither Ray nor vLLM.

    consumes   leases (one call to replay under way at a time), new policy versions
    makes      groups: G rollouts, each scored, handed to replay
    waits for  nothing while anything decodes; a few milliseconds where there is no work
    ends       when it is stopped, replaced by a later incarnation, or told to leave, which it
               does once what is under way is handed over

    each turn:  adopt a newer version ─▶ fill free slots ─▶ one decode step ─▶ ask for prompts
                ─▶ hand over what is scored

Slots are filled as they come free; a new version is adopted between two decode steps, and
what is in flight goes on under it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from rollout_worker.adoption import Adoption
from rollout_worker.engine import Engine, Generation
from rollout_worker.evaluation import Evaluation, Evaluator
from rollout_worker.groups import (
    OpenGroup,
    is_sampled,
    lease_and_place,
    num_answers,
    request_ids,
    requests,
    to_record,
    to_sample,
)
from rollout_worker.pulse import Pulse
from rollout_worker.reward_pool import RewardPool
from slipstream.config.job import JobConfig
from slipstream.errors import DeadlineExceeded
from slipstream.protocols import ReplayForWorkers, WeightReceiver
from slipstream.records import (
    Lease,
    LeaseReply,
    Prompt,
    PutReply,
    RefusalReason,
)
from slipstream.telemetry import Beat, Busy, EventLog
from slipstream.text import Decode

IDLE_S = 0.003
ASK_AGAIN_S = 0.03  # replay holds calls: an answer without leases has another reason
REPORT_EVERY_S = 1.0
T = TypeVar("T")
Outcome = Literal["stopped", "left", "replaced"]


@dataclass(slots=True)
class _Call(Generic[T]):
    """A call to replay that is under way, and when it must have been answered."""

    name: str
    future: Future[T]
    deadline_s: float
    leases: Sequence[Lease] = ()  # whose groups are put


@dataclass(frozen=True, slots=True)
class _Leaving:
    reason: str
    deadline_s: float


class RolloutWorker:
    """One engine's worth of rollouts. `turn` is one pass of the loop above."""

    def __init__(
        self,
        job: JobConfig,
        name: str,
        incarnation: int,
        *,
        engine: Engine,
        replay: ReplayForWorkers,
        receiver: WeightReceiver,
        rewards: RewardPool,
        decode: Decode,
        events: EventLog,
    ) -> None:
        self._job = job
        self._name = name
        self._incarnation = incarnation
        self._engine = engine
        self._replay = replay
        self._rewards = rewards
        self._decode = decode
        self._events = events
        self._num_answers = num_answers(job)
        self._busy = Busy(keeps_spans=job.telemetry.enabled)
        self._open: dict[int, OpenGroup] = {}  # by lease id
        self._waiting: deque[tuple[Lease, float]] = deque()  # wait for their version; drop at
        self._lease_call: _Call[LeaseReply] | None = None
        self._put_calls: deque[_Call[Sequence[PutReply]]] = deque()
        self._yielded_version: int | None = None  # the learner's turn, on shared devices
        self._asleep = False  # and the engine has nothing on the device
        self._next_ask_s = 0.0
        self._num_tokens = 0
        self._reported_s = time.monotonic()
        self._leaving: _Leaving | None = None
        self._num_given_back = 0
        self._replaced = False  # a later incarnation has this worker's name
        self._pulse = Pulse(engine, job.health.probe_every_s)
        self._evaluator = Evaluator(job, engine, rewards, decode, events)
        self._adoption = Adoption(
            job.weights, name, engine=engine, receiver=receiver, events=events
        )

    @property
    def version(self) -> int:
        return self._engine.version

    def run(self, stopping: threading.Event) -> Outcome:
        """Turn until `stopping` is set; why it ended. Raises what cannot be survived."""
        while not stopping.is_set():
            if not self.turn():
                with self._busy.phase("wait"):
                    time.sleep(IDLE_S)
            self._report()
            if self._replaced:
                return "replaced"
            if self._has_left():
                return "left"
        return "stopped"

    def leave(self, reason: str, grace_s: float) -> None:
        """Ask for no more, hand over what is done within `grace_s`, then end. For any thread;
        the first call counts."""
        if self._leaving is None:
            self._leaving = _Leaving(reason, time.monotonic() + grace_s)

    def beat(self) -> Beat:
        """What the loop does now. For any thread, while the loop works or hangs."""
        phase, phase_s = self._busy.now()
        timeline, version = self._adoption.held
        return Beat(
            timeline=timeline,
            version=version,
            phase=phase,
            phase_s=phase_s,
            token_s=None if phase == "adopt" else self._pulse.token_s,
            leaving=self._leaving is not None,
        )

    def turn(self) -> bool:
        """One pass; returns whether anything was decoded or adopted."""
        adopted = self._adopt_newer()
        self._fill_slots()
        if not self._asleep:
            self._evaluator.start_if_due(self._adoption.held[0])
        decoded = self._decode_step()
        self._fill_slots()  # replay answers while this worker hands over
        self._evaluator.finish_if_scored()
        self._hand_over_scored()
        self._check_puts()
        return adopted or decoded

    def request_evaluation(self, version: int, prompts: Sequence[Prompt]) -> None:
        """Evaluate held-out prompts once the engine holds `version`."""
        self._evaluator.request(Evaluation(version=version, prompts=tuple(prompts)))

    def close(self) -> None:
        """End the scoring processes and the engine."""
        self._rewards.close()
        self._engine.close()

    def request_transfer(self, call: str, payload: Mapping[str, Any]) -> Future[None]:
        """Have the loop carry out one call of a weight transfer between two decode steps."""
        return self._adoption.request(call, payload)

    def _adopt_newer(self) -> bool:
        if self._evaluator.generating or not self._adoption.due:
            return False  # an evaluation is of one version
        before = self._adoption.held
        with self._busy.phase("adopt"):
            self._adoption.adopt()
        if self._adoption.held == before:
            return False  # the update was lost, or there was none; an engine asleep sleeps on
        self._asleep, self._yielded_version = False, None
        self._pulse.restart()
        if self._adoption.held[0] > before[0]:  # replay has revoked what was under way
            self._forget([*self._open])
        return True

    # --- leases -----------------------------------------------------------------------

    def _fill_slots(self) -> None:
        """Start what has been leased, then ask for as many prompts as there are free slots."""
        if self._lease_call is not None:
            reply = self._answer(self._lease_call)
            if reply is not None:
                self._lease_call = None
                self._on_leases(reply)
        if self._leaving is not None:
            self._evaluator.drop()
            self._give_back([])
            return
        self._start_waiting()
        if self._lease_call is None:
            self._ask_for_leases()

    def _ask_for_leases(self) -> None:
        num_free = self._num_free_groups()
        if num_free <= 0 or time.monotonic() < self._next_ask_s:
            return
        future = self._replay.lease(
            self._name,
            self._incarnation,
            num_free,
            held=self._held_leases(),
            yielded_version=self._yielded_version,
        )
        self._lease_call = _Call("lease", future, self._deadline_s())

    def _on_leases(self, reply: LeaseReply) -> None:
        drop_at_s = time.monotonic() + self._job.replay.lease_timeout_s
        self._forget(reply.revoked)
        self._waiting.extend((lease, drop_at_s) for lease in reply.leases)
        # With newer weights than replay knows of, this worker has had its part of the turn.
        same_weights = (reply.timeline, reply.version) == self._adoption.held
        if reply.yield_device and same_weights and self._is_idle():
            if not self._asleep:
                with self._busy.phase("sleep"):
                    self._engine.sleep()
                self._pulse.stop()
                self._asleep = True
                self._yielded_version = reply.version
        elif not reply.leases:
            self._next_ask_s = time.monotonic() + ASK_AGAIN_S
        if reply.leases:
            self._yielded_version = None
            if self._asleep and same_weights:  # the learner has discarded its batch
                self._adoption.reload()
        if reply.stop is not None:
            self._abandon()
            self._replaced |= reply.stop.replaced

    def _held_leases(self) -> list[int]:
        """Every lease of which replay has not answered that it is over."""
        put = (lease for call in self._put_calls for lease in call.leases)
        waiting = (lease for lease, _ in self._waiting)
        return [*self._open, *(lease.lease_id for lease in (*put, *waiting))]

    def _num_free_groups(self) -> int:
        slots = self._job.rollout.num_slots - self._engine.num_running
        return slots // self._num_answers - len(self._waiting)

    def _is_idle(self) -> bool:
        return not (self._open or self._waiting or self._put_calls) and self._evaluator.idle

    def _start_waiting(self) -> None:
        """Start every leased prompt whose version the engine holds, if it was not too long ago."""
        while self._waiting and _weights_for(self._waiting[0][0]) <= self._adoption.held:
            lease, drop_at_s = self._waiting.popleft()
            if time.monotonic() > drop_at_s or lease.timeline < self._adoption.held[0]:
                continue  # replay has issued it again
            self._open[lease.lease_id] = OpenGroup(lease)
            for request in requests(self._job, lease):
                self._engine.submit(request)

    def _abandon(self) -> None:
        """The job is over: forget what is in flight."""
        self._forget([*self._open])
        self._waiting.clear()
        self._next_ask_s = time.monotonic() + REPORT_EVERY_S

    def _forget(self, leases: Sequence[int]) -> None:
        """Stop what waits or is under way under these leases."""
        waiting = [entry for entry in self._waiting if entry[0].lease_id not in leases]
        self._waiting = deque(waiting)
        known = [lease for lease in leases if self._open.pop(lease, None) is not None]
        self._engine.abort(request_ids(self._job, known))

    def _give_back(self, unfinished: Sequence[int]) -> None:
        """Leave to another worker what waits, and these leases that are under way."""
        given_back = [*(lease.lease_id for lease, _ in self._waiting), *unfinished]
        self._num_given_back += len(given_back)
        self._forget(given_back)

    def _has_left(self) -> bool:
        """Whether a worker that leaves has handed over what it can; then it gives the rest back."""
        leaving = self._leaving
        if leaving is None:
            return False
        if (self._open or self._put_calls) and time.monotonic() < leaving.deadline_s:
            return False
        self._give_back([*self._open])
        self._evaluator.drop()
        self._events.emit("left", reason=leaving.reason, num_given_back=self._num_given_back)
        return True

    # --- rollouts ---------------------------------------------------------------------

    def _decode_step(self) -> bool:
        if self._engine.num_running == 0:
            self._probe_if_due()
            return False
        with self._busy.phase("generate"):
            generations = self._engine.step()
        self._pulse.note()
        if generations:
            with self._busy.phase("score"):
                self._on_generations(generations)
        return True

    def _probe_if_due(self) -> None:
        if self._pulse.probe_due:
            with self._busy.phase("generate"):
                self._pulse.probe()

    def _on_generations(self, generations: Sequence[Generation]) -> None:
        for generation in generations:
            self._num_tokens += len(generation.token_ids)
            if not self._evaluator.take(generation):
                self._on_generation(generation)

    def _on_generation(self, generation: Generation) -> None:
        lease_id, place = lease_and_place(generation.request_id)
        group = self._open.get(lease_id)
        if group is None:
            return  # abandoned
        group.finished[place] = generation
        if len(group.finished) == self._num_answers:
            group.answers = [
                self._decode(group.finished[i].token_ids) for i in sorted(group.finished)
            ]
            prompt = group.lease.prompt
            group.scores = self._rewards.score(prompt.text, group.answers, prompt.item)

    def _hand_over_scored(self) -> None:
        scored = [group for group in self._open.values() if group.is_scored]
        if not scored:
            return
        for group in scored:
            del self._open[group.lease.lease_id]
            if is_sampled(self._job, group):
                self._events.emit("sample", **to_sample(self._job, group))
        with self._busy.phase("hand_over"):
            future = self._replay.put(
                [to_record(self._job, group, self._name, self._incarnation) for group in scored]
            )
        leases = [group.lease for group in scored]
        self._put_calls.append(_Call("put", future, self._deadline_s(), leases))

    def _check_puts(self) -> None:
        while self._put_calls:
            replies = self._answer(self._put_calls[0])
            if replies is None:
                return
            call = self._put_calls.popleft()
            for lease, reply in zip(call.leases, replies, strict=True):
                self._replaced |= reply.refused is RefusalReason.STALE_INCARNATION
                if reply.refused is not None:
                    self._events.emit(
                        "refused",
                        ordinal=lease.prompt.ordinal,
                        reason=reply.refused.value,
                        detail=reply.detail,
                    )

    # --- calls and reports --------------------------------------------------------------

    def _deadline_s(self) -> float:
        return time.monotonic() + self._job.replay.call_timeout_s

    def _answer(self, call: _Call[T]) -> T | None:
        """The call's answer, None while it is out; raises past its deadline."""
        if call.future.done():
            return call.future.result()
        if time.monotonic() > call.deadline_s:
            raise DeadlineExceeded(
                f"{self._name}: replay did not answer {call.name} in "
                f"{self._job.replay.call_timeout_s} s"
            )
        return None

    def _report(self) -> None:
        if time.monotonic() - self._reported_s < REPORT_EVERY_S:
            return
        self._reported_s = time.monotonic()
        self._events.emit(
            "busy",
            seconds=self._busy.drain(),
            spans=self._busy.drain_spans(),
            num_tokens=self._num_tokens,
            num_running=self._engine.num_running,
            version=self._engine.version,
        )
        self._num_tokens = 0


def _weights_for(lease: Lease) -> tuple[int, int]:
    return lease.timeline, lease.min_version
