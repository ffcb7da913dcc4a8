"""The actors of one job: replay and weight board on the driver's node, rollout workers, ranks.

start ──▶ tick ... tick ──▶ the learner is done, or failed: `go_back`, and on it goes
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from learner.actor import WeightBoard
from learner.checkpoint import Commit
from orchestrator.actors import Event, answer, failed, make_actor
from orchestrator.learners import Learners
from orchestrator.placement import here, shared_bundles
from orchestrator.plan import Plan
from orchestrator.rollouts import Rollouts
from orchestrator.services import Service
from orchestrator.status import RoleStatus
from orchestrator.watchdog import SILENT_AFTER_S, who_waits
from replay.actor import ReplayActor
from slipstream.config.job import JobConfig
from slipstream.errors import JobFileError, Problem, SlipstreamError
from slipstream.records import Prompt

LOOK_S = 0.1  # between two looks at roles that start
STACKS_S = 5.0  # for the roles to tell their stacks
ANSWER_S = 1.0  # for the roles to say what they do, of one tick


@dataclass(slots=True)
class Fleet:
    """The running job's roles."""

    job: JobConfig
    replay: Any
    board: Any
    services: Mapping[str, Service]  # these two, watched
    rollouts: Rollouts
    learners: Learners
    stop_requested: str | None = None
    _states: dict[str, tuple[str, float]] = field(default_factory=dict)  # since when, by role
    _eval_prompts: Mapping[str, Sequence[Prompt]] = field(default_factory=dict)  # by set

    @classmethod
    @contextmanager
    def start(
        cls, job: JobConfig, plan: Plan, run_dir: Path, *, timeline: int, commit: Commit | None
    ) -> Iterator[Fleet]:
        """Construct every role; they start once the data is known to be good. `tick` until
        `is_ready`."""
        # Where replay has a journal, another process goes on where one died, and Ray asks it again.
        comes_back = -1 if job.replay.durability != "off" else 0
        survival = {"max_restarts": comes_back, "max_task_retries": comes_back}
        replay = make_actor(ReplayActor, "replay", **here(), **survival).remote(job, run_dir)
        # One that died comes back empty, and the learner tells it again.
        immortal = {"max_restarts": -1, "max_task_retries": -1}
        board = make_actor(WeightBoard, "weights", **here(), **immortal).remote(
            job.data.eval_every_steps if job.data.held_out else 0
        )
        workers, ranks = shared_bundles(job) if job.rollout.colocate else (None, None)
        roles = {"replay": replay, "board": board}
        services = {
            # Before those who call them give them up, and the learner would have to go back.
            "replay": Service(
                "replay", replay, job.replay.call_timeout_s / 2 if comes_back else None
            ),
            "weights": Service("weights", board, job.health.call_timeout_s / 2),
        }
        rollouts = Rollouts(job, plan.worker_cores, bundles=workers, **roles)
        learners = Learners(
            job, plan.rank_cores, run_dir, workers=rollouts.actors, bundles=ranks, **roles
        )
        fleet = cls(job=job, **roles, services=services, rollouts=rollouts, learners=learners)
        try:
            fleet._open(commit, timeline)
            yield fleet
        finally:
            fleet._leave()

    @property
    def is_ready(self) -> bool:
        return self.rollouts.is_ready and self.learners.is_running

    def tick(self, wait_s: float) -> None:
        """Wait up to `wait_s` for something to end, then look at every role.

        Raises RoleFailed; LearnerFailed where `go_back` may help.
        """
        calls = [*self.rollouts.calls(), *self.learners.calls()]
        ended, _ = ray.wait(calls, num_returns=len(calls), timeout=0) if calls else ([], [])
        if len(ended) < len(calls):
            ray.wait(calls, num_returns=len(ended) + 1, timeout=wait_s)
        else:
            time.sleep(wait_s)
        services = self.services.values()
        asked = [*self.rollouts.ask(), *self.learners.ask(), *(each.ask() for each in services)]
        ray.wait(asked, num_returns=len(asked), timeout=ANSWER_S)
        for service in services:
            service.hear()
        self.rollouts.tick()
        self.learners.tick()

    def take_events(self) -> list[Event]:
        """What every role has told since the last time, by time."""
        events = [*self.rollouts.events, *self.learners.events]
        self.rollouts.events, self.learners.events = [], []
        for service in self.services.values():
            events += service.take_events()
        return sorted(events, key=lambda event: event["time_s"])

    def statuses(self, newest: tuple[int, int]) -> tuple[RoleStatus, ...]:
        """Of every worker and rank; `newest`: timeline and version of the published weights."""
        found = (*self.learners.statuses(newest), *self.rollouts.statuses(newest))
        for role in found:
            if self._states.get(role.name, ("", 0.0))[0] != role.state:
                self._states[role.name] = (role.state, time.time())
        return tuple(replace(role, since_s=self._states[role.name][1]) for role in found)

    def who_waits(self) -> str:
        """What every role does or waits for, in a sentence."""
        is_silent = self.services["replay"].silent_s > SILENT_AFTER_S
        return who_waits(
            {**self.learners.heard(), **self.rollouts.heard()},
            {} if is_silent else self.replay_stats,
            time.monotonic(),
            groups_per_batch=self.job.learner.groups_per_batch,
        )

    def stacks(self) -> dict[str, str]:
        """What every thread of workers, ranks and replay does, by role."""
        calls = {**self.learners.stacks(), **self.rollouts.stacks()}
        calls["replay"] = self.replay.stacks.remote()
        ray.wait(list(calls.values()), num_returns=len(calls), timeout=STACKS_S)
        found = {}
        for name, call in calls.items():
            try:
                found[name] = str(ray.get(call, timeout=0))
            except RayError as error:
                found[name] = f"no answer: {type(error).__name__}"
        return found

    @property
    def replay_stats(self) -> Mapping[str, Any]:
        """The newest that it has told."""
        return self.services["replay"].stats

    def request_stop(self, reason: str) -> None:
        """The learner ends after its step; nothing new is leased."""
        self.stop_requested = reason
        # As long as a restart of replay may take, which reads data and journal.
        timeout_s = self.job.replay.call_timeout_s
        self.services["replay"].await_answer(timeout_s)
        answer(self.replay.stop.remote(reason), timeout_s, "replay")

    def pause(self, is_paused: bool) -> None:
        """Nothing new is leased or trained while it is paused; what is under way is finished.

        Not waited for, and forgotten when replay's process dies: say it again until it has effect.
        """
        self.replay.pause.remote(is_paused)

    def dismiss_learner(self, is_dismissed: bool) -> None:
        """The ranks commit and end after their step, so that others can take their place. As with
        `pause`."""
        self.replay.dismiss_learner.remote(is_dismissed)

    def request_evaluation(self, version: int) -> str | None:
        """Ask a worker to evaluate the held-out prompts; who it is, None where none can."""
        worker = next((w for w in self.rollouts.running if w.is_answering), None)
        if worker is None:
            return None
        worker.actor.request_evaluation.remote(version, self._eval_prompts)
        return worker.title

    def rebuild_learner(self, commit: Commit, num_ranks: int) -> None:
        """From the commit with which the ranks ended, at another number of them; replay and the
        workers go on as they are."""
        self.dismiss_learner(False)
        self.learners.rebuild(num_ranks, commit)

    def go_back(self, commit: Commit, timeline: int) -> None:
        """Have the learners start again from `commit`, and replay with them; the workers go on."""
        # Longer than the silence for which it is killed.
        timeout_s = max(self.job.rollout.start_timeout_s, self.job.replay.call_timeout_s)
        self.services["replay"].await_answer(timeout_s)
        self._replay_goes_back(commit, timeline)
        self.learners.num_restarts += 1
        self.learners.begin(commit, timeline)
        if self.stop_requested is not None:  # which replay's buffer of before had heard
            self.request_stop(self.stop_requested)

    def _replay_goes_back(self, commit: Commit, timeline: int) -> None:
        call = self.replay.go_back.remote(commit.replay, timeline)
        # Replay may have to start again, and to read the data, before it can.
        answer(call, self.job.rollout.start_timeout_s, "replay")

    def _open(self, commit: Commit | None, timeline: int) -> None:
        """Have replay read the data while the other roles import what they need; they load no model
        before."""
        self.learners.begin(commit, timeline)
        timeout_s = self.job.rollout.start_timeout_s
        opening = self.replay.open.remote()
        deadline_s = time.monotonic() + timeout_s
        while not ray.wait([opening], timeout=LOOK_S)[0] and time.monotonic() < deadline_s:
            self.rollouts.tick()
            self.learners.tick()
        try:
            ray.get(opening, timeout=0)
            prompts = ray.get(self.replay.eval_prompts.remote(), timeout=timeout_s)
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, SlipstreamError):
                raise JobFileError([Problem("data", "", str(error.cause))]) from None
            raise failed("replay", error, timeout_s) from None
        self._eval_prompts = prompts
        if commit is not None:
            self._replay_goes_back(commit, timeline)
        self.rollouts.may_start = self.learners.may_start = True

    def _leave(self) -> None:
        """Those that call the others first."""
        self.rollouts.close()
        self.learners.close()
        for actor in (self.board, self.replay):
            ray.kill(actor)
