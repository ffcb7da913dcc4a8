"""`slipstream runs`, and the completion of their names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator import cli
from orchestrator.commands.common import complete_run
from orchestrator.run_list import list_runs
from orchestrator.status import Status, write_status

ROOT = Path(__file__).parents[3]
LAUNCHED_S = 1_800_000_000.0


def make_run(runs: Path, name: str, *, launched_s: float, events: str | None = None) -> None:
    run = runs / name
    run.mkdir(parents=True)
    (run / "job.yaml").write_text("mode: buffered\nmodel: {path: /models/qwen}\n")
    status = Status(
        job=name,
        state="ended",
        version=7,
        num_steps=10,
        timeline=0,
        launched_at_s=launched_s,
        at_s=launched_s + 60,
    )
    write_status(run, status.as_json())
    if events is not None:
        (run / "metrics.jsonl").write_text(events)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    events = (
        {"kind": "step", "reward": 0.25},
        {"kind": "eval", "greedy_accuracy": 0.5, "version": 5},
        {"kind": "step", "reward": 0.75},
        {"kind": "busy", "seconds": {}},
    )
    lines = "".join(json.dumps(event) + "\n" for event in events)
    make_run(runs, "older", launched_s=LAUNCHED_S)
    make_run(runs, "newer", launched_s=LAUNCHED_S + 1, events=lines + '{"kind": "step", "rew')
    (runs / "not-a-run").mkdir()
    (runs / "file").touch()
    return runs


def test_each_run_is_told_with_its_newest_figures(runs: Path) -> None:
    newer, older = list_runs(runs).runs
    assert (newer.name, newer.state, newer.version, newer.num_steps) == ("newer", "ended", 7, 10)
    assert (newer.mode, newer.model) == ("buffered", "/models/qwen")
    assert (newer.reward, newer.held_out, newer.held_out_version) == (0.75, 0.5, 5)
    assert newer.started_at_s == LAUNCHED_S + 1
    assert 0 <= newer.age_s < 60
    assert older.name == "older"
    assert (older.reward, older.held_out) == (None, None)


def test_the_command_in_both_forms(runs: Path) -> None:
    done = CliRunner().invoke(cli.app, ["runs", str(runs), "--json"])
    assert [run["name"] for run in json.loads(done.stdout)] == ["newer", "older"]
    done = CliRunner().invoke(cli.app, ["runs", str(runs)])
    (line,) = [line for line in done.stdout.splitlines() if "newer" in line]
    assert [cell.strip() for cell in line.split("│")[1:8]] == [
        *("newer", "ended", "7 of 10", "buffered", "qwen", "0.750", "50.0% at 5")
    ]
    done = CliRunner().invoke(cli.app, ["runs", str(runs / "none")])
    assert done.exit_code == 2
    assert "is no directory" in done.stderr


def test_a_run_of_which_files_are_broken_is_still_told(runs: Path) -> None:
    (runs / "newer" / "job.yaml").write_text("a: [")
    newer, _ = list_runs(runs).runs
    assert (newer.mode, newer.model, newer.reward) == (None, None, 0.75)


def test_a_line_that_was_cut_and_another_set_are_left_out(runs: Path) -> None:
    file = runs / "newer" / "metrics.jsonl"
    cut = '{"kind": "step", "rew{"kind": "paused"}\n{"kind": "eval", "greedy\n'
    other = '{"kind": "eval", "set": "hard", "greedy_accuracy": 0.1, "version": 9}\n'
    file.write_text(file.read_text() + cut + other)
    assert list_runs(runs).runs[0].held_out == 0.5
    assert list_runs(runs).runs[0].reward == 0.75
    (runs / "newer" / "job.yaml").write_text("data: {eval_sets: {hard: {}, easy: {}}}\n")
    assert list_runs(runs).runs[0].held_out == 0.1


def test_names_are_completed(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs.parent)
    assert complete_run("") == ["newer", "older"]
    assert complete_run("ol") == ["older"]
    monkeypatch.chdir(runs)
    assert complete_run("") == []


def test_bash_asks_for_completion_and_gets_it(runs: Path) -> None:
    script = "import sys; sys.argv = ['slipstream']; from orchestrator import cli; cli.main()"
    asked = {"COMP_WORDS": "slipstream status ol", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "_SLIPSTREAM_COMPLETE": "complete_bash",
            **asked,
        },
        cwd=runs.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["older"], done.stderr
