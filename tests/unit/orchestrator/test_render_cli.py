"""`slipstream render`, as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from orchestrator.cli import app

ROOT = Path(__file__).parents[3]
JOB = str(ROOT / "examples" / "arithmetic" / "multinode.yaml")


def render(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["render", *arguments])


def ray_job(done: Result) -> dict[str, object]:
    assert done.exit_code == 0, done.stderr
    found: dict[str, object] = list(yaml.safe_load_all(done.stdout))[-1]
    return found


def images(done: Result) -> list[str]:
    cluster = ray_job(done)["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"]["containers"][0]["image"] for group in groups]


def test_it_prints_manifests_and_says_what_the_pods_must_have() -> None:
    done = render("kuberay", JOB, "--volume", "runs", "--files", "/opt/slipstream/examples")
    assert ray_job(done)["kind"] == "RayJob"
    assert done.stderr.splitlines() == [
        "slipstream: must be there in the pods, by image or volume: "
        "/opt/slipstream/examples/base_model, /opt/slipstream/examples/heldout.jsonl"
    ]


def test_out_writes_the_same_to_a_file(tmp_path: Path) -> None:
    out = tmp_path / "job.yaml"
    done = render("kuberay", JOB, "--volume", "runs", "--out", str(out))
    assert (done.exit_code, done.stdout) == (0, "")
    assert out.read_text() == render("kuberay", JOB, "--volume", "runs").stdout


def test_a_name_that_kubernetes_does_not_take_is_told() -> None:
    done = render("kuberay", JOB, "name=Run_1.5", "--volume", "runs")
    assert ray_job(done)["metadata"]["name"] == "run-1-5-5dab06"
    assert "no name 'Run_1.5': the RayJob is called run-1-5-5dab06" in done.stderr


def test_each_role_has_its_image() -> None:
    gpus = ("rollout.gpus=1", "learner.gpus_per_rank=1")
    assert images(render("kuberay", JOB, "--volume", "runs")) == ["slipstream-cpu:0.1.0"] * 3
    assert images(render("kuberay", JOB, *gpus, "--volume", "runs")) == [
        "slipstream-rollout:0.1.0",
        "slipstream-rollout:0.1.0",
        "slipstream-learner:0.1.0",
    ]
    given = ("--image", "ours:1", "--image", "learner=theirs:2")
    assert images(render("kuberay", JOB, *gpus, "--volume", "runs", *given)) == [
        *("ours:1", "ours:1", "theirs:2")
    ]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--image", "hed=x"), "--image: 'hed' is no role; expected one of head, rollout, learner"),
        (("--memory", "learner=64Gi"), "--memory: '64Gi' is no whole number of GiB"),
        (("--memory", "learner"), "--memory: 'learner' is not of the form KEY=VALUE"),
        (("--spot", "spot"), "--spot: 'spot' is not of the form KEY=VALUE"),
        (("--files", "here"), "--files: here is not absolute"),
        (("--out", "/nowhere/job.yaml"), "--out: /nowhere/job.yaml cannot be written"),
        (("--queue", "not valid"), "takes no label kueue.x-k8s.io/queue-name=not valid"),
        (("learner.num_stepz=3",), "did you mean 'num_steps'"),
    ],
)
def test_bad_input_is_one_line_and_exits_with_2(arguments: tuple[str, ...], part: str) -> None:
    done = render("kuberay", JOB, "--volume", "runs", *arguments)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert part in done.stderr


def test_an_actor_that_fits_on_no_node_of_slurm_is_said() -> None:
    done = render("slurm", JOB, "rollout.cpus=32")
    assert done.exit_code == 2
    assert "one rollout actor asks for 32 CPUs, and --cpus-per-node is 16" in done.stderr
