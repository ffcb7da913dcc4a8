"""`slipstream plan` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.commands.planning import answers_of
from tests.helpers.jobs import make_job
from tests.helpers.shapes import QWEN2_5_7B

ROOT = Path(__file__).parents[3]
BUFFERED = str(ROOT / "examples" / "arithmetic" / "buffered.yaml")


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


@pytest.fixture
def gpu_job(tmp_path: Path) -> list[str]:
    (tmp_path / "config.json").write_text(json.dumps(QWEN2_5_7B))
    overrides = ["model.dtype=bfloat16", "weights.max_probe_error=0.3", "rollout.gpus=1"]
    overrides += [f"model.path={tmp_path}"]
    overrides += ["learner.gpus_per_rank=1", "learner.num_ranks=8", "learner.zero_stage=3"]
    overrides.append("weights.max_probe_error=0.3")
    return [BUFFERED, *overrides, f"checkpoint.dir={tmp_path}"]


def test_on_the_cores_of_this_machine() -> None:
    done = plan(BUFFERED, "--json", "--answer-tokens", "3.5")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["params"] == 1_777_664
    assert told["fits"]
    assert told["lengths"]["answer"] == {"tokens": 3.5, "source": "as given"}
    assert told["lengths"]["prompt"] == {"tokens": 7.0, "source": "the first 64"}  # 12 + 34=
    assert set(told["modes"]) == {"sync", "split", "buffered", "multinode"}
    assert told["modes"]["sync"]["step_s"] > told["modes"]["buffered"]["step_s"] > 0


def test_on_gpus_in_words(gpu_job: list[str]) -> None:
    done = plan(*gpu_job, "--gpu", "H100", "--answer-tokens", "5")
    assert done.exit_code == 0, done.stderr
    assert "7,615,616,512 parameters, 57,344 bytes of KV cache a token" in done.stdout
    assert "It fits." in done.stdout
    assert "not checked them on a GPU" in done.stdout


def test_what_does_not_fit_is_said_with_what_would_help(gpu_job: list[str]) -> None:
    done = plan(*gpu_job, "learner.num_ranks=1", "--gpu", "A100-40GB", "--answer-tokens", "5")
    assert done.exit_code == 1
    assert "learner.num_ranks=2 with learner.zero_stage=3" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([BUFFERED, "--gpu", "H100"], "the job uses no GPUs; set rollout.gpus=1"),
        ([BUFFERED, "rollout.gpus=1"], "say which with --gpu: A10, A100"),
        ([BUFFERED, "rollout.gpus=1", "--gpu", "H1000"], "'H1000' is not known; expected one of"),
        ([BUFFERED, "model.path=Qwen/Qwen2.5-7B"], "nothing is downloaded to plan"),
        ([BUFFERED, "rollout.num_slotz=1"], "did you mean 'num_slots'"),
    ],
)
def test_bad_input_is_one_message(arguments: list[str], part: str) -> None:
    done = plan(*arguments)
    assert done.exit_code == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_answers_are_as_long_as_in_the_run_before(tmp_path: Path) -> None:
    job = make_job(checkpoint={"dir": tmp_path})
    assert answers_of(job, None).tokens == 4  # half of 8
    job.run_dir.mkdir()
    steps = [
        {"kind": "step", "num_answer_tokens": tokens, "num_rollouts": 10} for tokens in (30, 50)
    ]
    lines = [json.dumps(event) for event in [*steps, {"kind": "busy", "step": 1}]]
    lines.insert(1, '{"kind": "step", "num_answ')  # of a driver that was killed
    (job.run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert answers_of(job, None).tokens == 4.0
    assert answers_of(job, None).source == f"the last steps of {job.run_dir}"
    assert answers_of(job, 100).tokens == 8  # never more than they may have
