"""Whole jobs, launched and looked at from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
MARK = "SLIPSTREAM_TEST"  # in the environment of whatever these tests start


def command(job: Path, runs: Path, *arguments: str) -> list[str]:
    python = [sys.executable, "-m", "orchestrator.cli", "launch", str(job)]
    return [*python, f"checkpoint.dir={runs}", *arguments]


def environment() -> dict[str, str]:
    ours = {
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "RAY_AUTH_MODE": "token",
        MARK: "1",
    }
    return {**os.environ, **ours}


def launch(job: Path, runs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(job, runs, *arguments),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
    )


@contextmanager
def started(
    job: Path, runs: Path, *arguments: str, more: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A launched job, killed at the end if it still runs. `more`: of its environment. What it says
    goes to a file beside its directory (nobody reads a pipe meanwhile), whose end is shown where
    what is done meanwhile fails."""
    runs.mkdir(exist_ok=True)
    log = (runs / "launch.log").open("ab")
    process = subprocess.Popen(
        command(job, runs, *arguments),
        cwd=ROOT,
        env={**environment(), **(more or {})},
        stdout=log,
        stderr=log,
    )
    try:
        yield process
    except BaseException:
        print(Path(log.name).read_text(errors="replace")[-4000:])
        raise
    finally:
        process.kill()
        process.wait()
        log.close()


def wait_for(condition: Callable[[], bool], why_not: Callable[[], str] = str) -> None:
    deadline_s = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline_s, why_not()
        time.sleep(0.1)


def kill_with_children(pid: int) -> None:
    """As when the machine loses power."""
    parent = psutil.Process(pid)
    for process in [*parent.children(recursive=True), parent]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def processes() -> dict[int, str]:
    """Ray's and our own processes, of jobs that were launched by these tests."""
    names = ("raylet", "gcs_server", "ray::", "orchestrator.cli")
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if any(name in line for name in names) and MARK in process.environ():
                found[process.pid] = line
    return found


def assert_nothing_is_left() -> None:
    deadline_s = time.monotonic() + 20
    while left := processes():
        assert time.monotonic() < deadline_s, left
        time.sleep(0.5)


def ledger(run: Path) -> dict[str, Any]:
    """The promise holds, or this raises."""
    program = [sys.executable, "-m", "orchestrator.cli", "ledger", str(run), "--json"]
    done = subprocess.run(program, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
