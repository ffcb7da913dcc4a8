"""Named places at which a test can have this process killed, as if the power failed there.

    SLIPSTREAM_FAULT=commit.rename:2     SIGKILL at the second passing of `commit.rename`
    SLIPSTREAM_FAULT_TRACE=FILE          one line a passing, to learn which there are

Without these variables a fault point does nothing.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

_passings: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Pass the place `name`."""
    if trace := os.environ.get("SLIPSTREAM_FAULT_TRACE"):
        with open(trace, "a", encoding="utf-8") as file:  # noqa: PTH123
            file.write(name + "\n")
    if fault := os.environ.get("SLIPSTREAM_FAULT"):
        chosen, _, passing = fault.partition(":")
        if name == chosen:
            _passings[name] += 1
            if _passings[name] == int(passing or 1):
                os.kill(os.getpid(), signal.SIGKILL)
