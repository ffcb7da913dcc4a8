"""What travels with a job to a cluster, and the command that starts it there."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from orchestrator.commands.elsewhere import without_address
from orchestrator.parcel import packed
from orchestrator.submission import entrypoint, is_http, metadata, named, there
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
        *("<-m>", "<orchestrator.cli>", "<launch>", "<--address>", "<10.0.0.1:6379>"),
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
