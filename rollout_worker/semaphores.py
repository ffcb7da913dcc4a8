"""Named semaphores of the scoring processes, which must not outlive their worker.

Multiprocessing has a helper process remove them, and Ray kills that one with a worker that dies. So
their names say whose they are, and the next worker on the machine removes those of the dead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import process
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_NAME = "slipstream-{namespace}-{pid}"  # of processes, whose ids mean nothing in another namespace


def own_semaphores() -> None:
    """Name those that this process makes from now on after it; remove those of the dead."""
    config = process.current_process()._config  # type: ignore[attr-defined]
    config["semprefix"] = f"/{_NAME.format(namespace=_namespace(), pid=os.getpid())}"
    remove_of_the_dead()


def remove_of_the_dead() -> None:
    """Where the system shows semaphores as files; elsewhere nothing happens."""
    for pid, path in _found():
        if not _lives(pid):
            with suppress(OSError):
                path.unlink()


def remove_own() -> None:
    """Once this process needs none any more."""
    for pid, path in _found():
        if pid == os.getpid():
            with suppress(OSError):
                path.unlink()


def _found() -> Iterator[tuple[int, Path]]:
    """Process and file."""
    prefix = f"sem.{_NAME.format(namespace=_namespace(), pid='')}"
    for path in SHARED_MEMORY.glob(f"{prefix}*"):
        pid = path.name.removeprefix(prefix).partition("-")[0]
        if pid.isdecimal():
            yield int(pid), path


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0
