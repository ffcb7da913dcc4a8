"""A rank that hangs in a step does not hold up the others for longer than a step may take."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.helpers.jobs import make_model

PROGRAM = Path(__file__).with_name("hanging_rank.py")
ROOT = Path(__file__).parents[2]
STEP_TIMEOUT_S = 3.0  # as in the program


def test_a_collective_ends_with_the_time_of_a_step_and_in_words(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # ZeRO 2 waits in a group of DeepSpeed's own.
    ranks = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(model), rank, str(port), "2"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        output, _ = ranks[0].communicate(timeout=120)
    finally:
        for process in ranks:
            process.kill()
    assert ranks[0].returncode == 0, output
    waited_s, words = output.splitlines()[-1].split(" ", 1)
    assert STEP_TIMEOUT_S - 0.5 < float(waited_s) < STEP_TIMEOUT_S + 5
    assert words.startswith("a collective did not end within 3 s: another rank hangs or died")
