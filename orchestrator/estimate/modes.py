"""The step time of each mode from its parts, and how many devices each role should have. Pure.

sync      sum of all parts: one set of devices, in turns
else      the slowest of: the engines, the learner, a batch's whole way over the number of
          batches under way (max_staleness + 1), and, on cores, what all of them have to do
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.estimate.speed import Generation, Handover
from slipstream.config.job import Mode

MODES: tuple[Mode, ...] = ("sync", "split", "buffered", "multinode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Seconds of one step's parts; `host_s` is of replay and the processes between the roles."""

    generation: Generation
    training_s: float
    handover: Handover
    host_s: float
    between_s: float  # what a batch waits on its way for calls from role to role


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeTime:
    mode: Mode
    step_s: float
    bound: str  # what takes that long
    max_staleness: int


def mode_time(mode: Mode, parts: Parts, *, max_staleness: int, num_cores: float | None) -> ModeTime:
    """`num_cores`: that engines and ranks share with all else and keep busy, None on GPUs."""
    generation, handover = parts.generation, parts.handover
    learner_s = parts.training_s + handover.publish_s
    engines_s = generation.flow_s + handover.adopt_s
    way_s = parts.between_s + learner_s + handover.wire_s + handover.adopt_s
    if mode == "sync":
        step_s = generation.alone_s + way_s
        return ModeTime(mode=mode, step_s=step_s, bound="the sum of all parts", max_staleness=0)
    bounds = {
        "rollout": engines_s,
        "learner": learner_s,
        "the way of a batch": (generation.alone_s + way_s) / (max_staleness + 1),
    }
    if num_cores is not None:
        bounds["the cores"] = (engines_s + learner_s + parts.host_s) / num_cores
    bound = max(bounds, key=lambda name: bounds[name])
    return ModeTime(mode=mode, step_s=bounds[bound], bound=bound, max_staleness=max_staleness)


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Devices for each role so that neither waits, of as many as the job has."""

    rollout_per_learner: float  # devices
    num_rollout: int
    num_learner: int


def balance_of(
    engines_s: float, learner_s: float, *, num_rollout: int, num_learner: int
) -> Balance:
    """Both are taken to go as much faster as they get devices; each keeps one at least."""
    rollout_work, learner_work = engines_s * num_rollout, learner_s * num_learner
    total = num_rollout + num_learner
    wanted = round(total * rollout_work / (rollout_work + learner_work))
    rollout = min(max(1, wanted), total - 1)
    return Balance(
        rollout_per_learner=rollout_work / learner_work,
        num_rollout=rollout,
        num_learner=total - rollout,
    )
