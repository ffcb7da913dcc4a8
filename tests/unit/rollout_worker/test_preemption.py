"""SIGTERM, in a process of its own each time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection

import pytest

from rollout_worker.preemption import on_sigterm

SPAWN = multiprocessing.get_context("spawn")
TIMEOUT_S = 30.0


def worker(told: Connection, *, forks: bool) -> None:
    """Tell the parent of every call, and of the fate of a forked child."""
    on_sigterm(told.send)
    if forks:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, b"!")
            time.sleep(TIMEOUT_S)
            os._exit(0)
        os.read(reading, 1)
        os.kill(child, signal.SIGTERM)
        told.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    told.send("ready")
    time.sleep(TIMEOUT_S)


@pytest.mark.parametrize("forks", [False, True])
def test_the_first_asks_to_leave_and_the_second_ends_the_process(forks: bool) -> None:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=worker, args=[theirs], kwargs={"forks": forks})
    process.start()

    def heard() -> object:
        assert ours.poll(TIMEOUT_S), "nothing was said"
        return ours.recv()

    if forks:
        assert heard() == -signal.SIGTERM, "a child of it ends as any process does"
    assert heard() == "ready", "nobody asked it to leave yet"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert heard() == "SIGTERM"
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    process.join(TIMEOUT_S)
    assert process.exitcode == 128 + signal.SIGTERM
