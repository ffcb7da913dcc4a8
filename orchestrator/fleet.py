"""The actors of one job: constructed, run, drained, stopped.

Every call to an actor has a deadline, and a role's death becomes a RoleFailed that names
the role and quotes its reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from learner.actor import LearnerRank, WeightBoard
from learner.checkpoint import Commit
from orchestrator.placement import Placement, place
from orchestrator.plan import Plan
from replay.actor import ReplayActor, ReplayClient
from rollout_worker.actor import RolloutWorkerActor
from slipstream.config.job import JobConfig
from slipstream.errors import (
    JobFileError,
    LearnerFailed,
    Problem,
    Restartable,
    RoleFailed,
    SlipstreamError,
)
from slipstream.records import Prompt

CALL_TIMEOUT_S = 60.0
PLACEMENT_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
WORKER_THREADS = 5  # run, drain, request_evaluation, stop, transfer
RANK_THREADS = 2  # run, drain


@dataclass(slots=True)
class _Role:
    """One actor, and its call to `run` once the job runs."""

    name: str
    actor: Any
    running: Any = None
    draining: Any = None  # a drain that has not answered yet


@dataclass(slots=True)
class Fleet:
    """The running job's roles."""

    job: JobConfig
    plan: Plan
    run_dir: Path
    placement: Placement
    replay: Any
    board: Any
    workers: list[_Role]
    ranks: list[_Role]
    start_version: int = 0
    stop_requested: str | None = None
    _stats: Mapping[str, Any] = field(default_factory=dict)
    _eval_prompts: tuple[Prompt, ...] = ()

    @classmethod
    @contextmanager
    def start(
        cls, job: JobConfig, plan: Plan, run_dir: Path, *, timeline: int, commit: Commit | None
    ) -> Iterator[Fleet]:
        """Construct every role, side by side, and wait until all are ready."""
        placement = place(job, PLACEMENT_TIMEOUT_S)
        # Where replay has a journal, another process goes on where one died, and Ray asks it again.
        comes_back = -1 if job.replay.durability != "off" else 0
        survival = {"max_restarts": comes_back, "max_task_retries": comes_back}
        fleet = cls(
            job=job,
            plan=plan,
            run_dir=run_dir,
            placement=placement,
            replay=_actor(ReplayActor, "replay", num_cpus=0, **survival).remote(job, run_dir),
            board=_actor(WeightBoard, "weights", num_cpus=0).remote(),
            workers=_workers(job, plan, placement),
            ranks=_ranks(job, plan, placement),
        )
        try:
            fleet._wait_until_ready(commit, timeline)
            yield fleet
        finally:
            fleet._leave()

    def run(self) -> None:
        """Set every role to work."""
        for role in [*self.workers, *self.ranks]:
            role.running = role.actor.run.remote()

    def learners_done(self, wait_s: float) -> bool:
        """Wait up to `wait_s`; whether every rank has returned. Raises RoleFailed."""
        self.raise_if_failed(wait_s)
        running = [rank.running for rank in self.ranks]
        return len(ray.wait(running, num_returns=len(running), timeout=0)[0]) == len(running)

    def raise_if_failed(self, wait_s: float) -> None:
        """Wait up to `wait_s` for a role to end; raise RoleFailed if one did that must not.

        LearnerFailed where `go_back` may help.
        """
        roles = {role.running: role for role in [*self.workers, *self.ranks]}
        ended, _ = ray.wait(list(roles), num_returns=len(roles), timeout=wait_s)
        for reference in ended:
            role = roles[reference]
            try:
                ray.get(reference, timeout=CALL_TIMEOUT_S)
            except RayError as error:
                failure = _failed(role.name, error, CALL_TIMEOUT_S)
                if role in self.ranks and self._may_start_again(error):
                    raise LearnerFailed(str(failure)) from None
                raise failure from None
            if role in self.workers:
                raise RoleFailed(f"{role.name} ended before the job did")

    def _may_start_again(self, error: RayError) -> bool:
        """Not where the rank itself said what is wrong for good, nor with `nccl`: the engines' end
        of the weights' group cannot be formed anew."""
        cause = _cause(error)
        said = isinstance(cause, SlipstreamError) and not isinstance(cause, Restartable)
        return not said and self.job.weights.transport != "nccl"

    def drain(self) -> list[Mapping[str, Any]]:
        """The events of every role that answers now; the others' come the next time."""
        roles = [*self.workers, *self.ranks]
        for role in roles:
            if role.draining is None:
                role.draining = role.actor.drain.remote()
        ray.wait([role.draining for role in roles], num_returns=len(roles), timeout=1.0)
        events: list[Mapping[str, Any]] = []
        for role in roles:
            if ray.wait([role.draining], timeout=0)[0]:
                # A role that died is reported by `raise_if_failed`, with its reason.
                with suppress(RayError):
                    events.extend(ray.get(role.draining))
                role.draining = None
        return sorted(events, key=lambda event: event["time_s"])

    def replay_stats(self) -> Mapping[str, Any]:
        with suppress(RayError):
            self._stats = ray.get(self.replay.stats.remote(), timeout=CALL_TIMEOUT_S)
        return self._stats

    def request_stop(self, reason: str) -> None:
        """The learner ends after its step; nothing new is leased."""
        self.stop_requested = reason
        _get(self.replay.stop.remote(reason), CALL_TIMEOUT_S, "replay")

    def request_evaluation(self, version: int) -> None:
        """Ask worker 0 to evaluate the held-out prompts."""
        worker = self.workers[0]
        call = worker.actor.request_evaluation.remote(version, self._eval_prompts)
        _get(call, CALL_TIMEOUT_S, worker.name)

    def end_learners(self) -> None:
        """Nothing of them trains or writes any more."""
        for rank in self.ranks:
            ray.kill(rank.actor)
        running = [rank.running for rank in self.ranks if rank.running is not None]
        ray.wait(running, num_returns=len(running), timeout=STOP_TIMEOUT_S)

    def go_back(self, commit: Commit, timeline: int) -> None:
        """Start the learners again from `commit`, replay with them; the workers go on.

        Raises LearnerFailed where they do not start.
        """
        self._go_back(commit, timeline)
        self.ranks = _ranks(self.job, self.plan, self.placement)
        try:
            self._wait_for(self._started_ranks(commit, timeline))
        except RoleFailed as failure:
            raise LearnerFailed(str(failure)) from None
        for rank in self.ranks:
            rank.running = rank.actor.run.remote()
        if self.stop_requested is not None:  # which replay's buffer of before had heard
            self.request_stop(self.stop_requested)

    def _go_back(self, commit: Commit, timeline: int) -> None:
        call = self.replay.go_back.remote(commit.replay, timeline)
        # Replay may have to start again, and to read the data, before it can.
        _get(call, self.job.rollout.start_timeout_s, "replay")

    def _wait_until_ready(self, commit: Commit | None, timeline: int) -> None:
        self._eval_prompts = self._open_data(self.job.rollout.start_timeout_s)
        if commit is not None:
            self._go_back(commit, timeline)
        client = ReplayClient(self.replay)
        starting = self._started_ranks(commit, timeline)
        for worker in self.workers:
            starting[worker.actor.start.remote(client, self.board)] = worker.name
        self._wait_for(starting)

    def _started_ranks(self, commit: Commit | None, timeline: int) -> dict[Any, str]:
        """Their calls to `start`, with their names."""
        first = self.ranks[0]
        meeting, weights = (
            _get(first.actor.address.remote(), self.job.learner.start_timeout_s, first.name)
            for _ in range(2)
        )
        handles = [worker.actor for worker in self.workers]
        client = ReplayClient(self.replay)
        path = None if commit is None else commit.path
        self.start_version = 0 if commit is None else commit.version
        return {
            rank.actor.start.remote(
                meeting,
                weights,
                client,
                self.board,
                handles,
                self.run_dir,
                timeline=timeline,
                commit_dir=path,
            ): rank.name
            for rank in self.ranks
        }

    def _wait_for(self, names: Mapping[Any, str]) -> None:
        """Until every role of these calls has started."""
        rollout_s, learner_s = self.job.rollout.start_timeout_s, self.job.learner.start_timeout_s
        # Whoever fails first is the cause: the others may wait for it until their time is up.
        waiting, deadline_s = list(names), time.monotonic() + max(rollout_s, learner_s)
        while waiting:
            left_s = max(0.0, deadline_s - time.monotonic())
            done, waiting = ray.wait(waiting, timeout=left_s)
            for reference in done:
                _get(reference, CALL_TIMEOUT_S, names[reference])
            if not done:
                late = ", ".join(sorted(names[reference] for reference in waiting))
                raise RoleFailed(
                    f"{late} did not start within {max(rollout_s, learner_s):.0f} s "
                    "(rollout.start_timeout_s, learner.start_timeout_s)"
                )

    def _open_data(self, timeout_s: float) -> tuple[Prompt, ...]:
        """Have replay read the data, before any engine is started; the held-out prompts."""
        try:
            ray.get(self.replay.open.remote(), timeout=timeout_s)
            return tuple(ray.get(self.replay.eval_prompts.remote(), timeout=timeout_s))
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, SlipstreamError):
                raise JobFileError([Problem("data", "", str(error.cause))]) from None
            raise _failed("replay", error, timeout_s) from None

    def _leave(self) -> None:
        """Ask the workers to close their engines, then end every actor."""
        for worker in self.workers:
            worker.actor.stop.remote()
        running = [worker.running for worker in self.workers if worker.running is not None]
        if running:
            ray.wait(running, num_returns=len(running), timeout=STOP_TIMEOUT_S)
        # Those that call the others first.
        for actor in [*(r.actor for r in [*self.ranks, *self.workers]), self.board, self.replay]:
            ray.kill(actor)
        self.placement.remove()


