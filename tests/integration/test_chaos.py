"""A short storm; `make chaos` runs the long ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers.runs import ROOT, environment


def test_a_job_survives_a_storm(tmp_path: Path) -> None:
    """A strike every 2 to 5 s: roles are killed, stopped and starved. See scripts/chaos."""
    program = [sys.executable, "-m", "chaos", "--only", "storm", "--steps", "60"]
    env = environment()
    done = subprocess.run(
        [*program, "--runs", str(tmp_path)],
        cwd=ROOT,
        env={**env, "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])["figures"]["storm"]
    assert found["launches"] == 1
    assert found["ledger"]["fates"] == {"trained": 60 * 8}
    assert found["left_behind"] == []
    assert len(found["strikes"]) >= 3
