"""Kills a run at every single file operation of its commits. No Ray, no torch, no DeepSpeed.

    python commit_faults.py ROOT

The run: two ranks, each with a real commit writer of its own, train six tiny steps with a commit
every second one. Killed at any fault point and launched again, it must go on from a commit that is
not older than the last one announced as durable, and end in the same state. So must a run that is
killed again while it goes on, and while it puts a damaged commit aside. Prints what was passed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from learner import checkpoint
from learner.commit_files import Write, claim_timeline, set_aside
from learner.commit_writer import CommitWriter
from slipstream.errors import SlipstreamError
from slipstream.records import ReplaySnapshot
from slipstream.telemetry import EventLog
from tests.helpers.jobs import make_job

NUM_STEPS, NUM_RANKS = 6, 2
DURABLE, FINAL, START = "durable", "final.npy", "start"
DONE, FAILED, NO_COMMIT, KILLED = 0, 1, 3, -signal.SIGKILL  # how a launch ends
NUM_AT_ONCE = 2


class Rank:
    """One rank's state, and the generator that changes it."""

    def __init__(self) -> None:
        self.weights = np.zeros(100)
        self.random = np.random.default_rng(0)

    def step(self) -> None:
        self.weights += self.random.random(100)

    def copy(self, rank: int) -> dict[str, Write]:
        state = {"weights": self.weights.copy(), "random": _pack(self.random)}
        return {f"learner/rank-{rank}.npz": partial(_save, state)}

    def restore(self, directory: Path, rank: int) -> None:
        with np.load(directory / f"rank-{rank}.npz") as state:
            self.weights = state["weights"]
            self.random.bit_generator.state = json.loads(str(state["random"]))


def train(root: Path, *, resume: bool) -> None:
    """To the end. ROOT/durable lists the versions that were announced as safe, ROOT/start the
    one that it started from."""
    run, ranks, version = root / "checkpoints", [Rank() for _ in range(NUM_RANKS)], 0
    if resume:
        found = checkpoint.find(run)
        commit = found.required()
        set_aside(found)
        version = commit.version
        assert commit.replay.state == {"version": version}
        assert commit.replay.groups == {version: b"group", version + 1: bytes(range(256))}
        for rank, state in enumerate(ranks):
            state.restore(commit.learner_dir, rank)
    timeline = claim_timeline(run)
    (root / START).write_text(str(version))
    job = make_job(learner={"num_ranks": NUM_RANKS}, checkpoint={"every_steps": 2, "keep_last": 2})
    writers = [
        CommitWriter(
            job,
            run,
            timeline=timeline,
            rank=rank,
            copy=partial(state.copy, rank),
            rank_0_says=bool,
            events=EventLog("learner", rank),
            on_committed=partial(_note, root / DURABLE),
        )
        for rank, state in enumerate(ranks)
    ]
    while version < NUM_STEPS:
        for state in ranks:
            state.step()
        version += 1
        if writers[0].due(version):
            for rank, writer in enumerate(writers):
                writer.start(version, _snapshot(version) if rank == 0 else None)
    for writer in reversed(writers):
        writer.wait()
    np.save(root / FINAL, np.stack([state.weights for state in ranks]))


def _snapshot(version: int) -> ReplaySnapshot:
    groups = {version: b"group", version + 1: bytes(range(256))}
    return ReplaySnapshot(state={"version": version}, groups=groups)


def _note(file: Path, version: int) -> None:
    with file.open("a") as lines:
        lines.write(f"{version}\n")


def _pack(random: np.random.Generator) -> np.ndarray:
    return np.array(json.dumps(random.bit_generator.state))


def _save(state: Mapping[str, np.ndarray], path: Path) -> None:
    np.savez(path, **state)


# --- killing ----------------------------------------------------------------------


def main() -> None:
    base = Path(sys.argv[1])
    assert run(base / "whole", resume=False) == DONE
    expected = np.load(base / "whole" / FINAL)
    killed, damaged = base / "killed", base / "damaged"
    assert run(killed, resume=False, fault="commit.rename:2") == KILLED
    assert run(damaged, resume=False) == DONE
    os.truncate(damaged / "checkpoints/step-00000006-t0000/learner/rank-1.npz", 10)
    (damaged / DURABLE).write_text("4\n")
    cases = [(before, point) for before in (None, killed, damaged) for point in trace(base, before)]
    print(f"{len(cases)} points: {dict(Counter(point.split(':')[0] for _, point in cases))}")
    running: set[int] = set()
    for number, case in enumerate(cases):
        if len(running) == NUM_AT_ONCE:
            wait_for_one(running)
        running.add(forked(partial(survives, base / str(number), *case, expected)))
    while running:
        wait_for_one(running)


def trace(base: Path, before: Path | None) -> list[str]:
    """Every fault point with the number of its passing, of a launch after `before`."""
    root, file = base / f"trace-{before and before.name}", base / "trace"
    prepare(root, before)
    file.unlink(missing_ok=True)
    assert run(root, resume=before is not None, trace=file) == DONE
    passings = Counter(file.read_text().split())
    return [f"{name}:{n}" for name, count in passings.items() for n in range(1, count + 1)]


def survives(root: Path, before: Path | None, point: str, expected: np.ndarray) -> None:
    """A launch after `before`, killed at `point`, then launched again."""
    prepare(root, before)
    assert run(root, resume=before is not None, fault=point) == KILLED, point
    durable = int((root / DURABLE).read_text().split()[-1]) if (root / DURABLE).exists() else 0
    (root / START).unlink(missing_ok=True)
    ended = run(root, resume=True)
    if ended == NO_COMMIT:
        assert durable == 0, f"{point}: version {durable} was durable and is lost"
        ended = run(root, resume=False)
    assert ended == DONE, f"{point}: {ended}"
    start = int((root / START).read_text())
    assert durable <= start <= durable + 2, f"{point}: from {start}, {durable} was durable"
    assert np.array_equal(np.load(root / FINAL), expected), point
    left = [path.name for path in (root / "checkpoints").glob(".tmp-*")]
    assert not left or start == NUM_STEPS, f"{point}: {left} were left"
    shutil.rmtree(root)


def prepare(root: Path, before: Path | None) -> None:
    if before is None:
        root.mkdir()
    else:
        shutil.copytree(before, root)
        (root / FINAL).unlink(missing_ok=True)


def run(root: Path, *, resume: bool, fault: str = "", trace: Path | str = "") -> int:
    """One launch, in a process of its own; how it ended."""

    def launch() -> None:
        os.environ.update(SLIPSTREAM_FAULT=fault, SLIPSTREAM_FAULT_TRACE=str(trace))
        train(root, resume=resume)

    _, status = os.waitpid(forked(launch), 0)
    return os.waitstatus_to_exitcode(status)


def forked(work: Callable[[], None]) -> int:
    process = os.fork()
    if process:
        return process
    code = FAILED
    try:
        work()
        code = DONE
    except SlipstreamError as error:
        code = NO_COMMIT if "no commit" in str(error) else FAILED
        if code == FAILED:
            traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait_for_one(running: set[int]) -> None:
    process, status = os.wait()
    running.remove(process)
    assert status == 0, "see above"


if __name__ == "__main__":
    main()