def _actor(cls: type[Any], name: str, **options: Any) -> Any:
    return ray.remote(cls).options(name=f"{name}-{time.time_ns()}", **options)


def _workers(job: JobConfig, plan: Plan, placement: Placement) -> list[_Role]:
    return [
        _Role(
            f"rollout-{index}",
            _actor(
                RolloutWorkerActor, f"rollout-{index}", max_concurrency=WORKER_THREADS, **options
            ).remote(job, index, 0, plan.worker_cores[index]),
        )
        for index, options in enumerate(placement.worker_options)
    ]


def _ranks(job: JobConfig, plan: Plan, placement: Placement) -> list[_Role]:
    return [
        _Role(
            f"learner-{rank}",
            _actor(LearnerRank, f"learner-{rank}", max_concurrency=RANK_THREADS, **options).remote(
                job, rank, plan.rank_cores[rank]
            ),
        )
        for rank, options in enumerate(placement.rank_options)
    ]


def _get(reference: Any, timeout_s: float, role: str) -> Any:
    """The answer; a RoleFailed that says who failed and why instead of Ray's trace."""
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayError as error:
        raise _failed(role, error, timeout_s) from None


def _cause(error: RayError) -> BaseException | None:
    """What was raised inside the role."""
    # A timeout inside the role is a RayTaskError and a GetTimeoutError at once.
    return error.cause if isinstance(error, RayTaskError) else None


def _failed(role: str, error: RayError, timeout_s: float) -> RoleFailed:
    if isinstance(error, RayTaskError):
        cause = _cause(error)
        if isinstance(cause, SlipstreamError):
            return RoleFailed(f"{role}: {cause}")
        if isinstance(cause, RayActorError):
            return RoleFailed(f"{role} lost a role that it talks to: {cause}")
        return RoleFailed(f"{role} failed:\n{error}")
    if isinstance(error, GetTimeoutError):
        return RoleFailed(f"{role} did not answer within {timeout_s:.0f} s")
    return RoleFailed(f"{role} died: {error}")
