"""Runs one job: start the roles, watch them, evaluate, finish.

    driver ── constructs ──▶ replay, weight board, learner ranks, rollout workers
           ── run() ───────▶ ranks and workers, which talk to replay and the board alone
           ◀── drain() ───── their events, every `telemetry.progress_every_s`

The driver carries no data. It waits for the learner ranks to return. When one dies, all start
again from the last commit and replay goes back to it, while the workers go on; a worker that
returns or raises before it was told to stop, ends the job.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from rich.console import Console

from learner.checkpoint import Commit, Found, find
from learner.commit_files import claim_timeline, set_aside
from orchestrator import cluster
from orchestrator.checks import fits, import_dirs
from orchestrator.fleet import Fleet
from orchestrator.interrupts import Interrupts
from orchestrator.plan import Plan
from orchestrator.progress import Progress, closing_table
from orchestrator.run_dir import RunDir
from orchestrator.run_state import RunState
from slipstream.config.job import JobConfig
from slipstream.errors import JobFileError, LearnerFailed, RoleFailed

EVAL_TIMEOUT_S = 600.0


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
    console = Console()
    state = RunState(num_steps=job.learner.num_steps)
    with (
        Interrupts() as interrupts,
        Progress(console) as progress,
        cluster.connected(address, import_dirs(job_file.parent)) as context,
    ):
        interrupts.take()
        if problems := fits(plan, cluster.available(), str(job_file)):
            raise JobFileError(problems)
        run_dir = RunDir.open(job, overwrite=overwrite)
        progress.note(f"{job.name}: mode {job.mode}, files in {run_dir.path}")
        if context.dashboard_url:
            progress.note(f"Ray dashboard: http://{context.dashboard_url}")
        checkpoints = run_dir.path / "checkpoints"
        commit = _taken(find(checkpoints), progress) if resume else None
        timeline = claim_timeline(checkpoints)
        with Fleet.start(job, plan, run_dir.path, timeline=timeline, commit=commit) as fleet:
            interrupts.patient = True
            progress.note(f"all roles ready after {time.time() - launched_s:.0f} s")
            try:
                state.timeline = timeline
                _Run(job, fleet, run_dir, state, progress, interrupts).run_to_end()
            finally:
                wall_s = time.time() - launched_s
                run_dir.write_result(state.result(wall_s))
    console.print(
        closing_table(
            state,
            wall_s=wall_s,
            model_dir=f"{state.checkpoint}/model" if state.checkpoint else "none was saved",
            metrics_file=str(run_dir.metrics_file),
        )
    )
    return 130 if interrupts.requested else 0


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
        state: RunState,
        progress: Progress,
        interrupts: Interrupts,
    ) -> None:
        self._job = job
        self._fleet = fleet
        self._run_dir = run_dir
        self._state = state
        self._progress = progress
        self._interrupts = interrupts
        self._asked_evals: set[int] = set()
        self._starts_from: Counter[Path] = Counter()  # restarts of the learner, by commit

    def run_to_end(self) -> None:
        self._state.start_version = self._state.version = self._fleet.start_version
        self._state.branched_at = self._fleet.start_version
        self._state.training_started_at_s = time.time()
        self._fleet.run()
        try:
            self._evaluate(self._state.start_version)
            while not self._learners_done():
                self._tick()
            self._tick()
            if not self._interrupts.requested:
                self._final_evaluation()
        finally:
            self._fold()
            self._run_dir.close()

    def _learners_done(self) -> bool:
        try:
            return self._fleet.learners_done(self._job.telemetry.progress_every_s)
        except LearnerFailed as failure:
            self._go_back(failure)
            return False

    def _go_back(self, failure: LearnerFailed) -> None:
        """Start the learners again from the newest commit, unless that has failed too often."""
        self._fold()
        self._fleet.end_learners()
        checkpoints = self._run_dir.path / "checkpoints"
        found = find(checkpoints)
        if found.commit is None:
            raise RoleFailed(f"{failure}\nThere is no commit to go back to") from None
        self._starts_from[found.commit.path] += 1
        if self._starts_from[found.commit.path] > self._job.learner.max_restarts:
            raise failure
        self._progress.note(str(failure).splitlines()[0])
        commit = _taken(found, self._progress)
        timeline = claim_timeline(checkpoints)
        event = {
            "kind": "went_back",
            "role": "driver",
            "index": 0,
            "time_s": time.time(),
            "version": commit.version,
            "timeline": timeline,
            "cause": str(failure),
        }
        self._run_dir.write(event)
        self._state.fold(event)
        self._asked_evals = {v for v in self._asked_evals if v <= commit.version}
        try:
            self._fleet.go_back(commit, timeline)
        except LearnerFailed as again:
            self._go_back(again)

    def _tick(self) -> None:
        self._fold()
        self._progress.show(self._state)
        self._check_watchdog()
        if self._interrupts.requested and self._fleet.stop_requested is None:
            self._progress.note("stopping: the learner commits, then the job ends")
            self._fleet.request_stop("interrupted")
        if every := self._job.data.eval_every_steps:
            # Steps can be quicker than ticks, so no multiple is waited for exactly.
            due = self._state.version // every * every
            self._evaluate(max(due, self._state.start_version))

    def _fold(self) -> None:
        for event in self._fleet.drain():
            self._run_dir.write(event)
            self._state.fold(event)
            if event["kind"] in ("commit_failed", "prune_failed"):
                self._progress.note(event["message"])
        self._state.replay = self._fleet.replay_stats()
        self._run_dir.flush()

    def _evaluate(self, version: int) -> None:
        """Ask worker 0 for a held-out evaluation at `version`, once."""
        if self._job.data.eval is None or version in self._asked_evals:
            return
        self._asked_evals.add(version)
        self._fleet.request_evaluation(version)

    def _final_evaluation(self) -> None:
        if self._job.data.eval is None:
            return
        self._evaluate(self._state.version)
        deadline_s = time.monotonic() + EVAL_TIMEOUT_S
        while max(self._state.evals, default=-1) < self._state.version:
            self._fleet.raise_if_failed(self._job.telemetry.progress_every_s)
            self._fold()
            self._progress.show(self._state)
            if self._interrupts.requested:
                return
            if time.monotonic() > deadline_s:
                raise RoleFailed(
                    f"rollout-0 did not evaluate version {self._state.version} within "
                    f"{EVAL_TIMEOUT_S:.0f} s"
                )

    def _check_watchdog(self) -> None:
        since_s = self._state.last_step_at_s or self._state.training_started_at_s or time.time()
        limit_s = self._job.telemetry.watchdog_s
        if time.time() - since_s > limit_s:
            raise RoleFailed(
                f"no learner step for {limit_s:.0f} s (telemetry.watchdog_s). "
                f"Replay says: {self._state.replay.get('waiting_for', 'nothing')}"
            )
