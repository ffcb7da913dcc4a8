"""Is a role alive, and does it serve? Pure: what was heard of it, and the clock.

    starting ──▶ syncing ──▶ serving        draining: leaves by itself
                    ▲  newer ◀─┘ │          suspect: silent for half of the limit
                    └── suspect ◀┘──▶ dead: silent, or one phase too long

To answer is not enough to serve: only who holds the newest published weights does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from slipstream.config.job import JobConfig
from slipstream.telemetry import Beat


class State(StrEnum):
    """What may be expected of a role."""

    STARTING = "starting"
    SYNCING = "syncing"
    SERVING = "serving"
    SUSPECT = "suspect"
    DRAINING = "draining"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds after which a role is taken for dead, and the keys of the job file that say so."""

    silent_s: float
    phases: Mapping[str, tuple[float, str]] = field(default_factory=dict)  # others may last
    token: tuple[float, str] = (math.inf, "")


def worker_limits(job: JobConfig) -> Limits:
    rollout, health = job.rollout, job.health
    step = (rollout.step_timeout_s, "rollout.step_timeout_s")
    adopt = (job.weights.timeout_s, "weights.timeout_s")
    return Limits(
        silent_s=health.heartbeat_timeout_s,
        phases={"generate": step, "adopt": adopt, "between": step},
        # No token is made while weights are adopted.
        token=(health.probe_every_s + step[0] + adopt[0], f"{step[1]} and {adopt[1]}"),
    )


def rank_limits(job: JobConfig) -> Limits:
    step = (job.learner.step_timeout_s, "learner.step_timeout_s")
    return Limits(
        silent_s=job.health.heartbeat_timeout_s,
        phases={
            "train": step,
            "publish": (job.weights.timeout_s, "weights.timeout_s"),
            "discard": step,
            "commit": step,
            "between": step,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a role is dead; whether its engine, and so perhaps a prompt, has made it so."""

    reason: str
    by_engine: bool = False


def failure(beat: Beat | None, silent_s: float, limits: Limits) -> Failure | None:
    """Why a role is dead, or None. `silent_s`: how long it has owed an answer; `beat`: its last
    one."""
    if silent_s > limits.silent_s:
        reason = f"does not answer for {silent_s:.0f} s (health.heartbeat_timeout_s)"
        return Failure(reason=reason)
    if beat is None:
        return None
    limit_s, key = limits.phases.get(beat.phase, (math.inf, ""))
    if beat.phase_s > limit_s:
        reason = f"hangs: {beat.phase} has taken {beat.phase_s:.0f} s ({key})"
        return Failure(reason=reason, by_engine=beat.phase == "generate")
    limit_s, key = limits.token
    if beat.token_s is not None and beat.token_s > limit_s:
        reason = f"hangs: its engine has made no token for {beat.token_s:.0f} s ({key})"
        return Failure(reason=reason, by_engine=True)
    return None


def state_of(beat: Beat | None, silent_s: float, limits: Limits, newest: tuple[int, int]) -> State:
    """Of a role that has started. `newest`: timeline and version of the published weights."""
    if failure(beat, silent_s, limits) is not None:
        return State.DEAD
    if silent_s > limits.silent_s / 2:
        return State.SUSPECT
    if beat is None:
        return State.STARTING
    if beat.leaving:
        return State.DRAINING
    return State.SERVING if (beat.timeline, beat.version) >= newest else State.SYNCING
