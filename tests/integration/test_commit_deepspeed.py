"""Commits of real DeepSpeed engines hold what was there at the step boundary, and bring it back."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.jobs import make_model

PROGRAM = Path(__file__).with_name("commit_deepspeed.py")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("num_ranks", "stages"), [(1, "03"), (2, "3")])
def test_a_commit_is_of_its_step_boundary_and_restores_it(
    tmp_path: Path, num_ranks: int, stages: str
) -> None:
    model = make_model(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, str(PROGRAM), str(model), str(tmp_path)),
                *(str(rank), str(num_ranks), port, *stages),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    for rank in ranks:
        output, _ = rank.communicate(timeout=200)
        assert rank.returncode == 0, output[-3000:]
