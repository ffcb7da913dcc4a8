"""Killed at every single file operation of a commit, a run goes on from its last good one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("commit_faults.py")
ROOT = Path(__file__).parents[2]
MUST_BE_KILLED = ("mkdir", "file", "fsync", "part", "manifest", "rename", "point", "prune", "clean")


def test_a_run_survives_a_kill_at_every_operation_of_its_commits(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    for operation in MUST_BE_KILLED:
        assert f"'commit.{operation}'" in done.stdout, done.stdout
