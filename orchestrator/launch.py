"""Runs one job: start the roles, watch them, mend them, evaluate, finish.

    driver ── constructs ──▶ replay, weight board, learner ranks, rollout workers
           ── run() ───────▶ ranks and workers, which talk to replay and the board alone
           ◀── drain() ───── what they do and their events, every `telemetry.progress_every_s`
           ◀── control ───── scale, pause, resume, stop: files in the run's directory

The driver carries no data. It waits for the learner ranks to return. When one dies or hangs, all
start again from the last commit and replay goes back to it, while the workers go on; a worker
that dies or hangs is replaced, and the others roll out its prompts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from learner.checkpoint import Commit, Found, find
from learner.commit_files import claim_timeline, set_aside
from orchestrator import cluster, run_lease
from orchestrator.actors import Event
from orchestrator.autoscale import Scaling
from orchestrator.best import BestKeeper
from orchestrator.checks import fits, import_dirs
from orchestrator.control import Control
from orchestrator.environment import environment
from orchestrator.evaluations import MAX_DEATHS, Evaluations, UnderWay
from orchestrator.fleet import Fleet
from orchestrator.interrupts import Interrupts
from orchestrator.metrics.export import Exporter
from orchestrator.plan import Plan
from orchestrator.progress import Progress, closing_table
from orchestrator.requests import Requests
from orchestrator.run_dir import RunDir
from orchestrator.run_lease import RunLease
from orchestrator.run_state import RunState
from orchestrator.status import RoleStatus, State, Status, write_status
from orchestrator.submission import metadata
from orchestrator.trace import write_trace
from orchestrator.watchdog import write_stacks
from slipstream.config.job import JobConfig
from slipstream.errors import JobFileError, LearnerFailed, RoleFailed
from slipstream.telemetry import EventLog

EVAL_TIMEOUT_S = 600.0
START_LOOK_S = 0.2
OF_EVALUATIONS = ("eval", "eval_started")
REPLAY_COUNTS = ("num_buffered", "num_running")


def launch(
    job: JobConfig,
    plan: Plan,
    *,
    job_file: Path,
    resume: bool,
    overwrite: bool,
    address: str | None,
) -> int:
    """Run `job` to its end. Returns the exit code: 0, or 130 after Ctrl-C or SIGTERM."""
    launched_s = time.time()
    state = RunState(num_steps=job.learner.num_steps, launched_at_s=launched_s)
    with (
        Interrupts() as interrupts,
        Progress(Console(markup=False, emoji=False)) as progress,
        cluster.connected(address, import_dirs(job_file.parent), metadata(job)) as context,
        _leased(job, plan, job_file) as lease,
    ):
        interrupts.take()
        run_dir = RunDir.open(job, overwrite=overwrite)
        progress.log, run_dir.tell = run_dir.log.driver, progress.note
        with _recorded(job, run_dir, lease, progress):
            run_dir.add_launch(environment(job_file, resources=cluster.available()))
            progress.note(f"{job.name}: mode {job.mode}, files in {run_dir.path}")
            if context.dashboard_url:
                progress.note(f"Ray dashboard: http://{context.dashboard_url}")
            with (
                cluster.heard(run_dir.log.write),
                _opened(job, plan, run_dir, state, progress, resume=resume) as fleet,
            ):
                wall_s = _Run(job, fleet, run_dir, lease, state, progress, interrupts).to_end()
    progress.close(
        closing_table(
            state,
            wall_s=wall_s,
            model_dir=f"{state.checkpoint}/model" if state.checkpoint else "none was saved",
            metrics_file=str(run_dir.metrics_file),
        )
    )
    return 130 if interrupts.requested else 0


@contextmanager
def _leased(job: JobConfig, plan: Plan, job_file: Path) -> Iterator[RunLease]:
    """The run's directory, of a job that the cluster can hold at all."""
    if problems := fits(plan, cluster.available(), str(job_file)):
        raise JobFileError(problems)
    with run_lease.held(job.run_dir.resolve()) as lease:
        yield lease


@contextmanager
def _recorded(
    job: JobConfig, run_dir: RunDir, lease: RunLease, progress: Progress
) -> Iterator[None]:
    """The run's files and trackers, closed however it ends; the roles have left their GPUs by
    then."""
    try:
        yield
    except BaseException as error:
        run_dir.log.driver(str(error) or type(error).__name__)
        raise
    finally:
        for event in run_dir.close():
            progress.note(f"{event['tracker']}: {event['message']}")
        if lease.lost is None:
            _trace(job, run_dir, progress)


