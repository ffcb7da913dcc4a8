"""What the driver and the roles say, in one file of the run's directory.

    <run>/log.txt     2026-11-21T21:00:00.123+00:00 rollout-0 | text

The roles' output comes through Ray to the driver, from all nodes; lines stand in the order in which
they are heard.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from slipstream.errors import SlipstreamError
from slipstream.secrets import redact

FILE_NAME = "log.txt"
DRIVER = "driver"
BAR = " | "
LOOK_EVERY_S = 0.25


class NoLog(SlipstreamError):
    """The run has no log."""


class RunLog:
    """Written by the driver, from any thread."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE_NAME
        self._lock = threading.Lock()

    def driver(self, text: str) -> None:
        self.write(DRIVER, text.splitlines())

    def write(self, role: str, lines: Sequence[str]) -> None:
        time_ = datetime.now(UTC).isoformat(timespec="milliseconds")
        shown = redact(dict(enumerate(map(_shown, lines)))).values()
        text = "".join(f"{time_} {role}{BAR}{line}\n" for line in shown)
        # On a full disk the log has a gap, and the job goes on.
        with self._lock, suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(text)


def _shown(line: str) -> str:
    """What a terminal shows in the end: progress bars write over themselves."""
    return line.rstrip("\r").rpartition("\r")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the log."""

    time: str  # when the driver heard it, ISO 8601, UTC
    role: str  # driver, replay, weights, rollout-0, learner-0, ...
    text: str

    def __str__(self) -> str:
        return f"{self.time} {self.role}{BAR}{self.text}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def is_of(self, role: str | None) -> bool:
        """`role` is a name, as rollout-0, or the kind, as rollout; None is anybody."""
        return role is None or self.role == role or self.role.rpartition("-")[0] == role


def parse(text: str) -> Line:
    """What `RunLog.write` wrote; anything else is said by nobody."""
    head, bar, said = text.partition(BAR)
    time_, _, role = head.partition(" ")
    if not bar or not role or " " in role:
        return Line(time="", role="", text=text)
    return Line(time=time_, role=role, text=said)


def last_lines(run_dir: Path, role: str | None, num_lines: int) -> list[Line]:
    """The newest lines of `role`. Raises NoLog."""
    with _opened(run_dir) as file:
        return list(deque(_of(file, role), maxlen=num_lines))


def follow(
    run_dir: Path, role: str | None, num_lines: int, is_over: Callable[[], bool]
) -> Iterator[Line]:
    """The newest lines of `role`, then what is added until the run is over. Raises NoLog."""
    with _opened(run_dir) as file:
        yield from deque(_of(file, role), maxlen=num_lines)
        while True:
            over = is_over()  # asked first: what was written before is still read
            yield from _of(file, role)
            if over:
                return
            time.sleep(LOOK_EVERY_S)


def _of(file: IO[str], role: str | None) -> Iterator[Line]:
    """Whole lines from here to the end of the file."""
    while True:
        place = file.tell()
        if not (text := file.readline()).endswith("\n"):
            file.seek(place)  # half of it is there
            return
        if (line := parse(text[:-1])).is_of(role):
            yield line


def _opened(run_dir: Path) -> IO[str]:
    path = run_dir / FILE_NAME
    try:
        return path.open(encoding="utf-8", errors="replace", newline="\n")
    except FileNotFoundError:
        raise NoLog(f"{path} does not exist: no job has begun there") from None
    except OSError as error:
        raise NoLog(f"{path} cannot be read: {error}") from None
