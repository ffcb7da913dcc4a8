"""What answers but does not get on: a rank in its step, a worker in an update of its weights."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.runs import (
    ROOT,
    assert_nothing_is_left,
    events,
    launch,
    ledger,
    started,
    wait_for,
)

JOB = ROOT / "examples" / "arithmetic" / "buffered.yaml"
DEADLINE_S = 20.0
SETTINGS = (
    *("name=hangs", "learner.num_steps=60", "learner.warmup_steps=0", "data.eval=null"),
    *("learner.groups_per_batch=8", "checkpoint.every_steps=5", "replay.max_staleness=3"),
    *("rollout.engine=scripted", "weights.probe=false", "rollout.num_workers=2"),
    *("learner.num_ranks=2", "learner.zero_stage=1"),
    f"learner.step_timeout_s={DEADLINE_S:.0f}",
    f"weights.timeout_s={DEADLINE_S:.0f}",
)


def test_both_are_mended_within_twice_their_deadline(tmp_path: Path) -> None:
    """The other rank waits in a collective, the other worker and its leases do not wait at all."""
    (marks := tmp_path / "marks").mkdir()
    faults = {
        "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 8}),
        "SLIPSTREAM_FAULT": "adopt.rollout-1:12:hang,step.learner-1:30:hang",
        "SLIPSTREAM_FAULT_ONCE": str(marks),
    }
    run = tmp_path / "hangs"
    with started(JOB, tmp_path, *SETTINGS, more=faults) as job:
        wait_for(lambda: (marks / "step.learner-1").exists())
        assert job.wait(timeout=200) == 0, (tmp_path / "launch.log").read_text()[-3000:]
    hung_s = (marks / "adopt.rollout-1").stat().st_mtime
    (died,) = events(run, "worker_died")
    assert "adopt has taken" in died["cause"]
    assert DEADLINE_S < died["time_s"] - hung_s < DEADLINE_S + 5
    adopted = [e["time_s"] for e in events(run, "adopted") if e["index"] == 1]
    assert min(s for s in adopted if s > died["time_s"]) - hung_s < 2 * DEADLINE_S
    versions = [e["version"] for e in events(run, "adopted") if e["index"] == 0]
    assert len(versions) > 40, "the other one went on"

    hung_s = (marks / "step.learner-1").stat().st_mtime
    (back,) = events(run, "went_back")
    assert back["time_s"] - hung_s < DEADLINE_S + 5
    steps = [e["time_s"] for e in events(run, "step")]
    assert min(s for s in steps if s > back["time_s"]) - hung_s < 2 * DEADLINE_S
    assert ledger(run)["fates"] == {"trained": 60 * 8}
    assert_nothing_is_left()


def test_a_job_that_gets_nowhere_says_who_waits_and_ends(tmp_path: Path) -> None:
    """Every answer is worth the same, and such groups are refilled for ever."""
    (tmp_path / "flat.py").write_text("def score(prompt, answer, item):\n    return 1.0\n")
    job = tmp_path / "flat.yaml"
    job.write_text(JOB.read_text())
    limits = (
        *("rollout.start_timeout_s=40", "learner.start_timeout_s=40", "weights.timeout_s=20"),
        *("rollout.step_timeout_s=20", "learner.step_timeout_s=20", "replay.lease_timeout_s=40"),
        *("replay.call_timeout_s=40", "health.call_timeout_s=20", "reward.timeout_s=1"),
        "telemetry.watchdog_s=41",
    )
    flat = ("name=flat", "reward.kind=function", "reward.path=flat:score", *limits)
    flat = (*flat, "replay.dynamic_sampling=true", "replay.on_stale=drop")
    flat = (*flat, f"model.path={JOB.parent}/base_model", "rollout.num_workers=1")
    done = launch(job, tmp_path, *SETTINGS, *flat, "learner.num_ranks=1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no learner step for 41 s (telemetry.watchdog_s): " in done.stderr
    assert "learner-0 has waited" in done.stderr
    assert "Traceback" not in done.stderr
    (stacks,) = (tmp_path / "flat").glob("stacks-*.txt")
    for role in ("learner-0", "rollout-0"):
        assert f"===== {role}" in stacks.read_text()
    assert_nothing_is_left()
