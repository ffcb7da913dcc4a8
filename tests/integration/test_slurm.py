"""A rendered batch script, run for real: two nodes that `srun` stands in for are two Ray starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.helpers.runs import (
    ROOT,
    assert_nothing_is_left,
    environment,
    events,
    ledger,
    wait_for,
)

JOB = "examples/arithmetic/multinode.yaml"
SETTINGS = (
    *("name=on-slurm", "learner.num_steps=100000", "learner.warmup_steps=0", "data.eval=null"),
    *("learner.groups_per_batch=8", "rollout.engine=scripted", "weights.probe=false"),
)
PROGRAMS = {
    # Both nodes are this machine.
    "srun": 'echo "$@" >>"$CALLS"; while [[ $1 == --* ]]; do shift; done; '
    'exec "$@" $([[ $* == *--head* ]] || echo --node-ip-address=127.0.0.1)',
    "scontrol": 'echo "scontrol $*" >>"$CALLS"; [ "$1" != show ] || printf "node1\\nnode2\\n"',
    "slipstream": f'exec {sys.executable} -m orchestrator.cli "$@"',
}


def batch(script: Path, directory: Path, job_id: str) -> subprocess.Popen[bytes]:
    """`sbatch` on the first of two nodes."""
    programs = directory / "bin"
    programs.mkdir(exist_ok=True)
    for name, body in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    settings = {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CALLS": str(directory / "calls"),
        "SLURM_JOB_ID": job_id,
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLIPSTREAM_HEAD_IP": "127.0.0.1",
    }
    log = (directory / "log").open("ab")
    return subprocess.Popen(
        ["bash", str(script)],
        cwd=directory,
        env={**environment(), **settings},
        stdout=log,
        stderr=log,
    )


def test_the_time_limit_commits_and_requeues_and_the_next_start_goes_on(tmp_path: Path) -> None:
    script, run = tmp_path / "job.sh", tmp_path / "runs" / "on-slurm"
    render = [sys.executable, "-m", "orchestrator.cli", "render", "slurm", JOB, *SETTINGS]
    done = subprocess.run([*render, "--out", str(script)], cwd=ROOT, env=environment())
    assert done.returncode == 0
    job_id = str(os.getpid())

    job = batch(script, tmp_path, job_id)
    try:
        wait_for(lambda: len(events(run, "step")) > 2 or job.poll() is not None)
        (token,) = (tmp_path / "runs").glob(".slurm-*/token")
        assert token.stat().st_mode & 0o777 == 0o600
        assert len(token.read_text()) == 64
        assert token.read_text() not in (tmp_path / "calls").read_text()
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=100) == 130, (tmp_path / "log").read_text()
    finally:
        job.kill()
    calls = (tmp_path / "calls").read_text().splitlines()
    assert f"scontrol requeue {job_id}" in calls
    starts = [call for call in calls if "ray start" in call]
    assert ["--nodelist=node1" in call and "=learner" in call for call in starts] == [True, False]
    assert ["--nodelist=node2" in call and "=rollout" in call for call in starts] == [False, True]
    assert not list((tmp_path / "runs").glob(".slurm-*"))
    num_steps = max(event["version"] for event in events(run, "step"))

    again = batch(script, tmp_path, job_id)
    try:
        wait_for(lambda: events(run, "step")[-1]["version"] > num_steps or again.poll() is not None)
        again.send_signal(signal.SIGTERM)
        assert again.wait(timeout=100) == 130, (tmp_path / "log").read_text()
    finally:
        again.kill()
    assert "going on from version" in (tmp_path / "log").read_text()
    assert (tmp_path / "calls").read_text().count("scontrol requeue") == 1
    assert ledger(run)["findings"] == []
    assert_nothing_is_left()
