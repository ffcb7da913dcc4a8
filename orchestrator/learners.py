"""The learner's ranks: started together, listened to, ended together.

    meeting ──▶ starting ──▶ running ──▶ done
       │            │           │ a rank dies, hangs, or says that another start may help
       └────────────┴───────────┴──▶ LearnerFailed: all of them start again from a commit

`tick` never waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayError

from learner.actor import LearnerRank
from learner.checkpoint import Commit
from orchestrator.actors import Event, Listener, failed, is_done, make_actor, says_why
from orchestrator.health import State, rank_limits
from orchestrator.placement import Bundle, draining_nodes, rank_bundles
from orchestrator.status import RoleStatus
from orchestrator.watchdog import Heard
from replay.actor import ReplayClient
from slipstream.config.job import JobConfig
from slipstream.errors import LearnerFailed, RoleFailed

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
    """The ranks of one job. `bundles`: shared devices; otherwise they get their own. `workers`: the
    actors that get the weights over nccl."""

    def __init__(
        self,
        job: JobConfig,
        cores: tuple[tuple[int, ...], ...],
        run_dir: Path,
        *,
        replay: Any,
        board: Any,
        workers: Callable[[], Sequence[Any]],
        bundles: list[Bundle] | None,
    ) -> None:
        self.job = job
        self._cores = cores
        self._run_dir = run_dir
        self._replay = replay
        self._board = board
        self._workers = workers
        self._shared = bundles
        self._bundles = bundles or rank_bundles(job)
        self._num_that_ran: int | None = None  # of ranks, the last that have come to run
        self.may_start = False  # once the data is known to be good
        self.num_restarts = 0  # that were not asked for
        self.events: list[Event] = []  # for who takes them away
        self.is_done = False  # every rank has returned, none with an error
        self._stage: Stage = "placing"
        self._since_s = 0.0
        self._meeting: list[Any] = []  # rank 0's answers: where ranks and weights meet
        self.ranks: list[Rank] = []

    def begin(self, commit: Commit | None, timeline: int) -> None:
        """Have all ranks start from `commit`, or anew."""
        self._commit, self._timeline, self.ranks = commit, timeline, []
        self.start_version = 0 if commit is None else commit.version
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

    def tick(self) -> None:
        """Adds the ranks' events to `events`. Raises RoleFailed, LearnerFailed where another start
        may help."""
        match self._stage:
            case "placing":
                # To go back would not bring them.
                what = f"the devices of {len(self._bundles)} ranks were not given"
                self._check_time(what, may_help=False)
                if all(bundle.is_placed for bundle in self._bundles):
                    self._construct()
            case "meeting":
                if self._are_done(self._meeting, self.ranks[:1] * len(self._meeting)):
                    self._start_when_allowed()
            case "starting":
                if self._are_done([rank.call for rank in self.ranks], self.ranks):
                    for rank in self.ranks:
                        rank.call = rank.actor.run.remote()
                    self._num_that_ran = self.job.learner.num_ranks
                    self._enter("running")
            case "running":
                self._listen()

    def _construct(self) -> None:
        for number, bundle in enumerate(self._bundles):
            name = f"learner-{number}"
            # More than were planned for are not bound: their cores would be those of another.
            cores = self._cores[number] if number < len(self._cores) else ()
            maker = make_actor(LearnerRank, name, max_concurrency=THREADS, **bundle.options)
            actor = maker.remote(self.job, number, cores)
            listener = Listener(actor, rank_limits(self.job))
            self.ranks.append(Rank(name, (bundle.node or "")[:8], actor, listener))
        first = self.ranks[0].actor
        self._meeting = [first.address.remote() for _ in ("ranks", "weights")]
        self._enter("meeting")

    def _start_when_allowed(self) -> None:
        if not self.may_start:
            return
        meeting, weights = ray.get(self._meeting)
        client = ReplayClient(self._replay)
        commit_dir = None if self._commit is None else self._commit.path
        for rank in self.ranks:
            rank.call = rank.actor.start.remote(
                meeting,
                weights,
                client,
                self._board,
                self._workers(),
                self._run_dir,
                timeline=self._timeline,
                commit_dir=commit_dir,
            )
        self._enter("starting")

    def _are_done(self, calls: list[Any], ranks: list[Rank]) -> bool:
        for call, rank in zip(calls, ranks, strict=True):
            if is_done(call):
                self._check(rank, call)
        late = [rank.name for call, rank in zip(calls, ranks, strict=True) if not is_done(call)]
        if late:
            self._check_time(f"{', '.join(late)} did not start")
        return not late

    def _check_time(self, what: str, *, may_help: bool = True) -> None:
        limit_s = self.job.learner.start_timeout_s
        if time.time() - self._since_s > limit_s:
            why = f"{what} within {limit_s:.0f} s (learner.start_timeout_s)"
            self._fail(why, may_help=may_help)

    def _listen(self) -> None:
        self.events += [event for rank in self.ranks for event in rank.listener.hear()]
        ended = [rank for rank in self.ranks if is_done(rank.call)]
        for rank in self.ranks:
            if rank in ended:
                self._check(rank, rank.call)
            elif (why := rank.listener.failure()) is not None:
                self._fail(f"{rank.name} {why.reason}", may_help=True)
        self.is_done = len(ended) == len(self.ranks)

    def _check(self, rank: Rank, call: Any) -> None:
        try:
            ray.get(call)
        except RayError as error:
            self._fail(str(failed(rank.name, error)), may_help=not says_why(error))

    def _fail(self, why: str, *, may_help: bool) -> None:
        """With nccl the engines' end of the weights' group cannot be formed anew."""
        may_help |= self._is_rebuilt  # as many as before may run
        if may_help and self._num_that_ran and self.job.weights.transport != "nccl":
            raise LearnerFailed(why)
        raise RoleFailed(why)

    def must_move(self) -> bool:
        """Whether a node of theirs is drained, and they can go elsewhere."""
        if not self.is_running or self._shared is not None or self.job.weights.transport == "nccl":
            return False
        return not draining_nodes().isdisjoint(bundle.node for bundle in self._bundles)

    # --- ends and sizes ---------------------------------------------------------------

    def end(self) -> None:
        """Nothing of them trains or writes any more."""
        for rank in self.ranks:
            ray.kill(rank.actor)
        if calls := self.calls():
            ray.wait(calls, num_returns=len(calls), timeout=self.job.health.stop_timeout_s)

    def rebuild(self, num_ranks: int, commit: Commit | None = None) -> None:
        """With so many ranks, on devices given anew, from `commit`, or from where they were to
        begin; in the same timeline."""
        self.end()
        self._resize(num_ranks)
        self.begin(commit or self._commit, self._timeline)

    def give_up_rebuild(self) -> None:
        """Where the new ranks have not come to run: as many as before, from the next `begin` on."""
        if self._is_rebuilt:
            assert self._num_that_ran is not None
            self._resize(self._num_that_ran)

    @property
    def _is_rebuilt(self) -> bool:
        """Whether as many ranks as there are to be now have never run."""
        return self._num_that_ran not in (None, self.job.learner.num_ranks)

    def _resize(self, num_ranks: int) -> None:
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
        if not self.ranks:
            return [self._status(f"learner-{n}", None, newest) for n in range(len(self._bundles))]
        return [self._status(rank.name, rank, newest) for rank in self.ranks]

    def _status(self, name: str, rank: Rank | None, newest: tuple[int, int]) -> RoleStatus:
        heard = rank.listener if rank is not None and self.is_running else None
        doing: str = self._stage if heard is None or heard.beat is None else heard.beat.phase
        return RoleStatus(
            name=name,
            state=State.STARTING if heard is None else heard.state(newest),
            version=None if heard is None else heard.version,
            incarnation=self._timeline,
            num_restarts=self.num_restarts,
            node="" if rank is None else rank.node,
            since_s=self._since_s,
            detail="done" if self.is_done else doing,
        )

    def heard(self) -> dict[str, Heard]:
        """What each rank last said, by name."""
        return {rank.name: rank.listener.heard for rank in self.ranks}

    def stacks(self) -> dict[str, Any]:
        """Calls that answer with each rank's stacks, by name."""
        return {rank.name: rank.actor.stacks.remote() for rank in self.ranks}
