"""The writer beside the training: what it costs the step, what a failure costs the run."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from learner import checkpoint, commit_files
from learner.best import Best
from learner.commit_files import Write
from learner.commit_writer import CommitWriter
from orchestrator.best import write_best, write_undecided
from slipstream.config.compare import job_hash
from slipstream.errors import SlipstreamError
from slipstream.records import ReplaySnapshot
from slipstream.telemetry import EventLog
from tests.helpers.jobs import make_job


class World:
    """A writer whose one file is what `write` does."""

    def __init__(self, root: Path, *, rank: int = 0, num_ranks: int = 1, **config: Any) -> None:
        self.root, self.rank = root, rank
        self.write: Write = lambda path: path.touch()
        self.committed: list[int] = []
        self.events = EventLog("learner", rank)
        self.job = make_job(
            checkpoint=config, learner={"num_ranks": num_ranks, "step_timeout_s": 1}
        )
        self.answers: list[bool] = []
        self.writer = self.make_writer()

    def make_writer(self) -> CommitWriter:
        return CommitWriter(
            self.job,
            self.root,
            timeline=1,
            rank=self.rank,
            copy=self.copy,
            rank_0_says=self.rank_0_says,
            events=self.events,
            on_committed=self.committed.append,
        )

    def copy(self) -> Mapping[str, Write]:
        return {f"learner/state-{self.rank}": self.write}

    def rank_0_says(self, answer: bool) -> bool:
        self.answers.append(answer)
        return answer


def no_space(path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_training_goes_on_while_a_commit_is_written(tmp_path: Path) -> None:
    world, may_write = World(tmp_path), threading.Event()

    def held_back(path: Path) -> None:
        may_write.wait()
        path.touch()

    world.write = held_back
    world.writer.start(2, ReplaySnapshot(state={"version": 2}, groups={3: b"x"}))
    assert world.committed == []
    may_write.set()
    world.writer.wait()
    assert world.committed == [2]
    commit = checkpoint.find(tmp_path).required()
    assert (commit.version, commit.replay.groups) == (2, {3: b"x"})
    assert commit.job == world.job.model_dump(mode="json")
    assert checkpoint.read_manifest(commit.path)["job_hash"] == job_hash(world.job)
    (event,) = world.events.drain()
    assert event["kind"] == "commit"
    assert event["path"] == str(commit.path)
    assert event["pause_s"] < 1


def test_the_next_commit_joins_the_one_before(tmp_path: Path) -> None:
    world = World(tmp_path, keep_last=5)
    for version in range(1, 6):
        world.writer.start(version, None)
        assert world.committed == list(range(1, version)) or world.committed[-1] == version
    world.writer.wait()
    assert world.committed == [1, 2, 3, 4, 5]
    assert len(checkpoint.steps(tmp_path)) == 5


def test_a_full_disk_is_said_and_costs_no_commit_that_was_there(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.writer.start(2, None)
    world.writer.join()
    sound, world.write = world.write, no_space
    world.writer.start(4, None)
    world.writer.join()
    world.write = sound
    assert world.committed == [2]
    assert list(tmp_path.glob(".tmp-*")) == [], "the space is free again"
    failed = world.events.drain()[1]
    assert failed["kind"] == "commit_failed"
    assert "version 4" in failed["message"]
    assert "learner/state-0: No space left on device" in failed["message"]
    assert checkpoint.find(tmp_path).required().version == 2
    world.writer.start(6, None)
    world.writer.wait()
    assert checkpoint.find(tmp_path).required().version == 6


def test_a_last_commit_that_fails_ends_the_job(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.write = no_space
    world.writer.start(2, None)
    with pytest.raises(SlipstreamError, match=r"the last commit of version 2 failed.*No space"):
        world.writer.wait()


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    world = World(tmp_path / "file")
    world.writer.start(2, None)
    with pytest.raises(SlipstreamError, match=r"file/.tmp-step-00000002-t0001: Not a directory"):
        world.writer.wait()


@pytest.mark.parametrize(("operation", "newest"), [("rename", 2), ("point_at", 4), ("sync", 2)])
def test_a_failing_operation_keeps_the_commit_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, newest: int
) -> None:
    world = World(tmp_path)
    world.writer.start(2, None)
    world.writer.wait()

    def fails(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    where: Any = Path if operation == "rename" else commit_files
    monkeypatch.setattr(where, operation, fails)
    world.writer.start(4, None)
    with pytest.raises(SlipstreamError, match="Read-only file system"):
        world.writer.wait()
    monkeypatch.undo()
    assert checkpoint.find(tmp_path).required().version == newest


def test_a_rank_that_fails_is_reported_by_rank_0_at_once(tmp_path: Path) -> None:
    first, second = (World(tmp_path, rank=rank, num_ranks=2) for rank in (0, 1))
    second.write = no_space
    second.writer.start(2, None)
    second.writer.join()
    first.writer.start(2, None)
    first.writer.join()
    assert first.committed == []
    assert "rank 1: " in first.events.drain()[0]["message"]
    assert second.events.drain()[0]["kind"] == "commit_failed"
    assert list(tmp_path.iterdir()) == []


def test_pruning_that_fails_is_no_failed_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)

    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(commit_files, "prune", fails)
    world.writer.start(2, None)
    world.writer.wait()
    assert [event["kind"] for event in world.events.drain()] == ["commit", "prune_failed"]


def test_commits_are_due_by_steps_and_by_minutes(tmp_path: Path) -> None:
    world = World(tmp_path, every_steps=3)
    assert [version for version in range(1, 10) if world.writer.due(version)] == [3, 6, 9]
    assert world.answers == [], "no rank asks another where the clock does not matter"
    world = World(tmp_path, every_steps=0)
    assert not any(world.writer.due(version) for version in range(1, 10))
    world = World(tmp_path, every_steps=5, every_minutes=1e-9)
    assert world.writer.due(1)
    world = World(tmp_path, every_steps=5, every_minutes=60)
    assert not world.writer.due(1)
    assert world.writer.due(5)
    assert world.answers == [False]


TORCH_ON_A_FULL_DISK = """
import resource, signal, sys, torch
from functools import partial
from pathlib import Path
from learner import contents
from learner.checkpoint import find
from tests.unit.learner.test_commit_writer import World

