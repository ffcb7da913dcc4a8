"""What is asked of a running job from outside, carried out or refused with a reason.

    slipstream scale, pause, resume, stop ──▶ <run>/control ──▶ `tick` ──▶ Fleet
"""

from __future__ import annotations

from orchestrator import cluster
from orchestrator.control import Asked, Control, Pause, Request, Resume, Scale, Stop
from orchestrator.fleet import Fleet
from slipstream.config.job import JobConfig

Outcome = tuple[bool, str]  # whether it is done, in words


class Requests:
    """Of one running job. `scale learner` is answered once the new ranks run."""

    def __init__(self, job: JobConfig, control: Control, fleet: Fleet) -> None:
        self._job = job
        self._control = control
        self._fleet = fleet
        self._rebuilding: Asked | None = None
        self.num_ranks: int | None = None  # that the learner shall have instead

    def tick(self) -> None:
        """Look for new ones."""
        for asked in self._control.poll():
            outcome = self._carry_out(asked)
            if outcome is not None:
                ok, message = outcome
                self._control.answer(asked, ok=ok, message=message)

    def rebuilt(self) -> None:
        """The learner runs with `num_ranks`."""
        if self._rebuilding is not None and self.num_ranks is not None:
            message = f"the learner runs with {self.num_ranks} ranks"
            self._control.answer(self._rebuilding, ok=True, message=message)
        self._rebuilding = self.num_ranks = None

    def _carry_out(self, asked: Asked) -> Outcome | None:
        request: Request = asked.request
        match request:
            case Scale():
                return self._scale(asked, request)
            case Pause():
                self._fleet.pause(True)
                return True, "paused: what is under way is finished, nothing new begins"
            case Resume():
                self._fleet.pause(False)
                return True, "it goes on"
            case Stop():
                self._fleet.request_stop(request.reason)
                return True, "the learner commits after its step, then the job ends"

    def _scale(self, asked: Asked, request: Scale) -> Outcome | None:
        if refusal := self._refusal(request):
            return False, refusal
        if request.rollout is not None:
            self._fleet.rollouts.scale(request.rollout)
        if request.learner in (None, self._fleet.learners.job.learner.num_ranks):
            return True, f"{request.rollout} rollout workers are wanted from now on"
        self._rebuilding, self.num_ranks = asked, request.learner
        return None

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
