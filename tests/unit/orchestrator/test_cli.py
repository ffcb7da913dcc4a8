"""The command line as a user meets it, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from learner import commit_files
from orchestrator.run_lease import held
from slipstream.config.load import load_job

ROOT = Path(__file__).parents[3]
BUFFERED = "examples/arithmetic/buffered.yaml"


def slipstream(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def job_file(tmp_path: Path, **sections: str) -> Path:
    parts = {
        "model": f"{{path: {ROOT}/examples/arithmetic/base_model}}",
        "data": "{train: {kind: reasoning_gym, task: chain_sum, size: 10}}",
        "reward": "{kind: reasoning_gym}",
        "rollout": "{group_size: 4}",
        "learner": "{num_steps: 1, groups_per_batch: 4}",
        **sections,
    }
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: test\nmode: buffered\n" + "".join(f"{k}: {v}\n" for k, v in parts.items())
    )
    return path


def test_validate_is_quick_and_says_ok() -> None:
    start_s = time.perf_counter()
    done = slipstream("validate", BUFFERED, "examples/arithmetic/sync.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{BUFFERED}: ok", "examples/arithmetic/sync.yaml: ok"]
    assert time.perf_counter() - start_s < 10, "2 s on an idle machine"


def test_validate_names_every_problem_and_exits_with_2(tmp_path: Path) -> None:
    bad = job_file(tmp_path, rollout="{group_sise: 4, num_slots: 0}")
    done = slipstream("validate", str(bad), BUFFERED)
    assert done.returncode == 2
    assert "did you mean 'group_size'" in done.stderr
    assert "num_slots" in done.stderr
    assert "Traceback" not in done.stderr
    assert f"{BUFFERED}: ok" in done.stdout


@pytest.mark.parametrize(
    ("section", "value", "part"),
    [
        ("model", "{path: ./nowhere}", "no directory"),
        ("model", "{path: data/none/at/all}", "no directory"),
        ("data", "{train: {kind: jsonl, path: none.jsonl}}", "does not exist"),
        ("data", "{train: {kind: jsonl, path: empty.jsonl}}", "is empty"),
        ("reward", "{kind: function, path: 'no_module:f'}", "cannot be imported"),
        ("reward", "{kind: function, path: 'broken_reward:f'}", "ZeroDivisionError"),
    ],
)
def test_what_files_tell_is_said_before_anything_starts(
    tmp_path: Path, section: str, value: str, part: str
) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "broken_reward.py").write_text("1 / 0\n")
    path = job_file(tmp_path, **{section: value})
    for done in (
        slipstream("validate", str(path)),
        slipstream("launch", str(path), f"checkpoint.dir={tmp_path}/runs"),
    ):
        assert done.returncode == 2
        assert part in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_every_problem_is_said_at_once_with_its_line(tmp_path: Path) -> None:
    path = job_file(
        tmp_path,
        model="{path: ./nowhere}",
        data="{train: {kind: jsonl, path: none.jsonl, colour: red}}",
        reward="{kind: function, path: 'no_module:f', timeout_s: soon}",
        rollout="{group_sise: 4}",
    )
    done = slipstream("validate", str(path))
    assert done.returncode == 2
    for place, part in (
        (":3:9", "no directory"),
        (":4:29", "does not exist"),
        (":4:47", "colour"),
        (":5:26", "cannot be imported"),
        (":5:47", "soon"),
        (":6:11", "did you mean 'group_size'"),
    ):
        lines = [line for line in done.stderr.splitlines() if f"{path}{place}: " in line]
        assert any(part in line for line in lines), f"{place} {part}\n{done.stderr}"


def commit_of(path: Path, root: Path, version: int) -> Path:
    """A commit that the job of `path` could have made."""
    directory = commit_files.aside(root, version, 1)
    commit_files.write_part(directory, 0, {"learner/state": lambda file: file.touch()})
    contents = {"job": load_job(path).model_dump(mode="json"), "replay": {}}
    return commit_files.publish(root, version, 1, num_ranks=1, timeout_s=1, contents=contents)


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    path, runs = job_file(tmp_path), f"checkpoint.dir={tmp_path}/runs"
    commit = commit_of(path, tmp_path / "runs" / "test" / "checkpoints", 1)
    done = slipstream("launch", str(path), runs, "--resume", "--overwrite")
    assert done.returncode == 2
    assert "choose one" in done.stderr
    assert commit.exists()


def test_a_resume_under_another_job_is_refused_with_every_difference(tmp_path: Path) -> None:
    path, runs = job_file(tmp_path), f"checkpoint.dir={tmp_path}/runs"
    commit = commit_of(path, tmp_path / "runs" / "test" / "checkpoints", 1)
    changes = ["data.shuffle=false", "learner.num_ranks=2", "learner.learning_rate=1"]
    job_file(tmp_path, rollout="{group_size: 8}")
    done = slipstream("launch", str(path), runs, *changes, "--resume")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("command line: data.shuffle=false: data.shuffle: is ")
    assert lines[1].startswith(f"{path}:6:11: rollout.group_size: is 8, but the commit was made")
    assert all("set it back, or launch under another name" in line for line in lines)
    assert str(commit) in lines[1]


def test_a_run_without_a_sound_commit_is_not_begun_anew(tmp_path: Path) -> None:
    path, runs = job_file(tmp_path), f"checkpoint.dir={tmp_path}/runs"
    commit = commit_of(path, tmp_path / "runs" / "test" / "checkpoints", 1)
    manifest = commit / "commit.json"
    manifest.write_text(manifest.read_text()[:-20])
    done = slipstream("launch", str(path), runs, "--resume")
    assert done.returncode == 2
    assert f"{manifest} is damaged" in done.stderr
    manifest.write_text('{"format": 2, "layout": {}}')
    done = slipstream("launch", str(path), runs, "--resume")
    assert done.returncode == 2
    assert "written by an older Slipstream: format 2, this is 3" in done.stderr
    assert commit.exists()


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = slipstream("launch", str(job_file(tmp_path)), f"checkpoint.dir={tmp_path}/file/runs")
    assert done.returncode == 2
    assert "checkpoint.dir" in done.stderr
    assert f"{tmp_path}/file cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreadable_model_is_said(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    done = slipstream("validate", str(job_file(tmp_path, model="{path: model}")))
    assert done.returncode == 2
    assert "config.json cannot be read" in done.stderr
    assert "no weights" in done.stderr


def test_dry_run_prints_the_resolved_job_and_starts_nothing(tmp_path: Path) -> None:
    done = slipstream(
        "launch", BUFFERED, "learner.learning_rate=3e-4", f"checkpoint.dir={tmp_path}", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    assert "learning_rate: 0.0003" in done.stdout
    assert "max_staleness:" in done.stdout
    assert "Placement" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_never_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "runs" / "test").mkdir(parents=True)
    path, runs = str(job_file(tmp_path)), f"checkpoint.dir={tmp_path}/runs"
    for option, part in (((), "--overwrite"), (("--resume",), "no commit to resume from")):
        done = slipstream("launch", path, runs, *option)
        assert done.returncode == 2
        assert part in done.stderr


@pytest.mark.parametrize("option", ["--overwrite", "--resume", None])
def test_a_run_at_work_is_left_alone(tmp_path: Path, option: str | None) -> None:
    path, runs = str(job_file(tmp_path)), f"checkpoint.dir={tmp_path}/runs"
    with held(tmp_path / "runs" / "test"):
        done = slipstream("launch", path, runs, *filter(None, [option]))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"{path}:1:1: name: the driver on " in done.stderr
    assert f"is at work on this run; end it with Ctrl-C or `kill {os.getpid()}`" in done.stderr


def test_a_job_file_may_be_validated_while_it_runs(tmp_path: Path) -> None:
    path = job_file(tmp_path, checkpoint=f"{{dir: {tmp_path}/runs}}")
    with held(tmp_path / "runs" / "test"):
        assert slipstream("validate", str(path)).returncode == 0


def test_usage_errors_exit_with_2() -> None:
    assert slipstream("launch").returncode == 2
    assert slipstream("lanch").returncode == 2