world = World(Path(sys.argv[1]))
world.writer.start(2, None)
world.writer.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
world.write = partial(contents.save, {"weights": torch.zeros(2**20)})
world.writer.start(4, None)
world.writer.join()
print(world.events.drain()[-1]["message"])
assert find(world.root).required().version == 2
"""


def test_torch_says_why_it_could_not_write(tmp_path: Path) -> None:
    """A limit on the size of files stands for the end of a disk."""
    done = subprocess.run(
        [sys.executable, "-c", TORCH_ON_A_FULL_DISK, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "learner/state-0: File too large" in done.stdout


def test_what_is_evaluated_is_committed_and_the_best_outlives_newer_ones(tmp_path: Path) -> None:
    world = World(tmp_path, keep_best="greedy_accuracy", every_steps=0, keep_last=1)
    data = world.job.data.model_copy(update={"eval_every_steps": 5})
    world.job = world.job.model_copy(update={"data": data})
    world.writer = world.make_writer()
    assert [version for version in range(1, 12) if world.writer.due(version)] == [5, 10]
    write_undecided(tmp_path, (), seen=30)
    for version in (5, 10, 15):
        world.writer.start(version, ReplaySnapshot(state={"version": version}, groups={}))
        world.writer.wait()
        if version == 10:
            name = checkpoint.name_of(10, 1)
            found = Best(commit=name, version=10, set="eval", metric="greedy_accuracy", value=0.5)
            write_best(tmp_path, found)
    assert [checkpoint.version_of(path) for path in checkpoint.steps(tmp_path)] == [15, 10]
    world.writer.wait()
    assert checkpoint.find(tmp_path).required().version == 15


def test_a_commit_may_be_renamed_as_soon_as_the_last_part_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 looks all the time, and a rank that is slow to go on has not failed."""
    directory, final = commit_files.aside(tmp_path, 2, 0), tmp_path / "final"
    replace = Path.replace

    def replaced(path: Path, target: Path) -> Path:
        done = replace(path, target)
        if target.name.startswith("part-"):
            directory.rename(final)
        return done

    monkeypatch.setattr(Path, "replace", replaced)
    commit_files.write_part(directory, 1, {"a": Path.touch})
    assert (final / "a").exists()
