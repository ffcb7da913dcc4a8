"""Learner ranks without Ray: processes of one program that can meet over gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300.0
Rank = tuple[subprocess.Popen[bytes], Path]  # and what it says


@contextmanager
def ranks(program: Path, num_ranks: int, logs: Path, *arguments: str) -> Iterator[list[Rank]]:
    """Start them, each with its place among them in its environment; kill what is left.

    What they say goes into files in `logs`: a rank that waits for somebody to read its pipe makes
    the others wait for it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(program), *arguments]
    with ExitStack() as stack:
        started: list[Rank] = []
        for rank in range(num_ranks):
            log = logs / f"rank{rank}.log"
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **_place(rank, num_ranks, port)},
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.kill)
            started.append((process, log))
        yield started


def run_ranks(program: Path, num_ranks: int, logs: Path, *arguments: str) -> None:
    """Until every one of them has ended well."""
    with ranks(program, num_ranks, logs, *arguments) as started:
        for process, log in started:
            assert process.wait(TIMEOUT_S) == 0, log.read_text()[-3000:]


def leave() -> NoReturn:
    """The end of a rank's program, when all is well. Native threads of torch.distributed may abort
    a process that ends in the ordinary way."""
    sys.stdout.flush()
    os._exit(0)


def _place(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    return {
        "PYTHONPATH": str(ROOT),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
