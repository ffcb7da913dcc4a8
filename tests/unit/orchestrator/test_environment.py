from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.environment import environment, git_state
from orchestrator.run_dir import RunDir
from tests.helpers.jobs import make_job

SECRET = "correct-horse-battery"


def git(directory: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(directory), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_job_files_commit_and_whether_files_differ(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "job.yaml").write_text("name: x\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "is_dirty": False}
    (tmp_path / "job.yaml").write_text("name: y\n")
    assert git_state(tmp_path) == {"commit": commit, "is_dirty": True}


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None


def test_secrets_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    arguments = ["slipstream", "launch", f"reward.path={SECRET}", "--token", "of-another"]
    found = environment(tmp_path / "job.yaml", resources={"CPU": 2.0}, arguments=arguments)
    assert SECRET not in str(found)
    assert "of-another" not in str(found)
    assert found["command_line"][:2] == ["slipstream", "launch"]
    assert found["cluster"] == {"CPU": 2.0}
    assert {"slipstream", "ray", "pydantic"} <= set(found["versions"])


def launches(run: RunDir) -> list[Any]:
    import json

    found: list[Any] = json.loads((run.path / "environment.json").read_text())["launches"]
    return found


def test_a_resume_keeps_the_first_launch(tmp_path: Path) -> None:
    job = make_job(checkpoint={"dir": str(tmp_path)})
    for number, overwrite in enumerate((False, False, True)):
        run = RunDir.open(job, overwrite=overwrite)
        run.add_launch({"number": number})
        run.close()
        expected = [[0], [0, 1], [2]][number]
        assert [launch["number"] for launch in launches(run)] == expected