@contextmanager
def _opened(
    job: JobConfig,
    plan: Plan,
    run_dir: RunDir,
    state: RunState,
    progress: Progress,
    *,
    resume: bool,
) -> Iterator[Fleet]:
    """The roles, at the newest commit where the run goes on. Where they cannot be opened, the
    run's status says why."""
    with ExitStack() as roles:
        try:
            checkpoints = run_dir.path / "checkpoints"
            commit = _taken(find(checkpoints), progress) if resume else None
            state.version = 0 if commit is None else commit.version
            state.timeline = timeline = claim_timeline(checkpoints)
            starting = Fleet.start(job, plan, run_dir.path, timeline=timeline, commit=commit)
            fleet = roles.enter_context(starting)
        except BaseException as error:
            _write_status(job, run_dir, state, "failed", str(error) or type(error).__name__)
            raise
        yield fleet


def _write_status(
    job: JobConfig,
    run_dir: RunDir,
    state: RunState,
    name: State,
    message: str,
    roles: tuple[RoleStatus, ...] = (),
) -> None:
    status = Status(
        job=job.name,
        state=name,
        version=state.version,
        num_steps=state.num_steps,
        timeline=state.timeline,
        launched_at_s=state.launched_at_s,
        at_s=time.time(),
        message=message,
        roles=roles,
        replay=state.replay,
    )
    write_status(run_dir.path, status.as_json())


def _trace(job: JobConfig, run_dir: RunDir, progress: Progress) -> None:
    """At the end of a run; for people, so that nothing else may fail with it."""
    if not job.telemetry.enabled:
        return
    try:
        write_trace(run_dir.path)
    except OSError as error:
        progress.note(f"no trace.json: {error}")


def _taken(found: Found, progress: Progress) -> Commit:
    """The newest commit, verified byte by byte; what is damaged is named and put aside."""
    commit = found.required()
    for message in found.damaged:
        progress.note(message)
    set_aside(found)
    progress.note(f"going on from version {commit.version}, {commit.path}")
    return commit


