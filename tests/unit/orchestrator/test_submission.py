"""What travels with a job to a cluster, and the command that starts it there."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from orchestrator import jobs_api
from orchestrator.commands.elsewhere import without_address
from orchestrator.frames import end
from orchestrator.jobs_api import Cluster, Seen, Unreachable
from orchestrator.parcel import packed
from orchestrator.submission import entrypoint, follow, is_http, metadata, named, stop_wait_s, there
from slipstream.errors import JobFileError
from tests.helpers.jobs import make_job


def test_the_job_files_directory_travels_without_what_is_not_needed(tmp_path: Path) -> None:
    names = ("job.yaml", "reward.py", "data/train.jsonl", ".env", ".git/config", "runs/old/x")
    for name in (*names, "__pycache__/reward.pyc", "data/__pycache__/x.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with packed(tmp_path / "job.yaml") as parcel:
        found = {str(path.relative_to(parcel)) for path in parcel.rglob("*") if path.is_file()}
        assert found == {"job.yaml", "reward.py", "data/train.jsonl"}
        assert (parcel / "data" / "train.jsonl").read_text() == "data/train.jsonl"
    assert not parcel.exists()


def test_too_much_is_refused_and_the_largest_are_named(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").touch()
    (tmp_path / "small.jsonl").write_text("{}")
    (tmp_path / "model").mkdir()
    with (tmp_path / "model" / "weights.safetensors").open("wb") as file:
        os.truncate(file.fileno(), 60 * 2**20)
    with pytest.raises(JobFileError) as caught, packed(tmp_path / "job.yaml"):
        pass
    message = str(caught.value)
    assert f"{tmp_path} holds 60 MiB, more than 50: model/weights.safetensors (60 MiB)" in message
    assert "name its path there" in message


def test_the_entrypoint_starts_at_home_with_every_word_as_it_was_given(tmp_path: Path) -> None:
    """Run by a shell, as Ray does, with a `python` that tells what it was given."""
    home, parcel = tmp_path / "home", tmp_path / "par cel"
    home.mkdir()
    parcel.mkdir()
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\npwd\nfor word; do echo "<$word>"; done\n')
    python.chmod(0o755)
    command = entrypoint(
        "my job.yaml", ["data.train={kind: hub, name: a/b}", "x=$HOME"], ["--resume"]
    )
    environment = {"HOME": str(home), "RAY_ADDRESS": "10.0.0.1:6379"}
    done = subprocess.run(
        command,
        shell=True,
        cwd=parcel,
        env={**environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        str(home),
        *("<-m>", "<orchestrator.submitted>", "<launch>", "<--address>", "<10.0.0.1:6379>"),
        f"<{parcel}/my job.yaml>",
        *("<--resume>", "<-->", "<data.train={kind: hub, name: a/b}>", "<x=$HOME>"),
    ], done.stderr


def test_metadata_says_what_the_job_is() -> None:
    job = make_job("/home/me/models/qwen", name="trial", checkpoint={"dir": "/shared/runs"})
    assert metadata(job) == {
        "job_name": "trial",
        "mode": "buffered",
        "model": "qwen",
        "run_dir": "/shared/runs/trial",
    }
    assert (there(job), named(job)) == ("/shared/runs/trial", "/shared/runs/trial")
    here = make_job("owner/model", name="trial")
    assert (there(here), named(here)) == ("~/runs/trial", "trial")
    assert metadata(here)["model"] == "owner/model"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("status trial --address http://h:8265 --json", "status trial --json"),
        ("--address=http://h:8265 logs", "logs"),
        ("logs trial --follow", "logs trial --follow"),
        ("status --address", "status"),
    ],
)
def test_a_command_is_sent_on_without_the_address(given: str, kept: str) -> None:
    assert without_address(shlex.split(given)) == shlex.split(kept)


def test_a_dashboard_is_told_from_a_cluster() -> None:
    assert is_http("http://127.0.0.1:8265") and is_http("https://ray.example")
    assert not is_http("127.0.0.1:6379") and not is_http("auto") and not is_http(None)


class Stopped:
    """A cluster that has stopped a job, and has this log of it."""

    def __init__(self, log: str) -> None:
        self._log = log

    def follow(self, _id: str, write: Callable[[str], None], _look: object) -> Seen:
        write(self._log)
        return Seen(status="STOPPED", exit_code=None, message="")

    def log(self, _id: str) -> str:
        return self._log


@pytest.mark.parametrize("code", [0, 1, 130, None])
def test_a_stopped_job_says_how_it_ended(
    code: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    log = "step 1\n" + (end(code) if code is not None else "")
    cluster: Any = Stopped(log)
    assert follow(cluster, "id", "hint") == (130 if code is None else code)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "step 1"
    assert len(said) == (2 if code is None else 1), "what is not known is said"


def test_the_exit_code_of_a_launch_is_the_last_line_of_its_log(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.submitted", "launch", missing],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, end(2))


def test_a_job_that_is_stopped_has_time_for_its_step_and_a_commit() -> None:
    job = make_job(learner={"step_timeout_s": 3600.5}, rollout={"grace_s": 10})
    assert stop_wait_s(job) == 3601 + 10 + 30 + 600


class Hiccup(Cluster):
    """Does not answer at first."""

    def __init__(self, num_lost: int, error: Exception) -> None:
        self.address, self._num_lost, self._error = "http://h:8265", num_lost, error
        self._client: Any = self

    def get_job_info(self, _id: str) -> Any:
        self._num_lost -= 1
        if self._num_lost >= 0:
            raise self._error
        return SimpleNamespace(status="SUCCEEDED", driver_exit_code=0, message=None)

    def submit_job(self, **_options: object) -> None:
        raise requests.Timeout


def test_a_hiccup_of_the_network_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Hiccup(2, requests.ConnectionError()).wait("id", 60.0).exit_code == 0
    monkeypatch.setattr(jobs_api, "LOST_AFTER_S", 0.0)
    with pytest.raises(Unreachable):
        Hiccup(9, requests.ConnectionError()).wait("id", 60.0)


def test_a_job_whose_submission_is_not_answered_is_looked_for() -> None:
    Hiccup(0, RuntimeError()).submit("true", "job-1")  # it is there
    with pytest.raises(Unreachable, match="may have taken job-1"):
        Hiccup(9, RuntimeError("no such job")).submit("true", "job-1")
