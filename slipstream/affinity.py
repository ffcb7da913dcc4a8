"""Binds a process to cores, so that roles on one machine do not fight over them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def bind_process(cores: Sequence[int]) -> None:
    """Bind every thread there is, and so those they will start; nothing for no cores.

    Also sets OMP_NUM_THREADS: call it before anything that reads it is imported. Where this machine
    lacks one of the cores, which were chosen on the driver's, nothing is bound.
    """
    if not cores:
        return
    if not set(cores) <= os.sched_getaffinity(0):
        os.environ["OMP_NUM_THREADS"] = str(len(cores))
        return
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # a thread that has just ended
            os.sched_setaffinity(int(task.name), cores)
