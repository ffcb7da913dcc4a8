"""Where a run lies, and how its small files are written while others read them."""

from __future__ import annotations

import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slipstream.errors import SlipstreamError

OF_EVERY_EVENT = {"kind", "role", "index", "time_s"}
JOB_FILE = "job.yaml"  # which many directories have that are no run
FILES_OF_A_RUN = ("metrics.jsonl", "environment.json", "driver.json")


class NoRun(SlipstreamError):
    """There is no run of this name."""


def find_run(run: str) -> Path:
    """The directory of `run`, which is its path or its name in ./runs. Raises NoRun."""
    for path in (Path(run), Path("runs") / run):
        if path.is_dir():
            return path
    raise NoRun(f"there is no run {run}: neither a directory here nor a name in ./runs")


def outside(root: Path, run_dir: Path) -> str | None:
    """Why `run_dir` does not lie in `root`, or None: it is a link, or its commits are.

    `root` itself may be a link, to a larger disk say.
    """
    for path, real in (
        (run_dir, root.resolve() / run_dir.name),
        (run_dir / "checkpoints", run_dir.resolve() / "checkpoints"),
    ):
        if (leads_to := path.resolve()) != real:
            return (
                f"{path} is a link to {leads_to}; what a run writes and deletes stays in "
                f"{root}: remove the link, or set checkpoint.dir"
            )
    return None


def no_run(run_dir: Path) -> str | None:
    """Why `run_dir` is not to be emptied, or None: it holds something, and not what a run does."""
    has_any = any((run_dir / name).exists() for name in FILES_OF_A_RUN)
    if not run_dir.exists() or (has_any and (run_dir / JOB_FILE).exists()):
        return None
    if run_dir.is_dir() and not any(run_dir.iterdir()):
        return None
    return (
        f"{run_dir} is no run: it does not hold {JOB_FILE} beside one of "
        f"{', '.join(FILES_OF_A_RUN)}, so it is not emptied; choose another name or checkpoint.dir"
    )


def write_whole(path: Path, content: Mapping[str, Any], *, synced: bool = False) -> None:
    """Write JSON aside and rename it: a reader finds the old file or the new one, whole. `synced`:
    also after the machine has lost its power."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        aside.write_text(json.dumps(content, indent=2, default=float) + "\n", encoding="utf-8")
        if synced:
            _sync(aside)
        aside.replace(path)
        if synced:
            _sync(path.parent)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def event_of(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None where it was cut, as a driver was killed, or is damaged."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and event.keys() >= OF_EVERY_EVENT else None


def events(path: Path) -> Iterator[dict[str, Any]]:
    """All that can be read of metrics.jsonl, by time of writing. Raises OSError."""
    with path.open("rb") as file:
        for line in file:
            if (event := event_of(line)) is not None:
                yield event


def now_s(directory: Path) -> float:
    """The time by the clock that dates the files in `directory`; a file server has its own.

    This machine's time where nothing can be written there.
    """
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            os.utime(file.fileno())
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
