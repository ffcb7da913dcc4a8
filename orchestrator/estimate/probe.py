"""Measures a core of this machine for a second: matrix products, and plain Python.

Run as a process of its own, because the threads of numpy are counted when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from slipstream.errors import SlipstreamError

LIMIT_S = 60.0
PART_S = 0.6  # of each of the three measurements
ROWS = 512  # tokens of the matrix products
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of one core, with whatever else the machine does beside."""

    flops: float  # a second, float32, at the model's sizes
    copy_bytes: float  # a second, of a copy that fits no cache
    python_s: float  # of a fixed piece of plain Python


def measure(hidden: int, intermediate: int, core: int | None) -> Speed:
    """Of `core`, or of whichever the system chooses. Raises SlipstreamError."""
    command = [sys.executable, "-m", __name__, str(hidden), str(intermediate), str(core)]
    env = {**os.environ, **dict.fromkeys(THREADS, "1")}
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=True
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise SlipstreamError(f"this machine's speed cannot be measured: {error}") from None
    return Speed(**json.loads(done.stdout))


def _measured(hidden: int, intermediate: int) -> Speed:
    import numpy as np

    left = np.ones((ROWS, hidden), np.float32)
    right = np.ones((hidden, intermediate), np.float32)
    product = np.empty((ROWS, intermediate), np.float32)
    source = np.ones(2**25, np.uint8)
    target = np.empty_like(source)
    operations = 2 * ROWS * hidden * intermediate
    return Speed(
        flops=operations / _seconds(lambda: np.matmul(left, right, out=product)),
        copy_bytes=len(source) / _seconds(lambda: np.copyto(target, source)),
        python_s=_seconds(_plain_python),
    )


def _plain_python() -> None:
    """What the roles' own code is made of: small dicts, strings, calls."""
    seen: dict[str, list[int]] = {}
    for number in range(2_000):
        seen.setdefault(f"{number % 97}", []).append(number * number)


def _seconds(call: Callable[[], object]) -> float:
    """Of one call, on average over a while: what else the machine does belongs to it."""
    call()
    start_s, num_calls = time.perf_counter(), 0
    while (passed_s := time.perf_counter() - start_s) < PART_S:
        call()
        num_calls += 1
    return passed_s / num_calls


def main() -> None:
    hidden, intermediate, core = sys.argv[1:]
    if core != "None":
        os.sched_setaffinity(0, {int(core)})
    print(json.dumps(asdict(_measured(int(hidden), int(intermediate)))))


if __name__ == "__main__":
    main()
