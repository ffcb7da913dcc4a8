"""`slipstream export`: a model out of a commit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from learner import commit_files
from orchestrator.cli import app
from tests.helpers.run_files import evaluated, run_directory, step


def commit(root: Path, version: int, timeline: int = 0) -> Path:
    directory = commit_files.aside(root, version, timeline)

    def model(path: Path) -> None:
        path.mkdir()
        (path / "model.safetensors").write_bytes(bytes([version]) * 1000)
        (path / "config.json").write_text("{}")

    files = {"learner/state": lambda path: path.write_text("state"), "model": model}
    commit_files.write_part(directory, 0, files)
    contents = {"job": {}, "job_hash": "", "replay": {}}
    return commit_files.publish(
        root, version, timeline, num_ranks=1, timeout_s=1, contents=contents
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    events = (step(1, 1), evaluated(1, 1, 0.25), step(2, 2), evaluated(2, 2, 0.75, set="hard"))
    events += (evaluated(2, 2, 0, set="none", greedy_accuracy=None, sampled_reward=None),)
    run = run_directory(tmp_path / "trial", events)
    (run / "checkpoints").mkdir()
    commit(run / "checkpoints", 1)
    commit(run / "checkpoints", 2)
    return run


def export(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def exported(path: Path) -> int:
    """The version that lies there."""
    return (path / "model.safetensors").read_bytes()[0]


def test_the_newest_commit_with_a_card(run: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path / "out")
    assert done.exit_code == 0, done.output
    names = ["README.md", "config.json", "job.yaml", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert exported(tmp_path / "out") == 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# trial, version 2" in card
    assert "| hard | 10 | 75.0% | - |" in card
    assert "25.0%" not in card  # which was version 1
    assert "| none | 10 | - | - |" in card


def test_a_version_by_its_number(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path / "out", "--version", 1).exit_code == 0
    assert exported(tmp_path / "out") == 1
    done = export(run, tmp_path / "other", "--version", 7)
    assert done.exit_code == 2
    assert "no commit of version 7; it holds 1, 2" in done.stderr
    assert not (tmp_path / "other").exists()


def name_best(run: Path, commit: str) -> None:
    """As the driver does."""
    best = {
        "commit": commit,
        "version": 1,
        "set": "held-out",
        "metric": "greedy_accuracy",
        "value": 0.25,
    }
    (run / "checkpoints" / "best").write_text(json.dumps(best))


def test_the_best(run: Path, tmp_path: Path) -> None:
    assert "leave out --best" in export(run, tmp_path / "out", "--best").stderr
    name_best(run, "step-00000001-t0000")
    assert export(run, tmp_path / "out", "--best").exit_code == 0
    assert exported(tmp_path / "out") == 1


def test_a_best_that_is_elsewhere_is_refused(run: Path, tmp_path: Path) -> None:
    name_best(run, "../../elsewhere/step-00000009-t0000")
    done = export(run, tmp_path / "out", "--best")
    assert done.exit_code == 2
    assert "names no best commit" in done.stderr


def test_nothing_is_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = export(run, tmp_path / "out")
    assert done.exit_code == 2
    assert "exists" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_model_is_not_exported(run: Path, tmp_path: Path) -> None:
    model = run / "checkpoints" / "step-00000002-t0000" / "model" / "model.safetensors"
    model.write_bytes(b"x" * 1000)
    done = export(run, tmp_path / "out", "--version", 2)
    assert done.exit_code == 2
    assert "checksum differs" in done.stderr
    assert not (tmp_path / "out").exists()
    assert export(run, tmp_path / "out").exit_code == 0  # the newest that is sound
    assert exported(tmp_path / "out") == 1


def test_what_no_manifest_has_is_not_copied(run: Path, tmp_path: Path) -> None:
    (run / "checkpoints" / "step-00000002-t0000" / "model" / "pytorch_model.bin").write_text("!")
    assert export(run, tmp_path / "out").exit_code == 0
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()


@pytest.mark.parametrize("damaged", ["a: 2024-99-99\n", None])
def test_the_files_of_the_card_are_not_needed(
    run: Path, tmp_path: Path, damaged: str | None
) -> None:
    for name in ("job.yaml", "metrics.jsonl"):
        (run / name).unlink() if damaged is None else (run / name).write_text(damaged)
    assert export(run, tmp_path / "out").exit_code == 0
    assert "was not evaluated" in (tmp_path / "out" / "README.md").read_text()


def test_version_and_best_at_once(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path / "out", "--best", "--version", 1).exit_code == 2
