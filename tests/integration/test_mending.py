"""One job to which everything happens while it trains: real Ray and DeepSpeed, scripted engine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.runs import (
    ROOT,
    assert_nothing_is_left,
    environment,
    events,
    launch,
    ledger,
    processes,
    started,
    wait_for,
)

JOB = ROOT / "examples" / "arithmetic" / "buffered.yaml"
SETTINGS = (
    *("name=mended", "learner.num_steps=100000", "learner.warmup_steps=0", "data.eval=null"),
    *("learner.groups_per_batch=8", "checkpoint.every_steps=20", "replay.max_staleness=3"),
    *("rollout.engine=scripted", "weights.probe=false", "rollout.num_workers=2"),
    *("health.heartbeat_timeout_s=6", "health.call_timeout_s=20", "learner.max_restarts=9"),
    "replay.call_timeout_s=20",
)
CPUS = {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 8})}  # logical ones, more than there are


def test_a_job_whose_driver_is_killed_leaves_nothing_and_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "mended"
    few = (*SETTINGS, "rollout.num_workers=1")
    with started(JOB, tmp_path, *few) as job:
        wait_for(lambda: len(events(directory, "step")) > 25)
        psutil.Process(job.pid).kill()
        assert_nothing_is_left()
    made = max(event["version"] for event in events(directory, "step"))
    goal = f"learner.num_steps={made + 5}"
    done = launch(JOB, tmp_path, *few, goal, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ledger(directory)["fates"] == {"trained": 8 * (made + 5)}
    assert_nothing_is_left()


def test_shared_devices_mend_too(tmp_path: Path) -> None:
    """In `sync` worker and learner take turns, and each waits for the other's successor."""
    directory = tmp_path / "turns"
    settings = (*SETTINGS, "name=turns", "mode=sync", "rollout.num_workers=1")
    settings = (*settings, "replay.max_staleness=0")
    with started(JOB, tmp_path, *settings) as job:
        wait_for(lambda: len(events(directory, "step")) > 25)
        psutil.Process(pids("RolloutWorkerActor")[0]).kill()
        wait_for(lambda: len(events(directory, "worker_started")) == 2)
        wait_for_steps(directory, 5)
        assert not events(directory, "went_back"), "the learner waits"
        psutil.Process(pids("LearnerRank")[0]).kill()
        wait_for(lambda: len(events(directory, "went_back")) == 1)
        wait_for_steps(directory, 5)
        assert slipstream("stop", str(directory)).returncode == 0
        assert job.wait(timeout=60) == 0
    assert len(events(directory, "worker_died")) == 1, "the worker goes on"
    assert ledger(directory)["findings"] == []
    assert_nothing_is_left()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a job that trains; at the end it is stopped, and its promise holds."""
    runs = tmp_path_factory.mktemp("runs")
    directory = runs / "mended"
    with started(JOB, runs, *SETTINGS, more=CPUS) as job:
        wait_for(lambda: bool(events(directory, "step")))
        yield directory
        done = slipstream("stop", str(directory))
        assert done.returncode == 0, done.stderr
        assert job.wait(timeout=60) == 0
    found = ledger(directory)
    assert found["findings"] == []
    assert found["rollbacks"]
    assert_nothing_is_left()


def slipstream(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "orchestrator.cli", *arguments]
    return subprocess.run(
        program, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


def roles(run: Path, kind: str) -> dict[str, dict[str, Any]]:
    """By name, of the workers (`rollout`) or ranks (`learner`)."""
    return {role["name"]: role for role in status(run)["roles"] if role["name"].startswith(kind)}


def are_serving(run: Path, kind: str, count: int) -> bool:
    found = roles(run, kind)
    good = [role for role in found.values() if role["state"] in ("serving", "syncing")]
    return len(found) == len(good) == count


def pids(title: str) -> list[int]:
    return sorted(pid for pid, line in processes().items() if f"ray::{title}" in line)


def wait_for_steps(run: Path, num_more: int) -> None:
    goal = len(events(run, "step")) + num_more
    wait_for(lambda: len(events(run, "step")) >= goal)


def told(run: Path, kind: str, since: int) -> list[dict[str, Any]]:
    """Events of a kind, but for the first `since`."""
    return events(run, kind)[since:]


def test_a_killed_worker_is_replaced_and_the_others_go_on(run: Path) -> None:
    num_died = len(events(run, "worker_died"))
    psutil.Process(pids("RolloutWorkerActor")[0]).kill()
    wait_for_steps(run, 5)
    wait_for(lambda: len(told(run, "worker_died", num_died)) == 1)
    wait_for(lambda: are_serving(run, "rollout", 2))
    assert sorted(role["incarnation"] for role in roles(run, "rollout").values()) == [0, 1]
    assert not events(run, "went_back")


def test_a_worker_that_hangs_is_noticed_and_replaced(run: Path) -> None:
    num_died = len(events(run, "worker_died"))
    stopped = psutil.Process(pids("RolloutWorkerActor")[0])
    stopped.suspend()
    stopped_s = time.time()
    wait_for(lambda: bool(told(run, "worker_died", num_died)))
    (died,) = told(run, "worker_died", num_died)
    assert died["time_s"] - stopped_s < 10.0
    assert "does not answer" in died["cause"]
    assert not died["blame"]
    with suppress(psutil.Error):
        stopped.resume()
    wait_for(lambda: are_serving(run, "rollout", 2))


def test_sigterm_is_no_death(run: Path) -> None:
    num_died, num_left = len(events(run, "worker_died")), len(events(run, "worker_left"))
    psutil.Process(pids("RolloutWorkerActor")[0]).terminate()
    wait_for(lambda: bool(told(run, "worker_left", num_left)))
    assert told(run, "worker_left", num_left)[0]["reason"] == "preempted"
    wait_for(lambda: are_serving(run, "rollout", 2))
    assert not told(run, "worker_died", num_died)


def test_workers_are_added_and_let_go_while_it_trains(run: Path) -> None:
    for count in (3, 1, 2):
        done = slipstream("scale", str(run), f"rollout={count}")
        assert done.returncode == 0, done.stderr
        wait_for(lambda count=count: are_serving(run, "rollout", count))
        wait_for_steps(run, 2)
    assert not events(run, "went_back")


def test_nothing_is_trained_while_it_is_paused(run: Path) -> None:
    assert slipstream("pause", str(run)).returncode == 0
    wait_for(lambda: status(run)["state"] == "paused")
    time.sleep(2.0)  # what was under way
    num_steps = len(events(run, "step"))
    time.sleep(3.0)
    assert len(events(run, "step")) == num_steps
    assert slipstream("resume", str(run)).returncode == 0
    wait_for_steps(run, 2)


def test_a_second_driver_is_refused(run: Path) -> None:
    for how in ("--resume", "--overwrite"):
        done = launch(JOB, run.parent, *SETTINGS, how)
        assert done.returncode == 2, done.stdout
        assert "driver" in done.stderr
        assert "Traceback" not in done.stderr
    wait_for_steps(run, 1)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_sends_the_learner_back(run: Path, stop: signal.Signals) -> None:
    num_back, num_died = len(events(run, "went_back")), len(events(run, "worker_died"))
    rank = psutil.Process(pids("LearnerRank")[0])
    rank.send_signal(stop)
    struck_s = time.time()
    wait_for(lambda: len(told(run, "went_back", num_back)) == 1)
    (back,) = told(run, "went_back", num_back)
    assert back["time_s"] - struck_s < 12.0
    wait_for_steps(run, 2)
    assert not told(run, "worker_died", num_died), "the workers go on"


def test_the_learner_is_built_anew_with_another_number_of_ranks(run: Path) -> None:
    num_back = len(events(run, "went_back"))
    version = status(run)["version"]
    for count in (2, 1):
        done = slipstream("scale", str(run), f"learner={count}")
        assert done.returncode == 0, done.stderr
        wait_for(lambda count=count: are_serving(run, "learner", count))
        wait_for_steps(run, 2)
    assert not told(run, "went_back", num_back)
    steps = [e["version"] for e in events(run, "step") if e["version"] > version + 20]
    assert steps == sorted(set(steps)), "no step was made twice"


def test_a_weight_board_that_hangs_comes_back(run: Path) -> None:
    num_before = len(events(run, "restarted"))
    psutil.Process(pids("WeightBoard")[0]).suspend()
    comes_back(run, num_before, "weights does not answer")
    wait_for_steps(run, 5)


def comes_back(run: Path, num_before: int, cause: str) -> None:
    """Replay or the weight board, as another process. `num_before`: such events before."""
    wait_for(lambda: len(told(run, "restarted", num_before)) == 1)
    (back,) = told(run, "restarted", num_before)
    assert back["cause"].startswith(cause)


def test_a_replay_that_hangs_while_a_rank_dies_comes_back(run: Path) -> None:
    """The driver waits for replay then, and for nothing else."""
    num_back, num_before = len(events(run, "went_back")), len(events(run, "restarted"))
    psutil.Process(pids("ReplayActor")[0]).suspend()
    psutil.Process(pids("LearnerRank")[0]).kill()
    comes_back(run, num_before, "replay does not answer")
    assert told(run, "went_back", num_back)
    wait_for_steps(run, 5)


def test_new_workers_take_their_weights_from_a_board_that_came_back(run: Path) -> None:
    num_before = len(events(run, "restarted"))
    psutil.Process(pids("WeightBoard")[0]).kill()
    comes_back(run, num_before, "weights died")
    done = slipstream("scale", str(run), "rollout=3")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: are_serving(run, "rollout", 3))