class _Run:
    """The watching of one job."""

    def __init__(
        self,
        job: JobConfig,
        fleet: Fleet,
        run_dir: RunDir,
        lease: RunLease,
        state: RunState,
        progress: Progress,
        interrupts: Interrupts,
    ) -> None:
        self._job = job
        self._fleet = fleet
        self._run_dir = run_dir
        self._lease = lease
        self._state = state
        self._progress = progress
        self._interrupts = interrupts
        self._events = EventLog("driver", 0)
        self._requests = Requests(job, Control(run_dir.path, lease.mine.id), fleet, self._events)
        self._evaluations = Evaluations(fleet.request_evaluation)
        self._under_way = UnderWay()
        self._last_set = next(reversed(job.data.held_out), None)  # of which a worker tells
        is_exporting = job.telemetry.enabled and job.telemetry.metrics
        self._exporter = Exporter(job.name, progress.note, is_on=is_exporting)
        self._best = BestKeeper(job, run_dir.path / "checkpoints")
        self._paused_at_s = 0.0
        self._scaling: Scaling | None = None
        if job.rollout.autoscale is not None:
            self._scaling = Scaling(job, time.time())
        self._starts_from: Counter[Path] = Counter()  # restarts of the learner, by commit

    def to_end(self) -> float:
        """The whole run; its status and result say how it ended. Returns seconds since launch."""
        launched_s = self._state.launched_at_s
        try:
            self.start()
            self._progress.note(f"all roles ready after {time.time() - launched_s:.0f} s")
            self.run_to_end()
            self.write_status("ended")
        except BaseException as error:
            if self._lease.lost is None:
                self.write_status("failed", str(error) or type(error).__name__)
            raise
        finally:
            wall_s = time.time() - launched_s
            if self._lease.lost is None:
                self._run_dir.write_result(self._state.result(wall_s))
        return wall_s

    def start(self) -> None:
        """Until training may begin. Raises RoleFailed where that takes too long."""
        version = self._fleet.learners.start_version
        self._state.start_version = self._state.version = self._state.branched_at = version
        self._events.emit("launched", timeline=self._state.timeline, version=version)
        if (best := self._best.event) is not None:
            self._state.fold(best)  # of a launch before
        self._best.tick(version)
        self._want_evaluation(version)
        limit_s = max(self._job.rollout.start_timeout_s, self._job.learner.start_timeout_s)
        deadline_s = time.monotonic() + limit_s
        while not self._fleet.is_ready:
            self._look(START_LOOK_S)
            self._lease.check()
            self._requests.tick(self._state.replay)
            self._evaluate_when_due()  # before the first worker has gone on to other weights
            self.write_status("starting")
            if time.monotonic() > deadline_s:
                roles = self._fleet.statuses(self._newest)
                waiting = "; ".join(f"{r.name} is {r.state} ({r.detail})" for r in roles)
                raise RoleFailed(f"not ready within {limit_s:.0f} s: {waiting}")
        self._interrupts.patient = True
        self._state.training_started_at_s = time.time()

    def run_to_end(self) -> None:
        while not self._is_over():
            self._tick()
        self._tick()  # what the roles have said last
        if not self._interrupts.requested:
            self._final_evaluation()

    def _is_over(self) -> bool:
        """Whether the learner is done; rebuilds it where that is what it ended for."""
        learners = self._fleet.learners
        if self._fleet.stop_requested is not None and not learners.is_running:
            return True  # it was about to start again, from a commit
        if not learners.is_done:
            return False
        num_ranks = self._requests.take_num_ranks()
        is_last = self._state.version >= self._state.num_steps
        if num_ranks is None or is_last or self._fleet.stop_requested is not None:
            return True
        commit = find(self._run_dir.path / "checkpoints", contents=False).required()
        self._progress.note(f"the learner goes on with {num_ranks} ranks")
        self._fleet.rebuild_learner(commit, num_ranks)
        return False

    def _tick(self) -> None:
        self._look(self._job.telemetry.progress_every_s)
        if self._fleet.learners.must_move() and not self._requests.is_rebuilding:
            self._progress.note("a node of the learner is drained: it moves elsewhere")
            self._requests.rebuild_learner(self._fleet.learners.job.learner.num_ranks)
        self._lease.check()
        self._requests.tick(self._state.replay)
        if self._interrupts.requested and self._fleet.stop_requested is None:
            self._progress.note("stopping: the learner commits, then the job ends")
            self._fleet.request_stop("interrupted")
        self._evaluate_when_due()
        self._best.tick(self._state.version)
        self._autoscale()
        self._progress.show(self._state)
        self.write_status(self._now())
        self._check_watchdog()

    def _look(self, wait_s: float) -> None:
        """At every role; what they have told is kept, whatever is found."""
        try:
            self._fleet.tick(wait_s)
        except LearnerFailed as failure:
            self._fold(self._fleet.take_events())
            self._go_back(failure)
        finally:
            self._fold(self._fleet.take_events())

    def _fold(self, events: list[Event]) -> None:
        for event in [*events, *self._events.drain(), *self._run_dir.take_events()]:
            # Weights that are gone are told of in the file alone.
            is_gone = event["kind"] in OF_EVALUATIONS and not self._state.counts(event)
            self._run_dir.write(event, is_shown=not is_gone)
            self._state.fold(event)
            if not is_gone:
                self._exporter.hear(event)
                self._weigh(event)
            if self._scaling is not None:
                self._scaling.hear(event)
            match event["kind"]:
                case "commit_failed" | "prune_failed":
                    self._progress.note(event["message"])
                case "tracker_failed":
                    self._progress.note(f"{event['tracker']}: {event['message']}")
                case "worker_died" | "worker_given_up" | "restarted":
                    self._progress.note(str(event["cause"]).splitlines()[0])
            self._follow_evaluations(event)
        self._tell_of_replay()
        self._run_dir.flush()

    def _tell_of_replay(self) -> None:
        """Keep its statistics; those that a timeline shows become an event."""
        before, self._state.replay = self._state.replay, self._fleet.replay_stats
        now = {name: self._state.replay.get(name) for name in REPLAY_COUNTS}
        if any(now[name] != before.get(name) for name in REPLAY_COUNTS):
            self._events.emit("replay", **now)

    def _weigh(self, event: Event) -> None:
        """Is a commit the best now?"""
        for best in self._best.heard(event):
            self._run_dir.write(best)
            self._state.fold(best)

    @property
    def _newest(self) -> tuple[int, int]:
        return self._state.timeline, self._state.version

    def _now(self) -> State:
        if self._fleet.stop_requested is not None:
            return "stopping"
        return "paused" if self._requests.is_paused else "running"

    def write_status(self, state: State, message: str = "") -> None:
        """For `slipstream status`, and for Prometheus."""
        roles = self._fleet.statuses(self._newest)
        self._exporter.tick(self._state, roles)
        _write_status(self._job, self._run_dir, self._state, state, message, roles)

    def _go_back(self, failure: LearnerFailed) -> None:
        """Start the learners again from the newest commit, unless that has failed too often."""
        self._fleet.learners.end()
        if self._fleet.stop_requested is not None:
            raise RoleFailed(
                f"{failure}\nThe job was to stop: go on from the newest commit with --resume"
            )
        self._fleet.learners.give_up_rebuild()
        checkpoints = self._run_dir.path / "checkpoints"
        found = find(checkpoints)
        if found.commit is None:
            raise RoleFailed(f"{failure}\nThere is no commit to go back to") from None
        self._starts_from[found.commit.path] += 1
        if self._starts_from[found.commit.path] > self._job.learner.max_restarts:
            raise RoleFailed(
                f"{failure}\nThe learner has failed {self._starts_from[found.commit.path]} times "
                f"from {found.commit.path} (learner.max_restarts). Go on from it with --resume"
            )
        self._progress.note(str(failure).splitlines()[0])
        commit = _taken(found, self._progress)
        timeline = claim_timeline(checkpoints)
        self._events.emit(
            "went_back", version=commit.version, timeline=timeline, cause=str(failure)
        )
        self._fold([])
        self._evaluations.forget_after(commit.version)
        self._best.go_back(commit.version)
        self._fleet.go_back(commit, timeline)

    # --- evaluations ------------------------------------------------------------------

    def _want_evaluation(self, version: int) -> None:
        if self._job.data.held_out:
            self._evaluations.want(version)

    def _follow_evaluations(self, event: Event) -> None:
        match event["kind"]:
            case "eval" if self._state.counts(event):
                if event["set"] == self._last_set:  # those before it are of the same version
                    self._evaluations.heard(event)
            case "eval" | "eval_dropped":
                self._evaluations.missed(f"rollout-{event['index']}")
            case "eval_skipped":
                what = f"version {event['version']} is not evaluated: another one took too long"
                self._progress.note(f"{what}; version {event['instead']} is")
            case "worker_died" if event["blame"] and event["index"] in self._under_way.versions:
                worker = f"rollout-{event['index']} {event['incarnation']}"
                version = self._under_way.versions[event["index"]]
                for given_up in self._evaluations.died(worker, version):
                    self._events.emit("eval_given_up", version=given_up)
                    what = f"version {given_up} is not evaluated"
                    self._progress.note(f"{what}: {MAX_DEATHS} workers have died meanwhile")
        self._under_way.heard(event)

    def _evaluate_when_due(self) -> None:
        if every := self._job.data.eval_every_steps:
            # In advance, so that its worker takes no newer version first.
            due = (self._state.version // every + 1) * every
            if due <= self._state.num_steps:
                self._want_evaluation(due)
        present = {worker.title for worker in self._fleet.rollouts.running}
        self._evaluations.tick(present)

    def _final_evaluation(self) -> None:
        if not self._job.data.held_out:
            return
        self._evaluations.finish(self._state.version)
        # All is trained and committed: a worker that must be replaced first is waited for.
        limit_s = self._job.rollout.start_timeout_s + EVAL_TIMEOUT_S
        begun_at_s = time.time()
        while not self._evaluations.is_done and not self._interrupts.requested:
            self._tick()
            if time.time() - max(begun_at_s, self._under_way.worked_at_s) > limit_s:
                what = f"version {self._state.version} is not evaluated"
                self._progress.note(f"{what}: nothing has come of it for {limit_s:.0f} s")
                return

    def _autoscale(self) -> None:
        rollouts = self._fleet.rollouts
        if self._scaling is not None and not self._requests.is_paused:
            wanted = self._scaling.target(rollouts.num_wanted, self._state.replay, time.time())
            if wanted != rollouts.num_wanted:
                self._progress.note(f"rollout.autoscale: {rollouts.num_wanted} -> {wanted} workers")
                num = {"num_before": rollouts.num_wanted, "num_after": wanted}
                self._events.emit("scaled", role="rollout", **num)
                rollouts.scale(wanted)

    def _check_watchdog(self) -> None:
        if self._requests.is_paused or self._fleet.learners.is_done:
            self._paused_at_s = time.time()  # nothing is to be trained
        steps_at_s = self._state.last_step_at_s or self._state.training_started_at_s or time.time()
        # While a worker evaluates it takes no newer weights, so that the learner may wait for it.
        since_s = max(steps_at_s, self._paused_at_s, self._under_way.worked_at_s)
        limit_s = self._job.telemetry.watchdog_s
        if time.time() - since_s > limit_s:
            stacks = write_stacks(self._run_dir.path, self._fleet.stacks())
            raise RoleFailed(
                f"no learner step for {limit_s:.0f} s (telemetry.watchdog_s): "
                f"{self._fleet.who_waits()}. The stacks of all but the weight board are in {stacks}"
            )
