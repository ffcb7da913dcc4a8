from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from orchestrator.run_dir import RunDir
from slipstream.config.job import JobConfig
from tests.helpers.jobs import make_job

QUIET = {"enabled": False}  # for events with few of their fields


def test_it_holds_the_resolved_job_and_every_event(tmp_path: Path) -> None:
    job = make_job(checkpoint={"dir": str(tmp_path)}, telemetry=QUIET)
    run = RunDir.open(job, overwrite=False)
    run.write({"kind": "step", "loss": np.float32(0.5)})
    run.close()
    resolved = YAML(typ="safe").load((tmp_path / "test" / "job.yaml").read_text())
    assert JobConfig.model_validate(resolved) == job
    again = RunDir.open(job, overwrite=False)
    again.write({"kind": "step", "loss": 0.25})
    again.close()
    lines = again.metrics_file.read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.5, 0.25]


def test_overwrite_starts_anew(tmp_path: Path) -> None:
    job = make_job(checkpoint={"dir": str(tmp_path)}, telemetry=QUIET)
    first = RunDir.open(job, overwrite=False)
    first.write({"kind": "step"})
    first.close()
    RunDir.open(job, overwrite=True).close()
    assert (tmp_path / "test" / "metrics.jsonl").read_text() == ""


def test_samples_have_a_file_of_their_own(tmp_path: Path) -> None:
    job = make_job(checkpoint={"dir": str(tmp_path)}, telemetry=QUIET)
    run = RunDir.open(job, overwrite=False)
    run.write({"kind": "sample", "ordinal": 3})
    run.write({"kind": "step", "loss": 0.5})
    run.flush()
    found = {name: (run.path / name).read_text() for name in ("samples.jsonl", "metrics.jsonl")}
    run.close()
    assert found == {
        "samples.jsonl": '{"kind": "sample", "ordinal": 3}\n',
        "metrics.jsonl": '{"kind": "step", "loss": 0.5}\n',
    }


def test_half_a_line_of_a_killed_driver_costs_no_event(tmp_path: Path) -> None:
    job = make_job(checkpoint={"dir": str(tmp_path)})
    run = RunDir.open(job, overwrite=False)
    run.close()
    run.metrics_file.write_text('{"kind": "step"}\n{"kind": "st')
    again = RunDir.open(job, overwrite=False)
    again.write({"kind": "paused"})
    again.close()
    assert again.metrics_file.read_text().splitlines() == [
        '{"kind": "step"}',
        '{"kind": "st',
        '{"kind": "paused"}',
    ]


def test_what_a_program_said_is_written_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "correct-horse-battery")
    run = RunDir.open(make_job(checkpoint={"dir": str(tmp_path)}), overwrite=False)
    cause = "401 for correct-horse-battery"
    run.write({"kind": "worker_died", "role": "rollout", "index": 0, "cause": cause})
    run.close()
    assert json.loads(run.metrics_file.read_text())["cause"] == "401 for <redacted>"


def test_tensorboard_forgets_what_is_trained_again(tmp_path: Path) -> None:
    run = RunDir.open(make_job(checkpoint={"dir": str(tmp_path)}), overwrite=False)
    place = {"role": "driver", "index": 0, "time_s": 1.0, "timeline": 0}
    run.write({"kind": "launched", "version": 0, **place})
    for version in (1, 2, 3):
        run.write({"kind": "commit", "version": version, "seconds": 0.5, **place})
    run.write({"kind": "went_back", "version": 1, "cause": "x", **place})
    run.write({"kind": "commit", "version": 2, "seconds": 0.25, **place})
    run.close()
    assert curve(run.path / "tensorboard", "commit/seconds") == [(1, 0.5), (2, 0.25)]


def curve(directory: Path, tag: str) -> list[tuple[int, float]]:
    """As TensorBoard reads it: what a later start of a session takes back is gone."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    (file,) = directory.iterdir()
    data, found = file.read_bytes(), []
    while data:  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        if event.session_log.status == SessionLog.START:
            found = [point for point in found if point[0] < event.step]
        for value in event.summary.value:
            if value.tag == tag:
                found.append((event.step, value.simple_value))
    return found


def test_without_telemetry_there_are_the_events_alone(tmp_path: Path) -> None:
    job = make_job(checkpoint={"dir": str(tmp_path)}, telemetry=QUIET)
    run = RunDir.open(job, overwrite=False)
    run.write({"kind": "step", "version": 1})
    run.close()
    assert not (run.path / "tensorboard").exists()
    assert run.metrics_file.read_text() == '{"kind": "step", "version": 1}\n'


def test_a_full_disk_leaves_a_gap_and_is_told_once(tmp_path: Path) -> None:
    run = RunDir.open(make_job(checkpoint={"dir": str(tmp_path)}, telemetry=QUIET), overwrite=False)
    told: list[str] = []
    run.tell = told.append
    with Path("/dev/full").open("w") as full:
        run._metrics.close()
        run._metrics = full
        run.write({"kind": "step", "loss": "x" * 100_000})
        run.flush()
        run.write({"kind": "sample", "ordinal": 1})
        run.write({"kind": "step"})
        run.close()
    assert len(told) == 1 and "No space left" in told[0]
    assert (run.path / "samples.jsonl").read_text() == '{"kind": "sample", "ordinal": 1}\n'


def test_the_job_is_written_as_it_is(tmp_path: Path) -> None:
    labels = {"sort_key": "a", "note": "key=value"}
    job = make_job(
        checkpoint={"dir": str(tmp_path)},
        telemetry=QUIET,
        rollout={"placement": {"labels": labels}},
    )
    run = RunDir.open(job, overwrite=False)
    run.close()
    resolved = YAML(typ="safe").load((run.path / "job.yaml").read_text())
    assert JobConfig.model_validate(resolved) == job


def test_a_launch_is_added_to_what_can_be_read(tmp_path: Path) -> None:
    job = make_job(checkpoint={"dir": str(tmp_path)}, telemetry=QUIET)
    run = RunDir.open(job, overwrite=False)
    (run.path / "environment.json").touch()  # a machine that lost its power
    for host in ("a", "b"):
        run.add_launch({"host": host})
    run.close()
    found = json.loads((run.path / "environment.json").read_text())
    assert found == {"launches": [{"host": "a"}, {"host": "b"}]}


def test_what_is_of_weights_that_are_gone_is_in_the_file_alone(tmp_path: Path) -> None:
    run = RunDir.open(make_job(checkpoint={"dir": str(tmp_path)}), overwrite=False)
    place = {"role": "rollout", "index": 0, "time_s": 1.0, "timeline": 0, "version": 3}
    run.write({"kind": "eval", "greedy_accuracy": 0.5, **place})
    run.write({"kind": "eval", "greedy_accuracy": 0.75, **place}, is_shown=False)
    run.close()
    assert curve(run.path / "tensorboard", "eval/greedy_accuracy") == [(3, 0.5)]
    assert len(run.metrics_file.read_text().splitlines()) == 2
