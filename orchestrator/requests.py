"""What is asked of a running job from outside, carried out or refused with a reason.

slipstream scale, pause, resume, stop ──▶ <run>/control ──▶ `tick` ──▶ Fleet
"""

from __future__ import annotations

from orchestrator import cluster
from orchestrator.control import Control, Pause, Request, Resume, Scale, Stop
from orchestrator.fleet import Fleet
from slipstream.config.job import JobConfig

Outcome = tuple[bool, str]  # whether it is done, in words


class Requests:
    """Of one running job. Answered as soon as it is settled what will be done."""

    def __init__(self, job: JobConfig, control: Control, fleet: Fleet) -> None:
        self._job = job
        self._control = control
        self._fleet = fleet
        self.num_ranks: int | None = None  # that the learner shall have instead
        self.is_paused = False

    def tick(self) -> None:
        """Look for new ones."""
        for asked in self._control.poll():
            ok, message = self._carry_out(asked.request)
            self._control.answer(asked, ok=ok, message=message)

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
        self.is_paused = is_paused

    def _scale(self, request: Scale) -> Outcome:
        if refusal := self._refusal(request):
            return False, refusal
        done = []
        if request.rollout is not None:
            self._fleet.rollouts.scale(request.rollout)
            done.append(f"{request.rollout} rollout workers from now on")
        if request.learner not in (None, self._fleet.learners.job.learner.num_ranks):
            self.num_ranks = request.learner
            done.append(f"{request.learner} learner ranks after this step and a commit")
        return True, "; ".join(done) or "it is as you say"

    def _refusal(self, request: Scale) -> str | None:
        if self._job.rollout.colocate:
            return "workers and ranks share devices (rollout.colocate): their numbers stay"
        if self._job.weights.transport == "nccl":
            return "with weights.transport: nccl the numbers stay; use object_store"
        if request.learner is None:
            return None
        if self.num_ranks is not None:
            return f"the learner is being rebuilt with {self.num_ranks} ranks"
        learner = self._job.learner
        for name, each in (("CPU", learner.cpus_per_rank), ("GPU", learner.gpus_per_rank)):
            asked, there = request.learner * each, cluster.available().get(name, 0)
            if asked > there:
                return f"{request.learner} ranks ask for {asked} {name}, the cluster has {there:g}"
        return None
