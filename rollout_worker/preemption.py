"""SIGTERM asks a worker to leave, as a machine's owner does who takes it back soon.

Python runs signal handlers in the main thread and between two of its instructions, and an actor's
main thread sits in Ray's own loop. So the signal's number goes into a pipe, which a thread reads.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def on_sigterm(leave: Callable[[str], None]) -> None:
    """From now on the first SIGTERM calls `leave` with its name, in a thread of its own, and the
    second ends the process at once. Call it in the main thread."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)  # in place of Ray's, which ends the process
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_watch, args=(reading, leave), name="sigterm", daemon=True).start()


def _watch(reading: int, leave: Callable[[str], None]) -> None:
    num_seen = 0
    while True:
        for number in os.read(reading, 64):
            if number != signal.SIGTERM:
                continue
            num_seen += 1
            if num_seen > 1:
                os._exit(128 + signal.SIGTERM)
            leave("SIGTERM")


def _forget() -> None:
    """A forked child has the pipe and no thread that reads it; SIGTERM ends it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
