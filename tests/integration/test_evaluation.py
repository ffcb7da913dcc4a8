"""Evaluations beside training in whole jobs: real Ray and DeepSpeed; vLLM where answers count."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from learner.best import read_best
from tests.helpers.runs import ROOT, assert_nothing_is_left, environment, events, launch, ledger

JOB = ROOT / "examples" / "arithmetic" / "buffered.yaml"
FIGURES = ("greedy_accuracy", "greedy_reward", "sampled_reward", "num_prompts", "pass_at")
SAMPLES = ("eval.num_samples=4", "eval.pass_at=[1, 4]", "checkpoint.keep_last=1")


def test_training_goes_on_while_one_worker_evaluates(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps({"CPU": 4}))
    done = launch(
        *(JOB, tmp_path, "name=beside", "learner.num_steps=60", "learner.warmup_steps=0"),
        *("learner.groups_per_batch=8", "rollout.num_slots=64", "rollout.num_workers=2"),
        *("rollout.engine=scripted", "weights.probe=false", "data.eval_every_steps=20"),
        *("eval.num_samples=12", "checkpoint.keep_best=sampled_reward", "checkpoint.every_steps=0"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "beside"
    evals = {event["version"]: event for event in events(run, "eval")}
    assert min(evals) == 0
    assert max(evals) == 60
    # With a bound of 1, a job that waited for the evaluation would make two steps.
    start_s = events(run, "eval_started")[0]["time_s"]
    steps = [e for e in events(run, "step") if start_s < e["time_s"] < evals[0]["time_s"]]
    assert len(steps) > 3
    assert max(int(lag) for event in events(run, "step") for lag in event["lags"]) <= 1
    assert ledger(run)["fates"]["trained"] == 8 * 60
    best = read_best(run / "checkpoints")
    assert best is not None
    assert best.value == max(event["sampled_reward"] for event in evals.values())
    assert_nothing_is_left()


def test_what_is_kept_evaluates_as_it_did_in_the_run(tmp_path: Path) -> None:
    """The best commit by itself, with the same engine: the same answers."""
    done = launch(
        *(JOB, tmp_path, "name=kept", "learner.num_steps=6", "learner.warmup_steps=1"),
        *("learner.groups_per_batch=8", "data.eval_num_prompts=40", "data.eval_every_steps=3"),
        *("checkpoint.keep_best=greedy_reward", *SAMPLES),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "kept"
    evals = {event["version"]: event for event in events(run, "eval")}
    assert set(evals) == {0, 3, 6}
    best = read_best(run / "checkpoints")
    assert best is not None
    program = [sys.executable, "-m", "orchestrator.cli", "eval", str(run), "--best", "--json"]
    alone = subprocess.run(
        program, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert alone.returncode == 0, alone.stdout + alone.stderr
    found = json.loads(alone.stdout)
    assert found["version"] == best.version
    expected = {figure: evals[best.version][figure] for figure in FIGURES}
    assert {figure: found["sets"]["eval"][figure] for figure in FIGURES} == expected
