"""Commits beside the training: copies on the step's thread, files on another one.

    start(version)   waits for the commit before, copies (collective), returns
    thread           writes the copies; on rank 0 it makes the commit and tells who wants to know
    wait()           at the end of the job: the last commit is there, or CommitFailed

A commit that fails is reported and its files are removed; training goes on, and the commits
before it stay. Knows no torch.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from learner import best, commit_files
from learner.checkpoint import GROUPS, reason_of
from learner.commit_files import Write
from slipstream.config.compare import job_hash
from slipstream.config.job import JobConfig
from slipstream.errors import CommitFailed, SlipstreamError
from slipstream.records import ReplaySnapshot
from slipstream.telemetry import EventLog


class CommitWriter:
    """One rank's. `copy` gives the files of this rank, from copies of what they hold; every rank
    calls it at once. `rank_0_says` gives every rank the answer of rank 0. `on_committed` hears of
    every version that would survive a crash from now on, on rank 0's writing thread."""

    def __init__(
        self,
        job: JobConfig,
        root: Path,
        *,
        timeline: int,
        rank: int,
        copy: Callable[[], Mapping[str, Write]],
        rank_0_says: Callable[[bool], bool],
        events: EventLog,
        on_committed: Callable[[int], None] = lambda _version: None,
    ) -> None:
        self._job = job
        self._root = root
        self._timeline = timeline
        self._rank = rank
        self._copy = copy
        self._rank_0_says = rank_0_says
        self._events = events
        self._on_committed = on_committed
        self._thread: threading.Thread | None = None
        self._failure: str | None = None  # of the newest commit
        self._started_s = time.monotonic()

    def due(self, version: int) -> bool:
        """Whether a commit is due at this step boundary; every rank calls it."""
        config = self._job.checkpoint
        if config.every_steps and version % config.every_steps == 0:
            return True
        eval_every = self._job.data.eval_every_steps
        if config.keep_best is not None and eval_every and version % eval_every == 0:
            return True  # it may turn out to be the best
        if not config.every_minutes:
            return False
        return self._rank_0_says(time.monotonic() - self._started_s >= 60 * config.every_minutes)

    def start(self, version: int, replay: ReplaySnapshot | None) -> None:
        """Commit this step boundary; every rank calls it, rank 0 with replay's snapshot of it.

        Training may go on as soon as it returns.
        """
        start_s = time.perf_counter()
        self.join()
        files = dict(self._copy())
        if replay is not None and replay.groups:
            files[GROUPS] = partial(commit_files.save_groups, replay.groups)
        pause_s = time.perf_counter() - start_s
        self._failure = None
        self._started_s = time.monotonic()
        self._thread = threading.Thread(
            target=self._write, args=(version, files, replay, pause_s), name=f"commit-{version}"
        )
        self._thread.start()

    def join(self) -> None:
        """Until no commit is under way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Until the newest commit is there. Raises CommitFailed."""
        self.join()
        if self._failure is not None:
            raise CommitFailed(f"the last {self._failure}")

    def _write(
        self,
        version: int,
        files: Mapping[str, Write],
        replay: ReplaySnapshot | None,
        pause_s: float,
    ) -> None:
        start_s = time.perf_counter()
        directory = commit_files.aside(self._root, version, self._timeline)
        try:
            if self._rank == 0:
                commit_files.clean(self._root, keep=directory)
            commit_files.write_part(directory, self._rank, files)
            if self._rank != 0:
                return
            path = self._publish(version, replay)
        except Exception as error:
            self._fail(version, directory, error)
            return
        self._events.emit(
            "commit",
            version=version,
            path=str(path),
            seconds=time.perf_counter() - start_s,
            pause_s=pause_s,
        )
        self._prune(version)

    def _publish(self, version: int, replay: ReplaySnapshot | None) -> Path:
        return commit_files.publish(
            self._root,
            version,
            self._timeline,
            num_ranks=self._job.learner.num_ranks,
            # Less than the ranks' collectives wait, in which the others meet the next commit.
            timeout_s=self._job.learner.step_timeout_s / 2,
            contents={
                "job": self._job.model_dump(mode="json"),
                "job_hash": job_hash(self._job),
                "replay": {} if replay is None else replay.state,
            },
        )

    def _fail(self, version: int, directory: Path, error: Exception) -> None:
        self._failure = (
            f"commit of version {version} failed: {_words(error)}. Commits before it stay; see to "
            f"the space and the rights of {self._root}"
        )
        self._events.emit("commit_failed", version=version, message=self._failure)
        if self._rank == 0:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            commit_files.mark_failed(directory, self._rank, f"rank {self._rank}: {_words(error)}")

    def _prune(self, version: int) -> None:
        try:
            self._on_committed(version)
            keep_best = self._job.checkpoint.keep_best is not None
            kept = best.kept(self._root) if keep_best else ()
            commit_files.prune(self._root, self._job.checkpoint.keep_last, kept)
        except Exception as error:
            message = f"what is older than a commit could not be removed: {_words(error)}"
            self._events.emit("prune_failed", version=version, message=message)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, SlipstreamError | OSError) else reason_of(error)
