"""What is asked of a running job from outside, carried out or refused with a reason.

slipstream scale, pause, resume, stop ──▶ <run>/control ──▶ `tick` ──▶ Fleet
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator import cluster
from orchestrator.control import Control, Pause, Request, Resume, Scale, Stop
from orchestrator.fleet import Fleet
from slipstream.config.job import JobConfig
from slipstream.errors import RoleFailed
from slipstream.telemetry import EventLog

Outcome = tuple[bool, str]  # whether it is done, in words


class Requests:
    """Of one running job. Answered, and told in `events`, as soon as it is settled what will be
    done."""

    def __init__(self, job: JobConfig, control: Control, fleet: Fleet, events: EventLog) -> None:
        self._job = job
        self._control = control
        self._fleet = fleet
        self._events = events
        self._num_ranks: int | None = None  # that the learner shall have instead
        self.is_paused = False

    def tick(self, replay: Mapping[str, Any]) -> None:
        """Look for new ones. `replay`: its statistics; what it has forgotten it is told again."""
        if replay.get("paused") not in (None, self.is_paused):
            self._fleet.pause(self.is_paused)
        if self._num_ranks is not None:
            self._fleet.dismiss_learner(True)
        for asked in self._control.poll():
            try:
                ok, message = self._carry_out(asked.request)
            except RoleFailed as error:
                ok, message = False, f"not now, ask again: {error}"
            self._control.answer(asked, ok=ok, message=message)

    def rebuild_learner(self, num_ranks: int) -> None:
        """With so many ranks, once they have committed after their step; at once where they do not
        run."""
        if self._fleet.learners.is_running:
            self._num_ranks = num_ranks
            self._fleet.dismiss_learner(True)
        else:
            self._num_ranks = None  # of an earlier request, whose dismissal they have not heard
            self._fleet.dismiss_learner(False)
            self._fleet.learners.rebuild(num_ranks)

    @property
    def is_rebuilding(self) -> bool:
        return self._num_ranks is not None

    def take_num_ranks(self) -> int | None:
        """How many ranks the learner is to have instead, once it has ended for that."""
        num_ranks, self._num_ranks = self._num_ranks, None
        return num_ranks

    def _carry_out(self, request: Request) -> Outcome:
        match request:
            case Scale():
                return self._scale(request)
            case Pause():
                self._pause(True)
                return True, "paused: what is under way is finished, nothing new begins"
            case Resume():
                self._pause(False)
                return True, "it goes on"
            case Stop():
                self._fleet.request_stop(request.reason)
                return True, "the learner commits after its step, then the job ends"

    def _pause(self, is_paused: bool) -> None:
        self._fleet.pause(is_paused)
        if is_paused != self.is_paused:
            self._events.emit("paused" if is_paused else "resumed")
        self.is_paused = is_paused

    def _scale(self, request: Scale) -> Outcome:
        if refusal := self._refusal(request):
            return False, refusal
        done = []
        if request.rollout is not None:
            self._scaled("rollout", self._fleet.rollouts.num_wanted, request.rollout)
            self._fleet.rollouts.scale(request.rollout)
            done.append(f"{request.rollout} rollout workers from now on")
        num_ranks = self._num_ranks or self._fleet.learners.job.learner.num_ranks
        if request.learner is not None and request.learner != num_ranks:
            self.rebuild_learner(request.learner)
            self._scaled("learner", num_ranks, request.learner)
            done.append(f"{request.learner} learner ranks after this step and a commit")
        return True, "; ".join(done) or "it is as you say"

    def _scaled(self, role: str, num_before: int, num_after: int) -> None:
        if num_before != num_after:
            self._events.emit("scaled", role=role, num_before=num_before, num_after=num_after)

    def _refusal(self, request: Scale) -> str | None:
        if self._job.rollout.colocate:
            return "workers and ranks share devices (rollout.colocate): their numbers stay"
        if self._job.weights.transport == "nccl":
            return "with weights.transport: nccl the numbers stay; use object_store"
        if request.rollout is not None and self._job.rollout.autoscale is not None:
            return "rollout.autoscale decides about the workers; launch without it to say so"
        if request.learner is None:
            return None
        if self._fleet.learners.is_done:
            return "the learner has done all its steps"
        return self._too_many(request)

    def _too_many(self, request: Scale) -> str | None:
        """What the cluster cannot hold. (Workers wait for nodes to come; ranks would stop all.)"""
        assert request.learner is not None
        rollout, learner, there = self._job.rollout, self._job.learner, cluster.available()
        num_workers = request.rollout or self._fleet.rollouts.num_wanted
        for name, each, other in (
            ("CPU", learner.cpus_per_rank, rollout.cpus),
            ("GPU", learner.gpus_per_rank, rollout.gpus),
        ):
            asked = request.learner * each
            free = max(0, there.get(name, 0) - num_workers * other)
            if asked > free:
                return (
                    f"{request.learner} ranks ask for {asked} {name}, and {num_workers} workers "
                    f"leave {free:g} of the cluster's"
                )
        return None
