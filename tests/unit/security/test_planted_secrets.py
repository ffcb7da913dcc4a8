"""Secrets come from the environment alone: elsewhere they are refused, and never repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app

ROOT = Path(__file__).parents[3]
JOB = ROOT / "examples" / "arithmetic" / "buffered.yaml"
PLANTED = "zq7-planted-secret-zq7"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.train.params.api_key=sesame-open", "looks like a secret"),
        ("checkpoint.dir=s3://me:sesame-open@store/runs", "looks like a secret"),
        (f"model.revision={PLANTED}", "holds the value of the environment variable HF_TOKEN"),
        (f"model.hf_token={PLANTED}", "environment variable HF_TOKEN"),
        (f"learner.num_steps={PLANTED}", "environment variable HF_TOKEN"),
        (f"{PLANTED}", "expected key=value"),
        (f"seed.x={PLANTED}", "has no keys"),
    ],
)
def test_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, part: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    result = CliRunner().invoke(app, ["launch", str(JOB), f"checkpoint.dir={tmp_path}", override])
    assert result.exit_code == 2
    assert part in result.stderr
    assert "<redacted>" in result.stderr
    assert not any(secret in result.output for secret in (PLANTED, "sesame"))
    assert list(tmp_path.iterdir()) == []


def test_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    file = tmp_path / "job.yaml"
    file.write_text(JOB.read_text() + f"tracker: {{wandb_api_key: abcdef, note: {PLANTED}}}\n")
    result = CliRunner().invoke(app, ["validate", str(file)])
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if "secret" in line or "variable" in line]
    assert [line.split(": ")[1] for line in lines] == ["tracker.wandb_api_key", "tracker.note"]
    assert PLANTED not in result.output
    assert "abcdef" not in result.output


def test_words_that_are_none_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "constant")  # as in learner.schedule, by chance
    result = CliRunner().invoke(
        app, ["launch", str(JOB), f"checkpoint.dir={tmp_path}", "--dry-run"]
    )
    assert result.exit_code == 0, result.output
