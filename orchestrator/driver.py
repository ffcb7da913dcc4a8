"""The process that runs a job, as others find it: which one it is, and whether it has ended."""

from __future__ import annotations

import os
import socket
import time
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """One launch of a job."""

    id: str  # of this launch
    host: str
    machine: str  # its boot and process space: where equal, `pid` can be looked up; else ""
    pid: int
    started: int  # when the process did, in the kernel's ticks: a pid can come again
    since_s: float  # when it claimed the run, seconds since the epoch

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since_s).isoformat(sep=" ", timespec="seconds")
        return f"the driver on {self.host}, pid {self.pid}, since {since}"

    @property
    def is_on_this_machine(self) -> bool:
        return self.machine != "" and self.machine == _machine()

    @property
    def is_this_process(self) -> bool:
        mine = (_machine(), os.getpid(), _started(os.getpid()))
        return (self.machine, self.pid, self.started) == mine

    @property
    def has_ended(self) -> bool:
        """Whether this machine can tell that the process is no more."""
        if not self.is_on_this_machine:
            return False
        started = _started(self.pid)
        return _is_free(self.pid) if started is None else started != self.started


def this_driver() -> Driver:
    """A new launch, in this process."""
    return Driver(
        id=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=_started(os.getpid()) or 0,
        since_s=time.time(),
    )


def _machine() -> str:
    """This boot of this machine, and the space in which its pids count: containers have theirs."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When the process started, in ticks since the boot; -1: it is dead and was not waited for;
    None: there is none, or it is hidden."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()  # the name before may hold spaces
    return -1 if state in "ZX" else int(rest[18])


def _is_free(pid: int) -> bool:
    """No process has this pid. One that /proc hides belongs to another user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
