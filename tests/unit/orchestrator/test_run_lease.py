from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from orchestrator import run_lease
from orchestrator.driver import Driver
from orchestrator.run_dir import RunDir
from orchestrator.run_lease import FILE_NAME, held, holder, refusal
from slipstream.errors import JobFileError, RoleFailed
from tests.helpers.jobs import make_job

SPAWN = multiprocessing.get_context("spawn")
NUM_ROUNDS = 20


def other(run_dir: Path, *, age_s: float = 0.0, **changes: Any) -> Driver:
    """Have a driver on another host hold `run_dir`, whose file was touched `age_s` ago."""
    driver = {"id": "b", "host": "far", "machine": "x", "pid": 7, "started": 1, "since_s": 0.0}
    driver.update(changes)
    write(run_dir / FILE_NAME, json.dumps(driver), age_s)
    return Driver(**driver)


def write(path: Path, content: str, age_s: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (time.time() - age_s,) * 2)


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.iterdir())


def test_it_names_its_process_and_goes_at_the_end(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "trial"
    with held(run) as lease:
        found = holder(run)
        assert found == lease.mine
        assert found.pid == os.getpid()
        assert names(run) == [FILE_NAME]
        lease.check()
        assert refusal(run) is None, "for this process itself"
    assert holder(run) is None
    assert names(run) == []


def test_it_is_given_up_where_the_job_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held(tmp_path):
        raise KeyError
    assert names(tmp_path) == []


# --- two at once ------------------------------------------------------------------


def contend(directories: list[Path], barrier: Barrier, won: Any) -> None:
    """Claim each in turn, at the same moment as the other process; tell which it got."""
    for directory in directories:
        barrier.wait(timeout=60)
        try:
            with held(directory):
                won.put(directory.name)
                barrier.wait(timeout=60)
        except JobFileError:
            barrier.wait(timeout=60)


def race(directories: list[Path]) -> list[str]:
    barrier, won = SPAWN.Barrier(2), SPAWN.SimpleQueue()
    processes = [SPAWN.Process(target=contend, args=(directories, barrier, won)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    winners = []
    while not won.empty():
        winners.append(won.get())
    return winners


def test_of_two_that_claim_at_once_one_wins(tmp_path: Path) -> None:
    directories = [tmp_path / f"{number:02d}" for number in range(NUM_ROUNDS)]
    assert race(directories) == [directory.name for directory in directories]
    assert all(names(directory) == [] for directory in directories)


def test_of_two_that_take_over_at_once_one_wins(tmp_path: Path) -> None:
    directories = [tmp_path / f"{number:02d}" for number in range(NUM_ROUNDS)]
    for directory in directories:
        other(directory, age_s=31)
    assert race(directories) == [directory.name for directory in directories]
    assert all(names(directory) == [] for directory in directories)


def test_who_judged_the_dead_one_does_not_follow_the_living(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It judged the dead one, slept while another took over, and wakes before it has named it."""
    other(tmp_path, age_s=31)
    is_gone = run_lease._is_gone
    rivals: list[Any] = []

    def before_a_nap(driver: Any, age_s: float) -> bool:
        gone = is_gone(driver, age_s)
        if gone and not rivals:
            rivals.append(None)
            rivals[0] = held(tmp_path)
            rivals[0].__enter__()
        return gone

    monkeypatch.setattr(run_lease, "_is_gone", before_a_nap)
    with pytest.raises(JobFileError, match="is at work on this run"), held(tmp_path):
        pass
    rivals[0].__exit__(None, None, None)


def test_who_takes_over_late_sees_that_another_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It judged the dead one, slept while another took over, and wakes where it would link."""
    other(tmp_path, age_s=31)
    write_new = run_lease._write_new
    rivals: list[Any] = []

    def after_a_nap(path: Path, place: Path, mine: Driver) -> bool:
        if not rivals:
            rivals.append(None)
            rivals[0] = held(tmp_path)
            rivals[0].__enter__()
        return write_new(path, place, mine)

    monkeypatch.setattr(run_lease, "_write_new", after_a_nap)
    with pytest.raises(JobFileError, match="is at work on this run"), held(tmp_path):
        pass
    assert names(tmp_path) == [FILE_NAME]
    rivals[0].__exit__(None, None, None)


def test_who_died_while_taking_over_is_followed(tmp_path: Path) -> None:
    dead = other(tmp_path, age_s=99)
    taker = {**json.loads((tmp_path / FILE_NAME).read_text()), "id": "c"}
    path = tmp_path / f"{FILE_NAME}.after-{dead.id}"
    write(path, json.dumps(taker), age_s=0)
    with pytest.raises(JobFileError, match="far, pid 7"), held(tmp_path):
        pass  # it may be about to rename its file
    write(path, json.dumps(taker), age_s=31)
    with held(tmp_path) as lease:
        assert holder(tmp_path) == lease.mine
        assert names(tmp_path) == [FILE_NAME]


# --- who is gone ------------------------------------------------------------------


def hold(run: Path, ready: Any) -> None:
    with held(run):
        ready.set()
        signal.pause()


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Any]:
    """A process that holds the run."""
    ready = SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(timeout=60)
    yield process
    process.kill()
    process.join()


def test_a_killed_driver_is_followed_at_once(tmp_path: Path, driver: Any) -> None:
    with pytest.raises(JobFileError) as caught, held(tmp_path):
        pass
    assert len(caught.value.problems) == 1
    assert f"pid {driver.pid}, since 20" in str(caught.value)
    assert f"end it with Ctrl-C or `kill {driver.pid}`" in str(caught.value)
    os.kill(driver.pid, signal.SIGKILL)
    os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOWAIT)  # dead, its pid not free
    assert holder(tmp_path) is None
    driver.join()
    with held(tmp_path) as lease:
        assert holder(tmp_path) == lease.mine


def test_another_process_with_its_pid_is_not_the_driver(tmp_path: Path) -> None:
    with held(tmp_path / "mine") as lease:
        mine = json.loads((tmp_path / "mine" / FILE_NAME).read_text())
        other(tmp_path, **mine)
        assert holder(tmp_path) == lease.mine
        other(tmp_path, **{**mine, "started": mine["started"] - 1})
        assert holder(tmp_path) is None
        other(tmp_path, **{**mine, "started": mine["started"] - 1, "machine": "another"})
        assert holder(tmp_path) is not None, "its pids say nothing here"


@pytest.mark.parametrize(("age_s", "free"), [(0, False), (25, False), (31, True), (-31, True)])
def test_on_another_host_its_age_counts(tmp_path: Path, age_s: float, free: bool) -> None:
    driver = other(tmp_path, age_s=age_s)
    assert (holder(tmp_path) is None) is free
    if free:
        with held(tmp_path) as lease:
            assert holder(tmp_path) == lease.mine
        return
    with pytest.raises(JobFileError, match=f"far, pid 7.* wait {30 - age_s:.0f} s"), held(tmp_path):
        pass
    assert holder(tmp_path) == driver
    assert names(tmp_path) == [FILE_NAME]


def test_age_is_told_by_the_clock_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other(tmp_path, age_s=1)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert holder(tmp_path) is not None


@pytest.mark.parametrize("content", ["", "{}", "no json", '{"id": 3}'])
def test_a_damaged_file_is_followed_once_it_is_old(tmp_path: Path, content: str) -> None:
    write(tmp_path / FILE_NAME, content, age_s=0)
    with pytest.raises(JobFileError, match="the driver on unknown"), held(tmp_path):
        pass
    write(tmp_path / FILE_NAME, content, age_s=31)
    with held(tmp_path):
        assert holder(tmp_path) is not None


# --- while it is held -------------------------------------------------------------


def test_it_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lease, "RENEW_EVERY_S", 0.02)
    with held(tmp_path):
        os.utime(tmp_path / FILE_NAME, (0, 0))
        assert eventually(lambda: (tmp_path / FILE_NAME).stat().st_mtime > 0)
        (tmp_path / FILE_NAME).unlink()
        assert eventually(lambda: holder(tmp_path) is not None)


def test_a_loss_is_noticed_and_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lease, "RENEW_EVERY_S", 0.02)
    with held(tmp_path) as lease:
        lease.check()
        thief = other(tmp_path)
        assert eventually(lambda: lease.lost == thief)
        with pytest.raises(RoleFailed, match="was taken over by the driver on far, pid 7"):
            lease.check()
        (tmp_path / FILE_NAME).unlink()
        with pytest.raises(RoleFailed, match="was taken over"):
            lease.check()
        assert names(tmp_path) == []
        other(tmp_path)
    assert names(tmp_path) == [FILE_NAME], "what is another's stays"


