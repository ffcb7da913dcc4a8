"""Named places at which a test can have this process killed, as if the power failed there, or hang.

    SLIPSTREAM_FAULT=commit.rename:2     SIGKILL at the second passing of `commit.rename`
    SLIPSTREAM_FAULT=step.learner-1:9:hang,adopt.rollout-0:5:hang
                                         the thread that passes there stays there
    SLIPSTREAM_FAULT_ONCE=DIRECTORY      each of them in one process only, which leaves a file there
    SLIPSTREAM_FAULT_TRACE=FILE          one line a passing, to learn which there are

Without these variables a fault point does nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path

_passings: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Pass the place `name`."""
    if trace := os.environ.get("SLIPSTREAM_FAULT_TRACE"):
        with open(trace, "a", encoding="utf-8") as file:  # noqa: PTH123
            file.write(name + "\n")
    if faults := os.environ.get("SLIPSTREAM_FAULT"):
        _passings[name] += 1
        for fault in faults.split(","):
            chosen, passing, how = (*fault.split(":"), "", "")[:3]
            if (chosen, int(passing or 1)) == (name, _passings[name]) and _is_first(name):
                _fail(how)


def _is_first(name: str) -> bool:
    directory = os.environ.get("SLIPSTREAM_FAULT_ONCE")
    if directory is None:
        return True
    try:
        (Path(directory) / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _fail(how: str) -> None:
    if how == "hang":
        threading.Event().wait()
    os.kill(os.getpid(), signal.SIGKILL)
