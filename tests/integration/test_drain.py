"""A node that Ray has been told will go, as before a spot instance is taken away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from two_nodes import two_nodes

from tests.helpers.runs import (
    ROOT,
    assert_nothing_is_left,
    environment,
    events,
    ledger,
    started,
    wait_for,
)

JOB = ROOT / "examples" / "arithmetic" / "multinode.yaml"
SETTINGS = (
    *("name=drained", "learner.num_steps=100000", "learner.warmup_steps=0", "data.eval=null"),
    *("learner.groups_per_batch=8", "checkpoint.every_steps=20"),
    *("rollout.engine=scripted", "weights.probe=false"),
)


def test_its_worker_leaves_and_another_node_takes_its_place(tmp_path: Path) -> None:
    run = tmp_path / "drained"
    with (
        two_nodes(more=("rollout",)) as address,
        started(JOB, tmp_path, *SETTINGS, "--address", address) as job,
    ):
        wait_for(lambda: bool(events(run, "step")))
        (first,) = events(run, "worker_started")
        drain = [
            *(str(Path(sys.executable).with_name("ray")), "drain-node"),
            *("--address", address, "--node-id", first["node"]),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION"),
            *("--reason-message", "spot", "--deadline-remaining-seconds", "300"),
        ]
        done = subprocess.run(drain, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: len(events(run, "worker_started")) == 2)
        num_steps = len(events(run, "step"))
        wait_for(lambda: len(events(run, "step")) > num_steps + 5)
        program = [sys.executable, "-m", "orchestrator.cli", "stop", str(run)]
        assert subprocess.run(program, cwd=ROOT, env=environment()).returncode == 0
        assert job.wait(timeout=100) == 0
    (left,) = events(run, "worker_left")
    assert left["reason"] == "its node is drained"
    assert events(run, "worker_started")[1]["node"] != first["node"]
    assert not events(run, "worker_died")
    assert ledger(run)["findings"] == []
    assert_nothing_is_left()
