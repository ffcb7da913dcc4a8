"""The learner's ranks: started together, listened to, ended together.

    meeting ──▶ starting ──▶ running ──▶ done
       │            │           │ a rank dies, hangs, or says that another start may help
       └────────────┴───────────┴──▶ LearnerFailed: all of them start again from a commit

`tick` never waits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayError

from learner.actor import LearnerRank
from learner.checkpoint import Commit
from orchestrator.actors import Event, Listener, cause_of, failed, is_done, make_actor
from orchestrator.health import State, rank_limits
from orchestrator.placement import Bundle, rank_bundles
from orchestrator.status import RoleStatus
from orchestrator.watchdog import Heard
from replay.actor import ReplayClient
from slipstream.config.job import JobConfig
from slipstream.errors import LearnerFailed, Restartable, RoleFailed, SlipstreamError

THREADS = 3  # run, drain, stacks
Stage = Literal["placing", "meeting", "starting", "running"]


@dataclass(slots=True)
class Rank:
    """One rank's actor, and its call that is under way."""

    name: str
    node: str
    actor: Any
    listener: Listener
    call: Any = None


class Learners:
    """The ranks of one job. `bundles`: shared devices; otherwise they get their own."""

    def __init__(
        self,
        job: JobConfig,
        cores: tuple[tuple[int, ...], ...],
        run_dir: Path,
        *,
        replay: Any,
        board: Any,
        bundles: list[Bundle] | None,
    ) -> None:
        self.job = job
        self._cores = cores
        self._run_dir = run_dir
        self._replay = replay
        self._board = board
        self._shared = bundles
        self._bundles = bundles or rank_bundles(job)
        self._has_run = False
        self.num_restarts = 0
        self.is_done = False  # every rank has returned, none with an error
        self._stage: Stage = "placing"
        self._since_s = 0.0
        self._meeting: list[Any] = []  # rank 0's answers: where ranks and weights meet
        self.ranks: list[Rank] = []

    def begin(self, commit: Commit | None, timeline: int, workers: Sequence[Any]) -> None:
        """Have all ranks start. `workers`: the actors that get the weights over nccl."""
        self._commit, self._timeline, self._workers = commit, timeline, workers
        self.start_version = 0 if commit is None else commit.version
        self.num_restarts += self._has_run
        self.is_done = False
        self._enter("placing")

    def _enter(self, stage: Stage) -> None:
        self._stage, self._since_s = stage, time.time()

    @property
    def is_running(self) -> bool:
        return self._stage == "running"

    def calls(self) -> list[Any]:
        """To wait for: one that is done needs a look."""
        return [rank.call for rank in self.ranks if rank.call is not None]

    def ask(self) -> list[Any]:
        """Ask all ranks what they do; what to wait for before `tick`."""
        return [rank.listener.ask() for rank in self.ranks] if self.is_running else []

    # --- one look at each -------------------------------------------------------------

    def tick(self) -> list[Event]:
        """Events of the ranks. Raises RoleFailed, LearnerFailed where another start may help."""
        match self._stage:
            case "placing":
                if all(bundle.is_placed for bundle in self._bundles):
                    self._construct()
            case "meeting":
                if self._are_done(self._meeting, self.ranks[:1] * len(self._meeting)):
                    self._start()
            case "starting":
                if self._are_done([rank.call for rank in self.ranks], self.ranks):
                    for rank in self.ranks:
                        rank.call = rank.actor.run.remote()
                    self._has_run = True
                    self._enter("running")
            case "running":
                return self._listen()
        return []

    def _construct(self) -> None:
        self.ranks = []
        for number, bundle in enumerate(self._bundles):
            name = f"learner-{number}"
            cores = self._cores[number % len(self._cores)]
            maker = make_actor(LearnerRank, name, max_concurrency=THREADS, **bundle.options)
            actor = maker.remote(self.job, number, cores)
            listener = Listener(actor, rank_limits(self.job))
            self.ranks.append(Rank(name, (bundle.node or "")[:8], actor, listener))
        first = self.ranks[0].actor
        self._meeting = [first.address.remote() for _ in ("ranks", "weights")]
        self._enter("meeting")

    def _start(self) -> None:
        meeting, weights = ray.get(self._meeting)
        client = ReplayClient(self._replay)
        commit_dir = None if self._commit is None else self._commit.path
        for rank in self.ranks:
            rank.call = rank.actor.start.remote(
                meeting,
                weights,
                client,
                self._board,
                self._workers,
                self._run_dir,
                timeline=self._timeline,
                commit_dir=commit_dir,
            )
        self._enter("starting")

    def _are_done(self, calls: list[Any], ranks: list[Rank]) -> bool:
        for call, rank in zip(calls, ranks, strict=True):
            if is_done(call):
                self._check(rank, call)
        limit_s = self.job.learner.start_timeout_s
        if time.time() - self._since_s > limit_s:
            late = ", ".join(r.name for c, r in zip(calls, ranks, strict=True) if not is_done(c))
            self._fail(
                f"{late} did not start within {limit_s:.0f} s (learner.start_timeout_s)",
                may_help=True,
            )
        return all(is_done(call) for call in calls)

    def _listen(self) -> list[Event]:
        events = [event for rank in self.ranks for event in rank.listener.hear()]
        ended = [rank for rank in self.ranks if is_done(rank.call)]
        for rank in self.ranks:
            if rank in ended:
                self._check(rank, rank.call)
            elif (why := rank.listener.failure()) is not None:
                self._fail(f"{rank.name} {why}", may_help=True)
        self.is_done = len(ended) == len(self.ranks)
        return events

    def _check(self, rank: Rank, call: Any) -> None:
        try:
            ray.get(call)
        except RayError as error:
            cause = cause_of(error)
            said = isinstance(cause, SlipstreamError) and not isinstance(cause, Restartable)
            why = failed(rank.name, error, self.job.health.call_timeout_s)
            self._fail(str(why), may_help=not said)

    def _fail(self, why: str, *, may_help: bool) -> None:
        """With nccl the engines' end of the weights' group cannot be formed anew."""
        if may_help and self._has_run and self.job.weights.transport != "nccl":
            raise LearnerFailed(why)
        raise RoleFailed(why)

    # --- ends and sizes ---------------------------------------------------------------

    def end(self) -> None:
        """Nothing of them trains or writes any more."""
        for rank in self.ranks:
            ray.kill(rank.actor)
        if calls := self.calls():
            ray.wait(calls, num_returns=len(calls), timeout=self.job.health.stop_timeout_s)

    def resize(self, num_ranks: int) -> None:
        """So many from the next `begin` on; after `end`."""
        assert self._shared is None, "shared devices stay as they are"
        self._bundles[0].remove()
        learner = self.job.learner.model_copy(update={"num_ranks": num_ranks})
        self.job = self.job.model_copy(update={"learner": learner})
        self._bundles = rank_bundles(self.job)

    def close(self) -> None:
        for rank in self.ranks:
            ray.kill(rank.actor)
        self._bundles[0].remove()

    def statuses(self, newest: tuple[int, int]) -> list[RoleStatus]:
        """Of each rank; `newest`: timeline and version of the published weights."""
        found = []
        for rank in self.ranks:
            beat = rank.listener.beat if self.is_running else None
            state = rank.listener.state(newest) if self.is_running else State.STARTING
            doing = self._stage if beat is None else beat.phase
            found.append(
                RoleStatus(
                    name=rank.name,
                    state=state,
                    version=None if beat is None or beat.version < 0 else beat.version,
                    incarnation=self._timeline,
                    num_restarts=self.num_restarts,
                    node=rank.node,
                    since_s=self._since_s,
                    detail="done" if self.is_done else doing,
                )
            )
        return found

    def heard(self) -> dict[str, Heard]:
        """What each rank last said, by name."""
        return {rank.name: rank.listener.heard for rank in self.ranks}

    def stacks(self) -> dict[str, Any]:
        """Calls that answer with each rank's stacks, by name."""
        return {rank.name: rank.actor.stacks.remote() for rank in self.ranks}
