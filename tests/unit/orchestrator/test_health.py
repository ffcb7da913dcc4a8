from __future__ import annotations

from typing import Any

import pytest

from orchestrator.health import Limits, State, failure, rank_limits, state_of, worker_limits
from slipstream.telemetry import Beat
from tests.helpers.jobs import make_job

LIMITS = Limits(
    silent_s=8.0,
    phases={"generate": (60.0, "rollout.step_timeout_s"), "adopt": (300.0, "weights.timeout_s")},
    token=(100.0, "two keys"),
)
NEWEST = (1, 5)  # timeline and version


def beat(phase: str = "generate", phase_s: float = 0.0, **changes: Any) -> Beat:
    fields = {"timeline": 1, "version": 5, "phase": phase, "phase_s": phase_s}
    return Beat(**{**fields, **changes})


@pytest.mark.parametrize(
    ("last", "silent_s", "reason", "by_engine"),
    [
        (beat(), 8.1, "does not answer for 8 s (health.heartbeat_timeout_s)", False),
        (None, 9.0, "does not answer for 9 s (health.heartbeat_timeout_s)", False),
        # Silence says less than the last answer did: what hangs since then is not known.
        (beat("generate", 61.0), 9.0, "does not answer for 9 s", False),
        (
            beat("generate", 61.0),
            0.0,
            "hangs: generate has taken 61 s (rollout.step_timeout_s)",
            True,
        ),
        (beat("adopt", 301.0), 0.0, "hangs: adopt has taken 301 s (weights.timeout_s)", False),
        (
            beat("wait", 1.0, token_s=101.0),
            0.0,
            "hangs: its engine has made no token for 101 s (two keys)",
            True,
        ),
    ],
)
def test_dead(last: Beat | None, silent_s: float, reason: str, by_engine: bool) -> None:
    found = failure(last, silent_s, LIMITS)
    assert found is not None
    assert found.reason.startswith(reason)
    assert found.by_engine == by_engine
    assert state_of(last, silent_s, LIMITS, NEWEST) == State.DEAD


@pytest.mark.parametrize(
    ("last", "silent_s"),
    [
        (None, 8.0),
        (beat("generate", 60.0), 8.0),
        (beat("adopt", 299.0), 0.0),
        (beat("wait", 1e6), 0.0),  # for a lease, or for a batch
        (beat("wait", 1e6, token_s=100.0), 0.0),
        (beat("wait", 1e6, token_s=None), 0.0),  # the engine sleeps
    ],
)
def test_not_dead(last: Beat | None, silent_s: float) -> None:
    assert failure(last, silent_s, LIMITS) is None


@pytest.mark.parametrize(
    ("last", "silent_s", "state"),
    [
        (None, 0.0, State.STARTING),
        (None, 4.1, State.SUSPECT),
        (beat(), 4.0, State.SERVING),
        (beat(), 4.1, State.SUSPECT),
        (beat(leaving=True), 4.1, State.SUSPECT),
        (beat(leaving=True), 0.0, State.DRAINING),
        (beat(version=4, leaving=True), 0.0, State.DRAINING),
        (beat(version=4), 0.0, State.SYNCING),
        (beat(version=-1), 0.0, State.SYNCING),
        (beat(version=6), 0.0, State.SERVING),  # published, and the driver has not heard of it
        (beat(timeline=0, version=9), 0.0, State.SYNCING),  # of weights that are gone
        (beat(timeline=2, version=0), 0.0, State.SERVING),
    ],
)
def test_states(last: Beat | None, silent_s: float, state: State) -> None:
    assert state_of(last, silent_s, LIMITS, NEWEST) == state


def test_limits_are_those_of_the_job_file() -> None:
    job = make_job(
        rollout={"step_timeout_s": 20},
        learner={"step_timeout_s": 30},
        weights={"timeout_s": 40},
        health={"heartbeat_timeout_s": 6, "probe_every_s": 5},
    )
    worker, rank = worker_limits(job), rank_limits(job)
    assert worker.silent_s == rank.silent_s == 6
    # A probe comes within 5 s, an adoption may hold it up for 40 s, then it takes a step.
    assert worker.token[0] == 5 + 40 + 20
    assert {name: limit_s for name, (limit_s, _) in worker.phases.items()} == {
        "generate": 20,
        "adopt": 40,
        "between": 20,
    }
    assert {name: limit_s for name, (limit_s, _) in rank.phases.items()} == {
        "train": 30,
        "publish": 40,
        "discard": 30,
        "commit": 30,
        "between": 30,
    }
    assert failure(beat("train", 1.0, token_s=1e6), 0.0, rank) is None, "a rank has no engine"
