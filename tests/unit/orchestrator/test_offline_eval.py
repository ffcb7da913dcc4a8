"""`slipstream eval`: which model, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from learner.best import Best
from learner.checkpoint import FORMAT, MANIFEST, SELF, digest_of, name_of
from orchestrator.best import write_best
from orchestrator.cli import app
from orchestrator.offline_eval import NoModel, find_model, job_of
from tests.helpers.jobs import make_job, make_model


def make_run(directory: Path, *versions: int) -> Path:
    """A run's directory with commits that hold nothing but a name and a manifest."""
    for version in versions:
        path = directory / "checkpoints" / name_of(version, 0)
        (path / "model").mkdir(parents=True)
        manifest = {"format": FORMAT, "version": version}
        content = json.dumps({**manifest, SELF: digest_of(manifest)})
        (path / MANIFEST).write_text(content)
    return directory


def test_of_a_run_it_is_the_newest_the_best_or_the_one_asked_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0, 10, 20)
    best = Best(commit=name_of(10, 0), version=10, set="eval", metric="greedy_reward", value=1.0)
    write_best(run / "checkpoints", best)
    assert find_model(str(run), version=None, best=False).version == 20
    assert find_model(str(run), version=0, best=False).version == 0
    found = find_model(str(run), version=None, best=True)
    assert (found.version, found.path) == (10, run / "checkpoints" / name_of(10, 0) / "model")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0, 10)
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    for name, version, best, message in (
        (run, 7, False, "no commit of version 7; there is 0, 10"),
        (run, None, True, "names no best commit"),
        (tmp_path / "empty", None, False, "holds no commit"),
        (tmp_path / "nothing", None, False, "a model's directory"),
        (tmp_path / "model", 3, False, "one model and no run"),
    ):
        with pytest.raises(NoModel, match=message):
            find_model(str(name), version=version, best=best)


def test_a_model_without_a_tokenizer_gets_the_jobs(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    model, job = find_model(str(tmp_path), version=None, best=False), make_job("base")
    assert job_of(job, model).model.tokenizer == "base"
    (tmp_path / "tokenizer.json").touch()
    own = job_of(job, model).model
    assert (own.path, own.tokenizer) == (str(tmp_path), None)


def make_job_file(directory: Path) -> Path:
    raw = make_job(
        make_model(directory / "model"),
        data={"eval": {"kind": "jsonl", "path": "held-out.jsonl"}, "eval_num_prompts": 3},
        reward={"kind": "exact_match"},
        rollout={"engine": "scripted"},
        weights={"probe": False},
    ).model_dump(mode="json")
    items = [{"prompt": f"{n} + {n}=", "answer": str(2 * n)} for n in range(5)]
    lines = "".join(f"{json.dumps(item)}\n" for item in items)
    (directory / "held-out.jsonl").write_text(lines)
    with (directory / "job.yaml").open("w") as file:
        YAML().dump(raw, file)
    return directory / "job.yaml"


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    job = make_job_file(tmp_path)
    command = ["eval", str(tmp_path / "model"), "--job", str(job)]
    more = ["eval.num_samples=2", "eval.pass_at=[1, 2]"]
    done = CliRunner().invoke(app, [*command, *more, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["version"] is None
    figures = found["sets"]["eval"]
    assert (figures["num_prompts"], figures["num_failures"]) == (3, 0)
    assert set(figures["pass_at"]) == {"1", "2"}
    assert figures["greedy_accuracy"] == figures["greedy_reward"]  # of exact matches
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "greedy accuracy" in done.stdout


def test_bad_input_is_told_without_a_traceback(tmp_path: Path) -> None:
    job, model = make_job_file(tmp_path), tmp_path / "model"
    for arguments, message in (
        ([str(tmp_path / "nothing"), "--job", str(job)], "a model's directory"),
        ([str(model)], "name its job file by --job"),
        ([str(model), "--job", str(job), "data.eval=null"], "there is nothing to evaluate on"),
        ([str(model), "--job", str(job), "eval.pass_at=[3]"], "needs as many answers"),
        ([str(model), "--job", str(job), "--best", "--version", "3"], "leave one out"),
    ):
        done = CliRunner().invoke(app, ["eval", *arguments])
        assert done.exit_code == 2, done.output
        assert message in " ".join(done.stderr.replace("│", " ").split())
