"""A run's directory: the resolved job, `metrics.jsonl`, and the checkpoints.

<checkpoint.dir>/<name>/
    driver.json       the driver at work on it; see `run_lease.py`
    status.json       how it goes, for `slipstream status`
    control/          requests to the driver; see `control.py`
    job.yaml          the job as resolved, presets and overrides included
    result.json       the figures of the newest launch, written at its end
    metrics.jsonl     every event of every role, one JSON object a line
    replay.sqlite     replay's journal
    stacks-*.txt      what every role did when the watchdog ended the job
    checkpoints/      the commits, and `latest`
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ruamel.yaml import YAML

from orchestrator import run_lease
from orchestrator.run_files import outside
from slipstream.config.job import JobConfig
from slipstream.errors import SlipstreamError


class RunDir:
    """Opened once by the launcher; the roles get its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_file = path / "metrics.jsonl"
        self._metrics = self.metrics_file.open("a", encoding="utf-8")

    @classmethod
    def open(cls, job: JobConfig, *, overwrite: bool) -> Self:
        """Create or reopen the directory of `job`, which the caller holds (`run_lease.held`).

        Whether it may be is the preflight's say. Raises SlipstreamError where a link has come in
        between that leads out of `checkpoint.dir`.
        """
        if message := outside(job.checkpoint.dir, job.run_dir):
            raise SlipstreamError(message)
        path = job.run_dir.resolve()
        if overwrite:
            _clear(path)
        path.mkdir(parents=True, exist_ok=True)
        with (path / "job.yaml").open("w", encoding="utf-8") as file:
            YAML().dump(job.model_dump(mode="json"), file)
        return cls(path)

    def write(self, event: Mapping[str, Any]) -> None:
        self._metrics.write(json.dumps(event, default=float) + "\n")

    def write_result(self, result: Mapping[str, Any]) -> None:
        (self.path / "result.json").write_text(json.dumps(result, indent=2, default=float) + "\n")

    def close(self) -> None:
        self._metrics.close()

    def flush(self) -> None:
        self._metrics.flush()


def _clear(path: Path) -> None:
    """Remove all but the lease, which keeps others out meanwhile."""
    for entry in path.iterdir() if path.exists() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif not entry.name.startswith(run_lease.FILE_NAME):
            entry.unlink()
