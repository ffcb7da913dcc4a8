"""Rendered RayJobs: against KubeRay's schema, against its operator's rules, and what they say."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from orchestrator.deploy import kuberay
from orchestrator.deploy.manifest_yaml import to_yaml
from orchestrator.deploy.rules import violations
from slipstream.config.load import load_job
from tests.helpers.manifests import ROOT, at, key_paths, schema_errors

EXAMPLES = sorted(ROOT.glob("examples/*/*.yaml"))
GSM8K = ROOT / "examples" / "gsm8k" / "buffered.yaml"
ARITHMETIC = ROOT / "examples" / "arithmetic"
GPUS = (
    *("rollout.gpus=2", "learner.gpus_per_rank=1", "learner.num_ranks=12"),
    "weights.transport=nccl",
)
# Maps whose keys are the user's own: no schema can tell a misspelt one.
FREE = {"labels", "annotations", "nodeSelector", "data"}


def render(file: Path, *overrides: str, **more: Any) -> list[dict[str, Any]]:
    given = {
        "volume": "runs",
        "ray_version": "2.60.0",
        "images": dict.fromkeys(("head", "rollout", "learner"), "slipstream-cpu:0.1.0"),
        **more,
    }
    job = load_job(file, list(overrides))
    manifests, _ = kuberay.render(job, file.parent, kuberay.Options(**given))
    # What kubectl reads, whose YAML is of version 1.1.
    assert list(yaml.safe_load_all(to_yaml(manifests))) == manifests
    return manifests


def rich() -> list[dict[str, Any]]:
    """With every key that can be written."""
    placement = "rollout.placement={labels: {zone: a}, resources: {fast: 2}}"
    more = {"namespace": "team", "spot": ("spot", "true"), "secret": "keys"}
    return render(GSM8K, *GPUS, placement, **more)


def groups(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    cluster = manifests[-1]["spec"]["rayClusterSpec"]
    return {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def pod_specs(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cluster = manifests[-1]["spec"]["rayClusterSpec"]
    return [
        group["template"]["spec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    ]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: f"{file.parent.name}-{file.stem}")
@pytest.mark.parametrize("queue", [None, "gpus"])
def test_every_shipped_run_file_passes_the_schema_and_the_rules(
    file: Path, queue: str | None
) -> None:
    for overrides in ((), GPUS if "sync" not in file.name else ()):
        manifests = render(file, *overrides, queue=queue)
        assert violations(manifests[-1]) == []
        assert [schema_errors(manifest) for manifest in manifests] == [[], []]


def test_with_every_option_it_passes_too() -> None:
    manifests = rich()
    assert violations(manifests[-1]) == []
    assert [schema_errors(manifest) for manifest in manifests] == [[], []]


@pytest.mark.parametrize("manifests", [rich(), render(GSM8K, queue="gpus")], ids=["rich", "queue"])
def test_a_misspelt_key_is_caught_wherever_it_stands(manifests: list[dict[str, Any]]) -> None:
    num_caught = 0
    for manifest in manifests:
        for *parents, key in key_paths(manifest):
            broken = copy.deepcopy(manifest)
            section = at(broken, tuple(parents))
            is_ours = tuple(parents) == ("spec", "metadata")  # of the job in Ray's dashboard
            is_amount = tuple(parents[-1:]) == ("resources",) and len(parents) == 5  # Ray's custom
            if FREE & set(parents) or is_ours or is_amount:
                continue
            section[f"{key}x"] = section.pop(key)
            problems = schema_errors(broken)
            if manifest["kind"] == "RayJob" and not problems:
                problems = violations(broken)
            assert problems, f"{'.'.join(map(str, (*parents, key)))} may be misspelt"
            num_caught += 1
    assert num_caught > 150


@pytest.mark.parametrize(
    "path",
    [
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"),
        ("spec", "ttlSecondsAfterFinished"),
        ("spec", "shutdownAfterJobFinishes"),
    ],
)
def test_a_value_of_another_type_is_caught(path: tuple[Any, ...]) -> None:
    manifest = rich()[-1]
    at(manifest, path[:-1])[path[-1]] = "2"
    assert len(schema_errors(manifest)) == 1


def test_no_pod_may_do_more_than_the_restricted_profile() -> None:
    manifests = rich()
    for spec in pod_specs(manifests):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 1000
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "persistentVolumeClaim", "emptyDir"}
    contexts = [spec["containers"][0]["securityContext"] for spec in pod_specs(manifests)]
    cluster = manifests[-1]["spec"]["rayClusterSpec"]
    for context in (*contexts, cluster["autoscalerOptions"]["securityContext"]):
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert cluster["authOptions"] == {"mode": "token"}
    # The operator submits: a submitter's pod would have none of these.
    assert manifests[-1]["spec"]["submissionMode"] == "HTTPMode"


def test_the_learner_has_a_fixed_size_and_rollout_workers_a_range() -> None:
    found = groups(render(GSM8K, *GPUS, "rollout.num_workers=3"))
    ranges = {
        role: tuple(group[key] for key in ("minReplicas", "replicas", "maxReplicas"))
        for role, group in found.items()
    }
    # 12 ranks, at most 8 a pod: 2 pods of 6. 4 times as many workers as there are at first.
    assert ranges == {"rollout": (0, 3, 12), "learner": (2, 2, 2)}
    limits = {
        role: group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for role, group in found.items()
    }
    assert limits["rollout"] == {"cpu": "1", "memory": "128Gi", "nvidia.com/gpu": "2"}
    assert limits["learner"] == {"cpu": "6", "memory": "576Gi", "nvidia.com/gpu": "6"}
    scale = "rollout.autoscale={min_workers: 2, max_workers: 5}"
    scaled = groups(render(GSM8K, scale, "rollout.num_workers=2"))["rollout"]
    assert (scaled["minReplicas"], scaled["replicas"], scaled["maxReplicas"]) == (2, 2, 5)


def test_pods_carry_the_labels_that_the_job_in_them_asks_for() -> None:
    for file in EXAMPLES:
        config, ray_job = render(file)
        job = yaml.safe_load(config["data"]["job.yaml"])
        found = groups([ray_job])
        if job["mode"] == "sync":  # one set of devices
            assert set(found) == {"learner"}
            continue
        for role in ("rollout", "learner"):
            assert found[role]["labels"] == job[role]["placement"]["labels"]
        assert found["rollout"]["labels"] != found["learner"]["labels"]
    own = groups(rich())["rollout"]
    assert own["labels"] == {"zone": "a"}
    assert own["resources"] == {"fast": "2"}


def test_the_job_file_in_the_pods_is_a_job_file(tmp_path: Path) -> None:
    for file in EXAMPLES:
        before = load_job(file)
        config, ray_job = render(file, files=PurePosixPath("/opt/files"))
        (tmp_path / "job.yaml").write_text(config["data"]["job.yaml"])
        job = load_job(tmp_path / "job.yaml")
        assert job.algorithm == before.algorithm
        assert job.learner.learning_rate == before.learner.learning_rate
        assert str(job.run_dir) == f"/slipstream/runs/{job.name}"
        assert f"{job.run_dir}/checkpoints/step-*" in ray_job["spec"]["entrypoint"]
        assert str(ROOT) not in to_yaml([config, ray_job])
        assert job.model.path in ("/opt/files/base_model", "/opt/files/model")


def test_a_retry_goes_on_from_a_commit_and_begins_anew_where_there_is_none(tmp_path: Path) -> None:
    entrypoint = render(GSM8K, f"checkpoint.dir={tmp_path}/our runs")[1]["spec"]["entrypoint"]
    program = "slipstream() { echo $# $5; }; "

    def said() -> str:
        return subprocess.check_output(["sh", "-c", program + entrypoint], text=True).strip()

    assert said() == "4"
    checkpoints = tmp_path / "our runs" / load_job(GSM8K).name / "checkpoints"
    checkpoints.mkdir(parents=True)
    assert said() == "5 --overwrite"
    for version in (1, 2):
        (checkpoints / f"step-0000000{version}-t0000").mkdir()
    assert said() == "5 --resume"


def test_the_reward_beside_the_job_file_goes_along() -> None:
    config, _ = render(GSM8K)
    source = (GSM8K.parent / "gsm8k_reward.py").read_text()
    assert config["data"]["gsm8k_reward.py"] == source
    assert set(render(ARITHMETIC / "split.yaml")[0]["data"]) == {"job.yaml"}


def test_every_path_of_a_job_is_moved(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text((ARITHMETIC / "buffered.yaml").read_text())
    sets = "data.eval_sets={hard: {kind: jsonl, path: hard.jsonl}}"
    config, _ = render(tmp_path / "job.yaml", sets, files=PurePosixPath("/opt/files"))
    data = yaml.safe_load(config["data"]["job.yaml"])["data"]
    assert data["eval_sets"]["hard"]["path"] == "/opt/files/hard.jsonl"


def test_a_reward_that_yaml_cannot_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gsm8k_reward.py").write_text("def reward(): ...\n\x0c\n")
    (tmp_path / "job.yaml").write_text(GSM8K.read_text())
    with pytest.raises(ValueError, match=r"holds the character '\\x0c'"):
        render(tmp_path / "job.yaml")


def test_what_is_too_large_for_a_config_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gsm8k_reward.py").write_text("#" * 1_000_000)
    (tmp_path / "job.yaml").write_text(GSM8K.read_text())
    with pytest.raises(ValueError, match=r"at most 900000 can go along; put .* into the image"):
        render(tmp_path / "job.yaml")


def test_an_absolute_checkpoint_dir_is_where_the_volume_is_mounted() -> None:
    config, ray_job = render(GSM8K, "checkpoint.dir=/data/runs")
    assert yaml.safe_load(config["data"]["job.yaml"])["checkpoint"]["dir"] == "/data/runs"
    for spec in pod_specs([ray_job]):
        assert "/data/runs" in [
            mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]
        ]


def test_with_a_queue_it_waits_to_be_admitted_and_has_no_autoscaler() -> None:
    ray_job = render(GSM8K, queue="gpus")[-1]
    assert ray_job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert ray_job["spec"]["suspend"] is True
    assert "enableInTreeAutoscaling" not in ray_job["spec"]["rayClusterSpec"]
    ray_job = render(GSM8K)[-1]
    assert "suspend" not in ray_job["spec"]
    assert ray_job["spec"]["rayClusterSpec"]["autoscalerOptions"]["version"] == "v2"


def test_only_rollout_pods_are_spot_and_have_their_grace() -> None:
    head, rollout, learner = pod_specs(render(GSM8K, "rollout.grace_s=70", spot=("spot", "yes")))
    assert rollout["nodeSelector"] == {"spot": "yes"}
    assert [one["key"] for one in rollout["tolerations"]] == ["spot"]
    assert rollout["terminationGracePeriodSeconds"] == 85
    (command,) = rollout["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][2:]
    assert "--deadline-remaining-seconds 70 " in command
    for spec in (head, learner):
        assert not {"nodeSelector", "tolerations"} & set(spec)
