"""The trackers' own packages, each offline; skipped where one is not installed.

pip install 'slipstream-rl[trackers]'
"""

from __future__ import annotations

import json
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.trackers import tracker
from orchestrator.trackers.curves import Figures
from orchestrator.trackers.feed import Feed, end_all
from orchestrator.trackers.tracker import open_tracker
from slipstream.config.job import JobConfig, TrackerName
from slipstream.telemetry import EventLog
from tests.helpers.jobs import make_job

# Version, value: a run up to version 3, which then goes back to 1 and makes 2 again.
FIRST = [(1, 0.5), (2, 0.25), (3, 0.125)]
SECOND = [(2, 0.75)]
SECRET = "correct-horse-battery"


def job_in(tmp_path: Path) -> JobConfig:
    return make_job(checkpoint={"dir": str(tmp_path)}, model=f"models/{SECRET}")


def launch(job: JobConfig, name: TrackerName, points: list[tuple[int, float]]) -> None:
    """As one launch of a run does."""
    run_dir, events = job.run_dir, EventLog("driver", 0)
    run_dir.mkdir(exist_ok=True)
    feed = Feed(name, partial(open_tracker, name, job, run_dir), events)
    for version, value in points:
        feed.log(Figures(version=version, at_s=1.7e9 + version, values={"train/loss": value}))
    feed.log(Figures(version=1, at_s=1.7e9, is_return=True))
    end_all([feed], timeout_s=60)
    assert [event["message"] for event in events.drain()] == []


def kept_id(job: JobConfig, name: TrackerName) -> str:
    return str(json.loads((job.run_dir / tracker.IDS).read_text())[name])


def test_mlflow_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    job = job_in(tmp_path)
    launch(job, "mlflow", FIRST)
    run_id = kept_id(job, "mlflow")
    launch(job, "mlflow", SECOND)
    assert kept_id(job, "mlflow") == run_id
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == sorted([*FIRST, *SECOND])
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "test"
    assert run.data.params["learner.num_steps"] == "5"
    assert run.data.params["model.path"] == "models/<redacted>"


def test_trackio_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    from trackio import sqlite_storage, utils

    for module in (utils, sqlite_storage):  # read from TRACKIO_DIR as they are imported
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    job = job_in(tmp_path)
    launch(job, "trackio", FIRST)
    launch(job, "trackio", SECOND)
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id")
        found = [(name, step, json.loads(metrics)["train/loss"]) for name, step, metrics in rows]
    name = f"test-{kept_id(job, 'trackio')}"
    assert found == [(name, *point) for point in [*FIRST, *SECOND]]


def test_wandb_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    job = job_in(tmp_path)
    for points in (FIRST, SECOND):
        launch(job, "wandb", points)
    deadline_s = time.monotonic() + 30.0  # its own program writes the file, after `finish` as well
    while len(rows := wandb_rows(job)) < len([*FIRST, *SECOND]):
        assert time.monotonic() < deadline_s, rows
        time.sleep(0.1)
    assert rows == [*FIRST, *SECOND]
    assert {r.run.run_id for r in wandb_records(job) if r.run.run_id} == {kept_id(job, "wandb")}
    assert not any(SECRET.encode() in file.read_bytes() for file in wandb_files(job))


def wandb_files(job: JobConfig) -> list[Path]:
    return sorted((job.run_dir / "wandb").glob("offline-run-*/*.wandb"))


def wandb_rows(job: JobConfig) -> list[tuple[int, float]]:
    return [row for record in wandb_records(job) if (row := wandb_row(record))]


def wandb_records(job: JobConfig) -> list[Any]:
    """Of all launches. W&B's own program writes them as LevelDB does its log, after seven bytes of
    its own: a checksum of four bytes, a length of two, a kind of one (1: whole), the record."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in wandb_files(job):
        data = file.read_bytes()
        assert len(data) < 32768, "one block"
        data = data[7:]
        while len(data) >= 7 + (length := int.from_bytes(data[4:6], "little")):
            assert data[6] == 1
            found.append(wandb_internal_pb2.Record.FromString(data[7 : 7 + length]))
            data = data[7 + length :]
    return found


def wandb_row(record: Any) -> tuple[int, float] | None:
    items = record.history.item
    row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
    return (row["version"], row["train/loss"]) if "version" in row else None
