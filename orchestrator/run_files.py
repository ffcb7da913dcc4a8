"""Where a run lies, and how its small files are written while others read them."""

from __future__ import annotations

import json
import os
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slipstream.errors import SlipstreamError


class NoRun(SlipstreamError):
    """There is no run of this name."""


def find_run(run: str) -> Path:
    """The directory of `run`, which is its path or its name in ./runs. Raises NoRun."""
    for path in (Path(run), Path("runs") / run):
        if path.is_dir():
            return path
    raise NoRun(f"there is no run {run}: neither a directory here nor a name in ./runs")


def write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON aside and rename it: a reader finds the old file or the new one, whole."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        aside.write_text(json.dumps(content, indent=2, default=float) + "\n", encoding="utf-8")
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


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
