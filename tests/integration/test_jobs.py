"""Whole jobs through the command line: real Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from two_nodes import two_nodes

from tests.helpers.runs import (
    ROOT,
    assert_nothing_is_left,
    environment,
    events,
    kill_with_children,
    launch,
    ledger,
    started,
    wait_for,
)

EXAMPLES = ROOT / "examples" / "arithmetic"
GSM8K = ROOT / "examples" / "gsm8k"
SMALL = (
    "learner.num_steps=5",
    "learner.warmup_steps=1",
    "learner.groups_per_batch=8",
    "data.eval_num_prompts=20",
)


TEN = (*SMALL, "learner.num_steps=10", "checkpoint.every_steps=5")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sync`, and `buffered` with the staleness bound 0, on the same seed."""
    directory = tmp_path_factory.mktemp("runs")
    for mode, arguments in (("sync", ()), ("buffered", ("replay.max_staleness=0",))):
        done = launch(EXAMPLES / f"{mode}.yaml", directory, *TEN, f"name={mode}", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert_nothing_is_left()
    return directory


def newest_commit(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()


def test_zero_means_zero(runs: Path) -> None:
    """The same token ids step by step, and bit-identical weights."""
    sync, buffered = (events(runs / mode, "step") for mode in ("sync", "buffered"))
    assert len(sync) == 10
    assert [e["tokens_sha256"] for e in sync] == [e["tokens_sha256"] for e in buffered]
    assert all(event["lags"] == {"0": 8} for event in [*sync, *buffered])
    weights = [
        (newest_commit(runs / mode) / "model" / "model.safetensors").read_bytes()
        for mode in ("sync", "buffered")
    ]
    assert weights[0] == weights[1]
    assert all(event["metrics"]["grad_norm"] > 0 for event in sync)


@pytest.mark.parametrize("mode", ["sync", "buffered"])
def test_every_adoption_passed_the_probe(runs: Path, mode: str) -> None:
    adopted = events(runs / mode, "adopted")
    assert [event["version"] for event in adopted] == list(range(11))
    assert all(event["probe_error"] < 1e-4 for event in adopted)


def test_the_run_directory_is_whole(runs: Path) -> None:
    result = json.loads((runs / "sync" / "result.json").read_text())
    assert result["steps"] == 10
    assert result["trained_groups"] == 80
    assert [e["version"] for e in result["evals"]] == [0, 10]
    assert result["replay"]["num_trained"] == 80
    assert "learning_rate" in (runs / "sync" / "job.yaml").read_text()


def test_the_run_log_is_whole(runs: Path) -> None:
    run = runs / "buffered"
    (launched,) = json.loads((run / "environment.json").read_text())["launches"]
    assert "name=buffered" in launched["command_line"]
    assert {"ray", "torch", "transformers", "deepspeed"} <= set(launched["versions"])
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [sample["ordinal"] for sample in samples] == [0, 50]
    for answer in (answer for sample in samples for answer in sample["answers"]):
        assert sum(num_tokens for _, num_tokens in answer["spans"]) == answer["num_tokens"]
        assert 0.0 <= answer["reward"] <= 1.0
    assert sum(file.stat().st_size for file in (run / "tensorboard").iterdir()) > 5_000
    entries = json.loads((run / "trace.json").read_text())["traceEvents"]
    phases = {(entry["pid"], entry["name"]) for entry in entries if entry["ph"] == "X"}
    assert {(2, "train"), (2, "wait"), (3, "generate")} <= phases
    told = (ROOT / "docs" / "run_files.md").read_text()
    assert [path.name for path in run.iterdir() if path.name not in NOT_TOLD | names(told)] == []


NOT_TOLD = {"checkpoints", "replay.sqlite-wal", "replay.sqlite-shm"}


def names(page: str) -> set[str]:
    """Of the files that the page lists."""
    return {name.strip("/") for name in page.split("`")[1::2]}


def test_transformers_loads_the_trained_model(runs: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = newest_commit(runs / "sync") / "model"
    model = AutoModelForCausalLM.from_pretrained(path)
    tokens = AutoTokenizer.from_pretrained(path)("12 + 34=", return_tensors="pt")
    with torch.no_grad():
        assert model(tokens["input_ids"]).logits.isfinite().all()


def test_a_real_run_is_reported_and_its_model_exported(runs: Path, tmp_path: Path) -> None:
    found = slipstream("report", str(runs / "buffered"), "--out", str(tmp_path), "--json")
    figures = json.loads(found)["runs"][0]
    assert (figures["state"], figures["version"], figures["lag"]["max"]) == ("ended", 10, 0)
    assert figures["ledger"]["holds"]
    assert 0 < figures["wait_share"]["learner-0"] < 1
    assert not any("cannot" in note or "could not" in note for note in figures["missing"])
    charts = {path.stem for path in tmp_path.glob("*.png")}
    assert {"reward", "held_out", "lag", "timeline", "timeline_detail", "sync"} <= charts
    slipstream("export", str(runs / "buffered"), str(tmp_path / "model"))
    model = (tmp_path / "model" / "model.safetensors").read_bytes()
    trained = newest_commit(runs / "buffered") / "model" / "model.safetensors"
    assert model == trained.read_bytes()
    assert "version 10" in (tmp_path / "model" / "README.md").read_text()


def slipstream(*arguments: str) -> str:
    program = [sys.executable, "-m", "orchestrator.cli", *arguments]
    done = subprocess.run(
        program, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_killed_and_resumed_is_as_if_it_had_never_been_killed(runs: Path) -> None:
    """Token ids, weights and optimizer state, bit for bit."""
    arguments = (*TEN, "name=killed")
    with started(EXAMPLES / "sync.yaml", runs, *arguments) as job:
        wait_for(lambda: any(event["version"] == 5 for event in events(runs / "killed", "commit")))
        kill_with_children(job.pid)
    done = launch(EXAMPLES / "sync.yaml", runs, *arguments, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from version 5" in done.stdout
    launches = json.loads((runs / "killed" / "environment.json").read_text())["launches"]
    assert ["--resume" in launch["command_line"] for launch in launches] == [False, True]
    whole, killed = ({e["version"]: e for e in events(runs / name, "step")} for name in NAMES)
    for version in range(1, 11):
        assert killed[version]["tokens_sha256"] == whole[version]["tokens_sha256"], version
    whole_files, killed_files = (learner_files(newest_commit(runs / name)) for name in NAMES)
    assert whole_files.keys() == killed_files.keys()
    for name, tensors in whole_files.items():
        for key, tensor in tensors.items():
            assert tensor.equal(killed_files[name][key]), f"{name}: {key}"
    assert ledger(runs / "killed")["fates"] == {"trained": 80}
    assert_nothing_is_left()


NAMES = ("sync", "killed")


def learner_files(commit: Path) -> dict[str, dict[str, Any]]:
    """Every tensor of model and optimizer state, by file and place."""
    import torch

    files = sorted((commit / "learner" / "state").rglob("*.pt"))
    assert files
    return {file.name: tensors_in(torch.load(file, weights_only=False)) for file in files}


def tensors_in(value: Any, place: str = "") -> dict[str, Any]:
    import torch

    if isinstance(value, torch.Tensor):
        return {place: value}
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {}
    return {k: v for key, item in items for k, v in tensors_in(item, f"{place}/{key}").items()}


PPO = (
    "algorithm.advantage.kind=gae",
    "algorithm.critic={learning_rate: 1e-3, clip: null}",
    "algorithm.kl={coefficient: 0.01, reference_step: 1.0, place: reward}",
)


def test_a_critic_and_a_moving_reference_are_committed_too(tmp_path: Path) -> None:
    arguments = (*SMALL, "name=ppo", "data.eval=null", *PPO)
    for more in (("learner.num_steps=2",), ("learner.num_steps=3", "--resume")):
        done = launch(EXAMPLES / "sync.yaml", tmp_path, *arguments, *more)
        assert done.returncode == 0, done.stdout + done.stderr
    first, *_, resumed = (step["metrics"] for step in events(tmp_path / "ppo", "step"))
    assert first["value"] == 0.0, "a new critic says nothing"
    assert resumed["value"] != 0.0, "the critic was lost"
    # It is at the policy when a step begins, and would be at the start model if it were lost.
    assert abs(resumed["kl_reference"]) < 1e-6
    done = launch(EXAMPLES / "sync.yaml", tmp_path, *SMALL, "name=ppo", "--resume")
    assert done.returncode == 2
    assert "algorithm.advantage" in done.stderr
    assert "one with a critic" in done.stderr


def test_split_hands_over_whole_batches_of_the_version_before(tmp_path: Path) -> None:
    """The same file as `sync`, with another mode on the command line."""
    done = launch(EXAMPLES / "sync.yaml", tmp_path, *SMALL, "mode=split", "name=split")
    assert done.returncode == 0, done.stdout + done.stderr
    steps = events(tmp_path / "split", "step")
    assert [event["lags"] for event in steps] == [{"0": 8}, *[{"1": 8}] * 4]


def test_multinode_places_roles_by_label(tmp_path: Path) -> None:
    with two_nodes() as address:
        arguments = ("name=nodes", "--address", address)
        done = launch(EXAMPLES / "multinode.yaml", tmp_path, *SMALL, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [event["version"] for event in events(tmp_path / "nodes", "step")] == [1, 2, 3, 4, 5]
    assert_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_commits_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    run, arguments = tmp_path / "stopped", ("name=stopped", "data.eval_num_prompts=20")
    with started(EXAMPLES / "buffered.yaml", tmp_path, *arguments) as job:
        wait_for(lambda: bool(events(run, "step")))
        job.send_signal(number)
        job.wait(timeout=100)
    output = (tmp_path / "launch.log").read_text()
    assert job.returncode == 130, output
    assert "Traceback" not in output
    assert newest_commit(run).name == f"step-{events(run, 'step')[-1]['version']:08d}-t0000"
    assert ledger(run)["findings"] == []
    assert_nothing_is_left()


def test_real_text_with_a_chat_template(tmp_path: Path) -> None:
    """Untied embeddings, prompts that are too long, answers cut by length, rewards of 0."""
    model = tmp_path / "model"
    make_model = [sys.executable, str(GSM8K / "make_model.py"), "--out", str(model)]
    subprocess.run(make_model, check=True, capture_output=True)
    done = launch(GSM8K / "buffered.yaml", tmp_path, f"model.path={model}", "name=text")
    assert done.returncode == 0, done.stdout + done.stderr
    steps, adopted = (events(tmp_path / "text", kind) for kind in ("step", "adopted"))
    assert [event["version"] for event in steps] == [1, 2, 3]
    assert all(event["reward"] == 0 for event in steps)
    assert len(adopted) == 4
    assert all(event["probe_error"] < 1e-4 for event in adopted)
    replay = json.loads((tmp_path / "text" / "result.json").read_text())["replay"]
    assert replay["drops"] == {"prompt_too_long": replay["num_issued"] - 24}
    assert 1 <= replay["drops"]["prompt_too_long"] <= 8
    assert replay["lengths"]["generated_cut"] > 48


def test_data_that_cannot_be_used_ends_the_job_before_an_engine_starts(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "1+1="}\n')
    done = launch(
        EXAMPLES / "buffered.yaml",
        tmp_path,
        f"data.train={{kind: jsonl, path: {tmp_path}/data.jsonl}}",
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "prompt" in done.stderr
    assert "Traceback" not in done.stderr
    assert_nothing_is_left()
