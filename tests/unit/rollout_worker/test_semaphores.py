"""What a worker that was killed leaves in shared memory is removed by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rollout_worker import semaphores

MAKE = """
import multiprocessing, os, signal, time
from multiprocessing import resource_tracker
from rollout_worker.semaphores import own_semaphores
own_semaphores()
lock = multiprocessing.get_context("spawn").Lock()
os.kill(resource_tracker._resource_tracker._pid, signal.SIGKILL)
print("made", flush=True)
time.sleep(60)
"""

pytestmark = pytest.mark.skipif(
    not semaphores.SHARED_MEMORY.is_dir(), reason="semaphores are no files here"
)


def of(pid: int) -> list[Path]:
    return list(semaphores.SHARED_MEMORY.glob(f"sem.slipstream-*-{pid}-*"))


def test_those_of_the_living_stay_and_those_of_the_dead_go() -> None:
    with subprocess.Popen([sys.executable, "-c", MAKE], stdout=subprocess.PIPE, text=True) as made:
        assert made.stdout is not None
        assert made.stdout.readline() == "made\n"
        assert len(of(made.pid)) == 1
        semaphores.remove_of_the_dead()
        assert len(of(made.pid)) == 1
        os.kill(made.pid, signal.SIGKILL)
        made.wait()
    assert len(of(made.pid)) == 1, "nobody else removes it"
    semaphores.remove_of_the_dead()
    assert of(made.pid) == []
