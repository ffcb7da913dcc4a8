from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from orchestrator.watchdog import Heard, who_waits, write_stacks
from slipstream.stacks import stacks
from slipstream.telemetry import Beat

STATS = {"num_buffered": 3, "num_running": 5, "waiting_for": None, "held_back": None}


def heard(phase: str, phase_s: float, *, at_s: float = 2000.0, **changes: Any) -> Heard:
    fields = {"timeline": 0, "version": 12, "phase": phase, "phase_s": phase_s}
    return Heard(beat=Beat(**{**fields, **changes}), at_s=at_s)


def told(roles: dict[str, Heard], **stats: Any) -> str:
    return who_waits(roles, {**STATS, **stats}, 2000.0, groups_per_batch=8)


def test_a_job_that_waits_for_a_worker_that_hangs() -> None:
    roles = {
        "rollout-0": heard("generate", 0.2, token_s=0.2),
        "rollout-1": heard("generate", 0.1, at_s=201.0, token_s=0.1),
        "learner-0": heard("wait", 1799.0, at_s=1999.0),
    }
    assert told(roles, oldest_lease_s=1790.4) == (
        "learner-0 has waited 1800 s for a batch (replay: 3 of 8 groups, 5 leases running, oldest "
        "1790 s); rollout-1 does not answer for 1799 s (before: generate, version 12); "
        "rollout-0: generate for 0.2 s, version 12"
    )


def test_a_learner_that_hangs_in_its_step() -> None:
    roles = {
        "learner-0": heard("train", 900.0),
        "rollout-0": heard("wait", 0.001, token_s=880.0, leaving=True),
    }
    assert told(roles, held_back="staleness budget: 16 of 16 groups outstanding") == (
        "learner-0: train for 900 s, version 12; rollout-0 waits for prompts (staleness budget: "
        "16 of 16 groups outstanding), version 12, no token for 880 s, leaving; "
        "replay: 3 of 8 groups, 5 leases running"
    )


def test_what_the_batch_waits_for_is_said() -> None:
    text = told({"learner-0": heard("wait", 30.0)}, waiting_for="2 running prompts")
    assert "5 leases running, it waits for 2 running prompts)" in text


def test_roles_that_have_never_answered_and_replay_that_does_not() -> None:
    roles = {
        "learner-0": heard("between", 3.0, version=-1),
        "rollout-0": Heard(beat=None, at_s=1900.0),
    }
    assert who_waits(roles, {}, 2000.0, groups_per_batch=8) == (
        "rollout-0 has not answered yet, for 100 s; learner-0: between for 3.0 s, no version yet; "
        "replay does not answer"
    )


def test_of_many_roles_the_worst_are_told() -> None:
    roles = {f"rollout-{n}": heard("generate", float(n)) for n in range(100)}
    text = told(roles)
    assert text.startswith("rollout-99: generate for 99 s")
    assert "rollout-84: " in text
    assert "rollout-83: " not in text
    assert "; and 84 more; replay: " in text


def test_stacks_name_every_thread_and_its_place(tmp_path: Path) -> None:
    ready, done = threading.Event(), threading.Event()

    def waits_for_the_test_to_end() -> None:
        ready.set()
        done.wait()

    thread = threading.Thread(target=waits_for_the_test_to_end, name="a-slow-one")
    thread.start()
    try:
        ready.wait()
        text = stacks()
    finally:
        done.set()
        thread.join()
    parts = {part.split(":")[0]: part for part in text.split("Thread ")[1:]}
    assert "waits_for_the_test_to_end" in parts["a-slow-one"]
    assert "test_stacks_name_every_thread_and_its_place" in parts["MainThread"]
    path = write_stacks(tmp_path, {"learner-0": text, "rollout-0": "no answer"})
    assert path.parent == tmp_path
    assert path.read_text() == f"===== learner-0\n\n{text}\n===== rollout-0\n\nno answer"
    assert write_stacks(tmp_path, {}) != path
