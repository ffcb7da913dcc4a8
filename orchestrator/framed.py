"""Runs a command of ours on a cluster for somebody elsewhere: `python -m orchestrator.framed
status NAME`. Its output and exit code go out as frames.

It runs in the home directory, where relative run directories of submitted jobs lie.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

from orchestrator.frames import Stream, end, frame

ELSEWHERE = "RAY_API_SERVER_ADDRESS"  # would send the command on to a cluster, again and again


def main() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *sys.argv[1:]],
        cwd=Path.home(),
        env={key: value for key, value in os.environ.items() if key != ELSEWHERE},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None and process.stderr is not None
    pipes: tuple[tuple[Stream, IO[str]], ...] = (("out", process.stdout), ("err", process.stderr))
    threads = [threading.Thread(target=_pass_on, args=pipe) for pipe in pipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _write(end(process.wait()))
    sys.exit(process.returncode)


def _pass_on(to: Stream, pipe: IO[str]) -> None:
    for line in pipe:
        _write(frame(to, line))


def _write(text: str) -> None:
    os.write(sys.stdout.fileno(), text.encode())  # whole, beside the other thread's


if __name__ == "__main__":
    main()
