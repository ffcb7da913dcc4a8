"""What the driver and the roles say, in one file of the run's directory.

    <run>/log.txt     2026-11-21T21:00:00.123+00:00 rollout-0 | text
    <run>/log.txt.1   what was said before, once that is more than MAX_BYTES; nothing older is kept

The roles' output comes through Ray to the driver, from all nodes; lines stand in the order in which
they are heard.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any

from slipstream.errors import SlipstreamError
from slipstream.secrets import redact

FILE_NAME, OLDER_NAME = "log.txt", "log.txt.1"
MAX_BYTES = 64 * 2**20  # of one file
BLOCK_BYTES = 64 * 2**10  # read at once, from the end
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
        with self._lock, suppress(OSError):
            if self._path.exists() and self._path.stat().st_size > MAX_BYTES:
                self._path.replace(self._path.with_name(OLDER_NAME))
            with self._path.open("a", encoding="utf-8") as file:
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
        return _last(file, run_dir, role, num_lines)


def follow(
    run_dir: Path, role: str | None, num_lines: int, is_over: Callable[[], bool]
) -> Iterator[Line]:
    """The newest lines of `role`, then what is added until the run is over. Raises NoLog."""
    with ExitStack() as files:
        file = files.enter_context(_opened(run_dir))
        yield from _last(file, run_dir, role, num_lines)
        while True:
            over = is_over()  # asked first: what was written before is still read
            is_older = not _is_same(file, run_dir / FILE_NAME)
            yield from _of(file, role)
            if is_older:
                file = files.enter_context(_opened(run_dir))
            elif over:
                return
            else:
                time.sleep(LOOK_EVERY_S)


def _last(file: IO[bytes], run_dir: Path, role: str | None, num_lines: int) -> list[Line]:
    """The newest lines of the open log and the one before; `file` stands behind them then."""
    size = file.seek(0, os.SEEK_END)
    half = next(_backwards(file, size))
    found: deque[Line] = deque()
    with ExitStack() as files:
        for raw in _whole_lines(file, size, run_dir / OLDER_NAME, files):
            if len(found) == num_lines:
                break
            if (line := _line(raw)).is_of(role):
                found.appendleft(line)
    file.seek(size - len(half))
    return list(found)


def _whole_lines(file: IO[bytes], size: int, older: Path, files: ExitStack) -> Iterator[bytes]:
    """The last one first."""
    yield from islice(_backwards(file, size), 1, None)
    with suppress(OSError):
        before = files.enter_context(older.open("rb"))
        if not _is_same(file, older):
            yield from islice(_backwards(before, before.seek(0, os.SEEK_END)), 1, None)


def _backwards(file: IO[bytes], end: int) -> Iterator[bytes]:
    """What stands between the line ends before `end`, the last first: half a line, or nothing."""
    part = b""
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        file.seek(start)
        part, *lines = (file.read(end - start) + part).split(b"\n")
        yield from reversed(lines)
        end = start
    yield part


def _of(file: IO[bytes], role: str | None) -> Iterator[Line]:
    """Whole lines from here to the end of the file."""
    while True:
        place = file.tell()
        if not (raw := file.readline()).endswith(b"\n"):
            file.seek(place)  # half of it is there
            return
        if (line := _line(raw[:-1])).is_of(role):
            yield line


def _line(raw: bytes) -> Line:
    return parse(raw.decode("utf-8", errors="replace"))


def _is_same(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return path.name == FILE_NAME  # the next one has not begun


def _opened(run_dir: Path) -> IO[bytes]:
    path = run_dir / FILE_NAME
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise NoLog(f"{path} does not exist: no job has begun there") from None
    except OSError as error:
        raise NoLog(f"{path} cannot be read: {error}") from None
