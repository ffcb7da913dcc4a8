"""Which evaluated commit is the best one (`checkpoint.keep_best`).

    eval_started ──▶ its commit stays until what came of it is known
    eval, commit ──▶ both are there: is it better than the best? ──▶ checkpoints/best, `best`

An evaluation of a version that was not committed counts for nothing, as does one in which many
answers got no reward. `learner/best.py` reads the files.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from learner.best import BEST, UNDECIDED, Best, read_best
from learner.checkpoint import steps, version_of
from orchestrator.run_files import write_whole
from slipstream.config.job import JobConfig

Event = dict[str, Any]
MAX_FAILURES = 0.1  # of all answers: what an evaluation with more of them says is chance


class BestKeeper:
    """Of one run. `root`: its checkpoints."""

    def __init__(self, job: JobConfig, root: Path) -> None:
        self._root = root
        self._metric = job.checkpoint.keep_best
        self._set = job.best_set
        self._every = job.data.eval_every_steps
        self._best = read_best(root)
        if self._best is not None and (self._best.set, self._best.metric) != self._wanted:
            self._best = None  # it was chosen by something else
        self._num_answers = 1 + job.eval.num_samples  # to each prompt
        self._running: dict[int, int] = {}  # version under evaluation, by worker
        self._values: dict[int, float] = {}  # by version, whose commit is not there yet
        self._written: tuple[list[int], int] | None = None
        if self._metric is not None and self._best is None:
            self._forget()

    @property
    def _wanted(self) -> tuple[str | None, str | None]:
        return self._set, self._metric

    def heard(self, event: Mapping[str, Any]) -> list[Event]:
        """What follows from an event of weights that are not gone."""
        if self._metric is None:
            return []
        match event["kind"]:
            case "eval_started":
                self._running[event["index"]] = event["version"]
            case "eval_dropped" | "worker_died" | "worker_left":
                self._running.pop(event["index"], None)
            case "eval" if event["set"] == self._set:
                if (value := event[self._metric]) is not None and not self._failed(event):
                    self._values[event["version"]] = value
                found = self._choose()
                self._running.pop(event["index"], None)
                return found
            case "commit":
                return self._choose(committed=event["version"])
        return []

    @property
    def event(self) -> Event | None:
        """The `best` event of what is the best now."""
        if self._metric is None or self._best is None:
            return None
        return {
            "kind": "best",
            "role": "driver",
            "index": 0,
            "time_s": time.time(),
            "version": self._best.version,
            "set": self._best.set,
            "metric": self._best.metric,
            "value": self._best.value,
            "path": str(self._root / self._best.commit),
        }

    def tick(self, version: int) -> None:
        """Say which commits must stay: `version` is the learner's newest."""
        if self._metric is None:
            return
        now = self._undecided(version), version
        if now != self._written:
            with suppress(OSError):  # then too many stay
                write_undecided(self._root, *now)
                self._written = now

    def go_back(self, version: int) -> None:
        """The run goes on from `version`; newer weights are gone."""
        if self._metric is None:
            return
        self._values = {v: value for v, value in self._values.items() if v <= version}
        self._running = {}
        self._best = read_best(self._root)
        if self._best is None:
            self._forget()
        self._written = None
        self.tick(version)

    def _undecided(self, version: int) -> list[int]:
        """Those that are evaluated, those that wait, and the newest ones that may come to be: a
        worker can take weights that were the newest when it asked for them."""
        newest = version // self._every * self._every if self._every else version
        waiting = {newest, newest - self._every, *self._values, *self._running.values()}
        return sorted(v for v in waiting if v >= 0)

    def _failed(self, event: Mapping[str, Any]) -> bool:
        most = MAX_FAILURES * event["num_prompts"] * self._num_answers
        return bool(event["num_failures"] > most)

    def _choose(self, committed: int | None = None) -> list[Event]:
        """Compare what is evaluated and committed with the best."""
        paths = {version_of(path): path for path in reversed(steps(self._root))}
        found = []
        for version in sorted(self._values):
            if version in paths:
                found += self._compare(paths[version], version, self._values.pop(version))
            elif committed is not None and version < committed:
                del self._values[version]  # it was never committed
        return found

    def _compare(self, path: Path, version: int, value: float) -> list[Event]:
        if self._best is not None and value <= self._best.value:
            return []
        assert self._set is not None and self._metric is not None
        best = Best(
            commit=path.name, version=version, set=self._set, metric=self._metric, value=value
        )
        try:
            write_best(self._root, best)
        except OSError:
            return []  # the one before stays
        self._best = best
        return [self.event] if self.event is not None else []

    def _forget(self) -> None:
        with suppress(OSError):
            write_best(self._root, None)


def write_best(root: Path, best: Best | None) -> None:
    """Raises OSError."""
    if best is None:
        (root / BEST).unlink(missing_ok=True)
    else:
        write_whole(root / BEST, asdict(best), synced=True)


def write_undecided(root: Path, versions: Collection[int], seen: int) -> None:
    """Keep these, and all above `seen`, the newest version that was thought about. Raises OSError.

    After `write_best` where both change, as they are read the other way round. An older file, or
    none, keeps more.
    """
    write_whole(root / UNDECIDED, {"versions": sorted(versions), "seen": seen})
