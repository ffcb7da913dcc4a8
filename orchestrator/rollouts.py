"""The rollout workers of a running job: placed, started, listened to, replaced, added, let go.

    placing ──▶ starting ──▶ running ──▶ (left: gone)
       ▲            │ failed    │ died, hangs
       └── again ◀──┴───────────┘        replay issues its prompts to others at once

`tick` looks at each worker once and never waits. A worker that comes back from a hang after it
was replaced has an older incarnation, and replay refuses what it brings.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError

from orchestrator.actors import (
    Event,
    Listener,
    cause_of,
    failed,
    is_done,
    make_actor,
    says_why,
)
from orchestrator.health import State, worker_limits
from orchestrator.placement import Bundle, draining_nodes, living_nodes, worker_bundle
from orchestrator.status import RoleStatus
from orchestrator.watchdog import Heard
from replay.actor import ReplayClient
from rollout_worker.actor import RolloutWorkerActor
from slipstream.config.job import JobConfig
from slipstream.errors import RoleFailed, SlipstreamError

THREADS = 7  # run, drain, request_evaluation, transfer, leave, stop, stacks
LOOK_FOR_DRAINING_EVERY_S = 2.0
Stage = Literal["placing", "starting", "running"]


@dataclass(slots=True)
class Worker:
    """One incarnation of one worker."""

    index: int
    incarnation: int
    bundle: Bundle
    stage: Stage = "placing"
    since_s: float = 0.0  # of the stage, as time.time()
    node: str | None = None
    actor: Any = None
    call: Any = None  # of `start` or `run`
    listener: Listener | None = None
    leaving: str | None = None  # why it was asked to

    @property
    def name(self) -> str:
        return f"rollout-{self.index}"

    def enter(self, stage: Stage) -> None:
        self.stage, self.since_s = stage, time.time()

    @property
    def is_answering(self) -> bool:
        heard = self.listener
        return heard is not None and heard.silent_s < heard.limits.silent_s / 2

    @property
    def title(self) -> str:
        return f"{self.name} {self.incarnation}"

    def status(self, newest: tuple[int, int], num_restarts: int) -> RoleStatus:
        heard = self.listener
        state = State.STARTING if heard is None else heard.state(newest)
        doing: str = self.stage if heard is None or heard.beat is None else heard.beat.phase
        return RoleStatus(
            name=self.name,
            state=State.DRAINING if self.leaving is not None else state,
            version=None if heard is None else heard.version,
            incarnation=self.incarnation,
            num_restarts=num_restarts,
            node=(self.node or "")[:8],
            since_s=self.since_s,
            detail=self.leaving or doing,
        )


class Rollouts:
    """As many workers as are wanted. `bundles`: shared devices, which stay as they are."""

    def __init__(
        self,
        job: JobConfig,
        cores: tuple[tuple[int, ...], ...],
        *,
        replay: Any,
        board: Any,
        bundles: list[Bundle] | None,
    ) -> None:
        self._job = job
        self._cores = cores
        self._replay = replay
        self._board = board
        self._bundles = bundles
        self._limits = worker_limits(job)
        self.events: list[Event] = []  # for who takes them away
        self._incarnations: Counter[int] = Counter()  # by index: those that were
        self._deaths: Counter[int] = Counter()
        self._deaths_in_row: Counter[int] = Counter()
        self._look_for_draining_s = 0.0
        self.num_wanted = job.rollout.num_workers
        self.may_start = False  # once the data is known to be good
        self.workers: dict[int, Worker] = {}
        self._add_missing()

    # --- what the job asks ------------------------------------------------------------

    def scale(self, num_workers: int) -> None:
        """So many from now on: more are added, or those that came last leave in order."""
        self.num_wanted = num_workers
        staying = [i for i in sorted(self.workers) if self.workers[i].leaving is None]
        for index in staying[num_workers:]:
            self._ask_to_leave(self.workers[index], "scaled down")
        self._add_missing()

    @property
    def running(self) -> list[Worker]:
        """Those that work, and were not asked to leave."""
        every = [self.workers[index] for index in sorted(self.workers)]
        return [w for w in every if w.stage == "running" and w.leaving is None]

    def actors(self) -> list[Any]:
        """Of every worker, by index."""
        return [self.workers[index].actor for index in sorted(self.workers)]

    @property
    def is_ready(self) -> bool:
        """Whether training may start."""
        quorum = self._job.rollout.quorum or self.num_wanted
        return len(self.running) >= min(quorum, self.num_wanted)

    # --- one look at each -------------------------------------------------------------

    def tick(self) -> None:
        """Adds to `events`: the workers', and what became of them. Raises RoleFailed."""
        self._look_for_draining_nodes()
        for worker in list(self.workers.values()):
            self._look_at(worker)
        self._add_missing()

    def calls(self) -> list[Any]:
        """To wait for: one that is done needs a look."""
        return [worker.call for worker in self.workers.values() if worker.call is not None]

    def ask(self) -> list[Any]:
        """Ask all that run what they do; what to wait for before `tick`."""
        return [w.listener.ask() for w in self.workers.values() if w.listener is not None]

    def _look_at(self, worker: Worker) -> None:
        match worker.stage:
            case "placing":
                if worker.bundle.is_placed:
                    self._construct(worker)
            case "starting":
                limit_s = self._job.rollout.start_timeout_s
                if worker.call is None:
                    self._start(worker)
                elif is_done(worker.call):
                    self._started(worker)
                elif time.time() - worker.since_s > limit_s:
                    late = f"did not start within {limit_s:.0f} s (rollout.start_timeout_s)"
                    self._died(worker, RoleFailed(f"{worker.name} {late}"), blame=False)
            case "running":
                self._listen(worker)
                if is_done(worker.call):
                    self._ended(worker)
                elif (why := _listener(worker).failure()) is not None:
                    error = RoleFailed(f"{worker.name} {why.reason}")
                    self._died(worker, error, blame=why.by_engine)

    def _construct(self, worker: Worker) -> None:
        worker.node = worker.bundle.node
        # More than were planned for are not bound: their cores would be those of another.
        cores = self._cores[worker.index] if worker.index < len(self._cores) else ()
        maker = make_actor(
            RolloutWorkerActor, worker.name, max_concurrency=THREADS, **worker.bundle.options
        )
        worker.actor = maker.remote(self._job, worker.index, worker.incarnation, cores)
        worker.enter("starting")

    def _start(self, worker: Worker) -> None:
        if self.may_start:
            worker.enter("starting")
            worker.call = worker.actor.start.remote(ReplayClient(self._replay), self._board)

    def _started(self, worker: Worker) -> None:
        try:
            pid = ray.get(worker.call)
        except RayError as error:
            self._failed(worker, error)
            return
        worker.listener = Listener(worker.actor, self._limits)
        worker.call = worker.actor.run.remote()
        worker.enter("running")
        self._tell("worker_started", worker, node=worker.node, pid=pid)

    def _listen(self, worker: Worker) -> None:
        events = _listener(worker).hear()
        if any(event["kind"] == "busy" and event["num_tokens"] for event in events):
            self._deaths_in_row[worker.index] = 0
        self.events += events
        beat = _listener(worker).beat
        if beat is not None and beat.leaving and worker.leaving is None:
            worker.leaving = "preempted"

    def _ended(self, worker: Worker) -> None:
        """Its `run` has returned or raised."""
        try:
            outcome = ray.get(worker.call)
        except RayError as error:
            self._failed(worker, error)
            return
        if outcome == "left":
            self._gone(worker, worker.leaving or "preempted")
        else:
            why = f"{worker.name} ended before the job did: {outcome}"
            self._died(worker, RoleFailed(why), blame=False)

    def _failed(self, worker: Worker, error: RayError) -> None:
        cause, why = cause_of(error), failed(worker.name, error)
        if says_why(error):
            raise why
        # Of itself: neither was its node lost, nor one of those that it talks to, whose death Ray
        # tells as an error of both classes.
        died = (
            isinstance(error, ActorDiedError)
            and cause is None
            and worker.node in living_nodes()
            and "its node has died" not in str(error)
        )
        raised = cause is not None and not isinstance(cause, RayActorError | SlipstreamError)
        self._died(worker, why, blame=died or raised)

    # --- for people -------------------------------------------------------------------

    def statuses(self, newest: tuple[int, int]) -> list[RoleStatus]:
        """Of each worker; `newest`: timeline and version of the published weights."""
        return [w.status(newest, self._deaths[i]) for i, w in sorted(self.workers.items())]

    def heard(self) -> dict[str, Heard]:
        """What each worker that runs last said, by name."""
        workers = self.workers.values()
        return {w.name: w.listener.heard for w in workers if w.listener is not None}

    def stacks(self) -> dict[str, Any]:
        """Calls that answer with each worker's stacks, by name."""
        workers = self.workers.values()
        return {w.name: w.actor.stacks.remote() for w in workers if w.actor is not None}

    # --- the end of a worker ----------------------------------------------------------

    def _died(self, worker: Worker, why: RoleFailed, *, blame: bool) -> None:
        """Another one takes its place, on devices given anew. After too many deaths in a row it is
        given up; RoleFailed where no other one runs."""
        if worker.leaving is not None:
            self._gone(worker, worker.leaving)
            return
        self._deaths[worker.index] += 1
        self._deaths_in_row[worker.index] += 1
        self._tell("worker_died", worker, cause=str(why), blame=blame)
        self._check_transport(str(why))
        if self._deaths_in_row[worker.index] > self._job.rollout.max_restarts:
            self._give_up(worker, why)
        self._remove(worker, blame=blame)

    def _give_up(self, worker: Worker, why: RoleFailed) -> None:
        count = self._deaths_in_row[worker.index]
        message = (
            f"{why}\nIt has died {count} times in a row without a finished answer in between "
            "(rollout.max_restarts)"
        )
        others = [other for other in self.running if other is not worker]
        if self._bundles is not None or not others:
            raise RoleFailed(message)
        self.num_wanted -= 1
        self._deaths_in_row[worker.index] = 0  # for whoever has this place later
        self._tell("worker_given_up", worker, cause=message, num_wanted=self.num_wanted)

    def _check_transport(self, why: str) -> None:
        if self._job.weights.transport == "nccl":
            raise RoleFailed(
                f"{why}\nWith weights.transport: nccl a worker cannot be replaced; go on with "
                "--resume"
            )

    def _gone(self, worker: Worker, reason: str) -> None:
        """It has left in order, or was about to."""
        self._tell("worker_left", worker, reason=reason)
        self._check_transport(f"{worker.name} has left: {reason}")
        self._remove(worker, blame=False)

    def _remove(self, worker: Worker, *, blame: bool) -> None:
        if worker.actor is not None:
            ray.kill(worker.actor)
        # Not waited for: replay may be starting again, and Ray repeats the call until it answers.
        self._replay.lose.remote(worker.name, worker.incarnation, blame=blame)
        del self.workers[worker.index]
        if self._bundles is None:
            worker.bundle.remove()

    def _ask_to_leave(self, worker: Worker, reason: str) -> None:
        if worker.leaving is not None:
            return
        worker.leaving = reason
        if worker.stage == "running":
            worker.actor.leave.remote(reason)
        else:
            self._gone(worker, reason)

    def _look_for_draining_nodes(self) -> None:
        if time.monotonic() < self._look_for_draining_s:
            return
        self._look_for_draining_s = time.monotonic() + LOOK_FOR_DRAINING_EVERY_S
        if self._bundles is not None or self._job.weights.transport == "nccl":
            return  # they could not be replaced elsewhere
        draining = draining_nodes()
        for worker in list(self.workers.values()):
            if worker.node in draining:
                self._ask_to_leave(worker, "its node is drained")

    # --- the beginning of a worker ----------------------------------------------------

    def _add_missing(self) -> None:
        if self._bundles is not None:  # shared: who leaves keeps its place until it is gone
            for index in set(range(self.num_wanted)) - self.workers.keys():
                self._add(index, self._bundles[index])
            return
        staying = sum(worker.leaving is None for worker in self.workers.values())
        free = (index for index in itertools.count() if index not in self.workers)
        for _ in range(self.num_wanted - staying):
            self._add(next(free), worker_bundle(self._job))

    def _add(self, index: int, bundle: Bundle) -> None:
        self.workers[index] = Worker(index, self._incarnations[index], bundle)
        self._incarnations[index] += 1

    def _tell(self, kind: str, worker: Worker, **fields: Any) -> None:
        self.events.append(
            {
                "kind": kind,
                "role": "rollout",
                "index": worker.index,
                "incarnation": worker.incarnation,
                "time_s": time.time(),
                **fields,
            }
        )

    def close(self) -> None:
        """Ask them to close their engines, then end them."""
        for worker in self.running:
            worker.actor.stop.remote()
        if calls := [worker.call for worker in self.running]:
            ray.wait(calls, num_returns=len(calls), timeout=self._job.health.stop_timeout_s)
        for worker in self.workers.values():
            if worker.actor is not None:
                ray.kill(worker.actor)
            worker.bundle.remove()


def _listener(worker: Worker) -> Listener:
    assert worker.listener is not None, "it runs"
    return worker.listener
