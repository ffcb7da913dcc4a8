"""A command's output through a log in which others write, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.frames import Unframed, end, frame

ROOT = Path(__file__).parents[3]


def heard(log: str, size: int) -> tuple[list[tuple[str, str]], Unframed]:
    said: list[tuple[str, str]] = []
    answer = Unframed(lambda to, text: said.append((to, text)))
    for start in range(0, len(log), size):
        answer.feed(log[start : start + size])
    return said, answer


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_what_was_said_comes_back_in_whatever_pieces(size: int) -> None:
    log = (
        "Ray speaks\n"
        + frame("out", '{"state": "läuft"}\n')
        + "a worker speaks\n"
        + frame("err", "slipstream| not a frame\n")
        + frame("out", "no newline")
        + end(3)
    )
    said, answer = heard(log, size)
    assert said == [
        ("out", '{"state": "läuft"}\n'),
        ("err", "slipstream| not a frame\n"),
        ("out", "no newline"),
    ]
    assert answer.exit_code == 3
    assert list(answer.others) == ["Ray speaks", "a worker speaks"]


def test_without_an_end_there_is_no_exit_code() -> None:
    said, answer = heard("sh: 1: python: not found\n", 10)
    assert said == []
    assert answer.exit_code is None
    assert list(answer.others) == ["sh: 1: python: not found"]


def test_a_command_runs_at_home_and_never_sends_itself_on(tmp_path: Path) -> None:
    """Where the head's environment names a cluster, a forwarded command would go round for ever."""
    (tmp_path / "runs").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.framed", "status", "none"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOME": str(tmp_path),
            "PYTHONWARNINGS": "ignore",
            "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said, answer = heard(done.stdout, 100)
    assert answer.exit_code == done.returncode == 2
    assert said == [
        ("err", "slipstream: there is no run none: neither a directory here nor a name in ./runs\n")
    ]