def test_a_check_looks_itself(tmp_path: Path) -> None:
    with held(tmp_path) as lease:
        other(tmp_path)
        with pytest.raises(RoleFailed):
            lease.check()


def eventually(condition: Any) -> bool:
    deadline_s = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


# --- the run's directory ----------------------------------------------------------


def test_what_is_held_is_not_overwritten(tmp_path: Path) -> None:
    job, run = make_job(checkpoint={"dir": str(tmp_path)}), tmp_path / "test"
    other(run)
    (run / "metrics.jsonl").write_text("precious")
    with pytest.raises(JobFileError, match="is at work on this run"), held(run):
        RunDir.open(job, overwrite=True)
    assert (run / "metrics.jsonl").read_text() == "precious"
    assert names(run) == [FILE_NAME, "metrics.jsonl"]


def test_overwriting_leaves_the_lease(tmp_path: Path) -> None:
    job, run = make_job(checkpoint={"dir": str(tmp_path)}), tmp_path / "test"
    (run / "checkpoints" / "step").mkdir(parents=True)
    (run / "result.json").touch()
    (run / "latest").symlink_to("checkpoints")
    with held(run) as lease:
        RunDir.open(job, overwrite=True).close()
        left = {"job.yaml", "metrics.jsonl", "samples.jsonl", "tensorboard"}
        assert set(names(run)) == {FILE_NAME, *left}
        assert holder(run) == lease.mine
        lease.check()


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobFileError, match="cannot be claimed"), held(tmp_path / "file" / "run"):
        pass
