"""A run's directory, and the one place that writes its log. docs/run_files.md says who reads what.

<checkpoint.dir>/<name>/
    driver.json       the driver at work on it; see `run_lease.py`
    status.json       how it goes, for `slipstream status`
    control/          requests to the driver; see `control.py`
    job.yaml          the job as resolved, presets and overrides included
    environment.json  machine, versions, git commit and command line of every launch
    result.json       the figures of the newest launch, written at its end
    metrics.jsonl     every event of every role, one JSON object a line
    samples.jsonl     prompts with their answers and rewards, for people, one group a line
    tensorboard/      the curves, for TensorBoard
    trackers.json     the run's id at each tracker of `telemetry.trackers`
    trace.json        who did what when, for Perfetto; written at the end
    log.txt           what the driver and the roles say; see `run_log.py`
    replay.sqlite     replay's journal
    stacks-*.txt      what every role did when the watchdog ended the job
    checkpoints/      the commits, and `latest`
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

from ruamel.yaml import YAML

from orchestrator import run_lease
from orchestrator.run_files import outside, write_whole
from orchestrator.run_log import RunLog
from orchestrator.trackers.curves import Curves
from orchestrator.trackers.feed import Feed, end_all
from orchestrator.trackers.tracker import Tracker, open_tracker
from slipstream.config.job import JobConfig
from slipstream.errors import SlipstreamError
from slipstream.secrets import redact
from slipstream.telemetry import EventLog

# Figures and a model's own words; all others may hold what a program has said.
WITHOUT_SECRETS = ("busy", "replay", "sample", "step")


class RunDir:
    """Opened once by the launcher; the roles get its path."""

    def __init__(self, path: Path, feeds: Sequence[Feed], events: EventLog) -> None:
        self.path = path
        self.metrics_file = path / "metrics.jsonl"
        self._metrics = _append_to(self.metrics_file)
        self._samples = _append_to(path / "samples.jsonl")
        self._curves = Curves()
        self._feeds = feeds
        self._events = events
        self._has_gap = False
        self.log = RunLog(path)
        self.tell: Callable[[str], None] = self.log.driver  # hears that something is not written

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
            YAML().dump(job.model_dump(mode="json"), file)  # a job that holds a secret is refused
        events = EventLog("driver", 0)
        return cls(path, _feeds(job, path, events), events)

    def add_launch(self, environment: Mapping[str, Any]) -> None:
        """Where and how it was launched, beside the launches before."""
        file = self.path / "environment.json"
        before: list[Any] = []
        with suppress(OSError, ValueError, KeyError, TypeError):  # none, or cut
            before = list(json.loads(file.read_text(encoding="utf-8"))["launches"])
        with self._gap_where_full():
            write_whole(file, {"launches": [*before, environment]})

    def write(self, event: Mapping[str, Any], *, is_shown: bool = True) -> None:
        """An event of any role, wherever it belongs. `is_shown`: in curves and trackers, too.

        Where the disk is full the files have a gap, and the job goes on.
        """
        kind = event["kind"]
        shown = event if kind in WITHOUT_SECRETS else redact(event)
        file = self._samples if kind == "sample" else self._metrics
        with self._gap_where_full():
            file.write(json.dumps(shown, default=float) + "\n")
        if not is_shown or not self._feeds:
            return
        if (figures := self._curves.hear(event)) is not None:
            for feed in self._feeds:
                feed.log(figures)

    def take_events(self) -> list[dict[str, Any]]:
        """What has become of the trackers since the last call; to be written like any other."""
        return self._events.drain()

    def write_result(self, result: Mapping[str, Any]) -> None:
        with self._gap_where_full():
            write_whole(self.path / "result.json", result)

    def close(self) -> list[dict[str, Any]]:
        """Trackers get some seconds to take what is left; what became of them, already written."""
        end_all(self._feeds)
        events = self.take_events()
        for event in events:
            self.write(event)
        for file in (self._metrics, self._samples):
            with self._gap_where_full():
                file.close()
        return events

    def flush(self) -> None:
        for file in (self._metrics, self._samples):
            with self._gap_where_full():
                file.flush()

    @contextmanager
    def _gap_where_full(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_gap:
                self._has_gap = True
                self.tell(f"{self.path} has a gap from now on, and the job goes on: {error}")


def _feeds(job: JobConfig, path: Path, events: EventLog) -> list[Feed]:
    if not job.telemetry.enabled:
        return []
    feeds = [Feed("tensorboard", partial(_tensorboard, path), events)]
    for name in job.telemetry.trackers:
        feeds.append(Feed(name, partial(open_tracker, name, job, path), events))
    return feeds


def _tensorboard(path: Path) -> Tracker:
    from orchestrator.trackers.to_tensorboard import TensorBoard

    return TensorBoard(path / "tensorboard")


def _append_to(path: Path) -> IO[str]:
    """A driver that was killed may have left half a line, which the next one must not join."""
    with path.open("ab+") as before:
        if before.tell():
            before.seek(-1, os.SEEK_END)
            if before.read() != b"\n":
                before.write(b"\n")
    return path.open("a", encoding="utf-8")


def _clear(path: Path) -> None:
    """Remove all but the lease, which keeps others out meanwhile."""
    for entry in path.iterdir() if path.exists() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif not entry.name.startswith(run_lease.FILE_NAME):
            entry.unlink()
