"""`slipstream scale --kuberay`, with a kubectl that notes what it is asked and answers by files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.deploy import kubectl

KUBECTL = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
place = Path(os.environ["FAKE"])
arguments = [one for one in sys.argv[1:] if not one.startswith("--namespace=")]
with (place / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
answer = place / "-".join(arguments[:3] if arguments[0] == "get" else arguments[:1])
if (place / (answer.name + ".error")).exists():
    sys.exit((place / (answer.name + ".error")).read_text())
print(answer.read_text() if answer.exists() else "")
"""
NOTES = {"slipstream/run-dir": "/slipstream/runs/job", "slipstream/ranks-per-pod": "4"}


def group(name: str, low: int, now: int, high: int) -> dict[str, Any]:
    return {"groupName": name, "minReplicas": low, "replicas": now, "maxReplicas": high}


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """Where the fake's answers lie: a job of a cluster with the autoscaler."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kubectl").write_text(KUBECTL)
    (tmp_path / "bin" / "kubectl").chmod(0o755)
    write(
        tmp_path / "get-rayjob-train",
        {"metadata": {"annotations": NOTES}, "status": {"rayClusterName": "train-x7"}},
    )
    cluster(tmp_path)
    (tmp_path / "exec").write_text("6 rollout workers from now on")
    return tmp_path


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubectl, "LOOK_EVERY_S", 0.05)


def cluster(
    fake: Path,
    *,
    is_scaled: bool = True,
    roles: tuple[str, ...] = (),
    num_ready: int = 4,
    num_seen: int = 2,
) -> None:
    groups = [group("rollout", 0, 2, 4), group("learner", 2, 2, 2)]
    write(
        fake / "get-raycluster-train-x7",
        {
            "metadata": {"name": "train-x7", "generation": 2},
            "spec": {
                "enableInTreeAutoscaling": is_scaled,
                "workerGroupSpecs": [
                    one for one in groups if not roles or one["groupName"] in roles
                ],
            },
            "status": {
                "head": {"podName": "train-x7-head-abc"},
                "observedGeneration": num_seen,
                "readyWorkerReplicas": num_ready,
                "desiredWorkerReplicas": 4,
            },
        },
    )


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def scale(fake: Path, *arguments: str, path: str | None = None) -> Result:
    path = f"{fake}/bin:{os.environ['PATH']}" if path is None else path
    env = {"PATH": path, "FAKE": str(fake)}
    return CliRunner().invoke(app, ["scale", "job", *arguments, "--kuberay", "train"], env=env)


def calls(fake: Path) -> list[list[str]]:
    return [json.loads(line) for line in (fake / "calls").read_text().splitlines()]


def patched(fake: Path) -> dict[str, int]:
    """What is changed, by key: of the RayCluster alone, where the group is the right one."""
    found = [call for call in calls(fake) if call[0] == "patch"]
    assert all(call[1:3] == ["raycluster", "train-x7"] for call in found)
    changes = {}
    for call in found:
        (patch,) = [one.partition("=")[2] for one in call if one.startswith("--patch=")]
        test, *operations = json.loads(patch)
        assert test["op"] == "test"
        assert test["path"].endswith("/groupName")
        for one in operations:
            assert one["path"].startswith(test["path"].removesuffix("/groupName"))
            changes[f"{test['value']}.{one['path'].rpartition('/')[2]}"] = one["value"]
    return changes


def test_with_the_autoscaler_only_a_range_that_is_too_narrow_is_widened(fake: Path) -> None:
    done = scale(fake, "rollout=6")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "6 rollout workers from now on\n"
    assert patched(fake) == {"rollout.maxReplicas": 6}
    asked = calls(fake)[-1]
    assert asked[:3] == ["exec", "train-x7-head-abc", "--container=ray-head"]
    assert asked[3:] == ["--", "slipstream", "scale", "/slipstream/runs/job", "rollout=6"]


def test_where_there_is_room_the_cluster_is_left_alone(fake: Path) -> None:
    assert scale(fake, "rollout=3").exit_code == 0
    assert [call[0] for call in calls(fake)] == ["get", "get", "exec"]


def test_without_the_autoscaler_the_pods_are_asked_for(fake: Path) -> None:
    cluster(fake, is_scaled=False)
    assert scale(fake, "rollout=6").exit_code == 0
    assert patched(fake) == {"rollout.maxReplicas": 6, "rollout.replicas": 6}


def test_without_it_no_pod_is_taken_from_a_worker(fake: Path) -> None:
    cluster(fake, is_scaled=False)
    assert scale(fake, "rollout=1").exit_code == 0
    assert [call[0] for call in calls(fake)] == ["get", "get", "exec"]


def test_ranks_share_pods_and_are_waited_for(fake: Path) -> None:
    assert scale(fake, "learner=9").exit_code == 0
    # 9 ranks, 4 a pod: 3 pods.
    assert patched(fake) == {"learner.minReplicas": 3, "learner.maxReplicas": 3}
    assert [call[0] for call in calls(fake)] == ["get", "get", "patch", "get", "exec"]


def test_fewer_ranks_leave_idle_pods_to_the_autoscaler(fake: Path) -> None:
    assert scale(fake, "learner=4").exit_code == 0
    assert patched(fake) == {"learner.minReplicas": 1}


def test_pods_that_do_not_come_are_said_and_the_job_is_not_asked(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(fake, num_ready=3)
    monkeypatch.setattr(kubectl, "PODS_S", 0.3)
    done = scale(fake, "learner=9")
    assert done.exit_code == 2
    assert "the new pods were not ready within 0.3 s; the job was not asked" in done.stderr
    assert "exec" not in [call[0] for call in calls(fake)]


def test_what_kubernetes_has_not_seen_yet_is_not_ready(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(fake, num_ready=4, num_seen=1)
    monkeypatch.setattr(kubectl, "PODS_S", 0.3)
    assert "not ready" in scale(fake, "learner=9").stderr


def test_a_refusal_takes_the_room_back(fake: Path) -> None:
    (fake / "exec.error").write_text("slipstream: the learner has done all its steps")
    done = scale(fake, "learner=9", "rollout=3")
    assert done.exit_code == 1
    assert "done all its steps" in done.stderr
    assert patched(fake) == {"learner.minReplicas": 2, "learner.maxReplicas": 2}


def test_every_call_has_a_deadline_and_the_namespace(fake: Path) -> None:
    assert scale(fake, "rollout=6", "--namespace", "team").exit_code == 0
    for call in calls(fake):
        assert call[0] == "--namespace=team"
        assert "--request-timeout=20s" in call or "exec" in call


def test_what_the_job_refuses_exits_with_1(fake: Path) -> None:
    (fake / "exec.error").write_text("slipstream: rollout.autoscale decides about the workers")
    done = scale(fake, "rollout=3")
    assert done.exit_code == 1
    assert "rollout.autoscale decides" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("get-rayjob-train.error", 'rayjobs.ray.io "train" not found', '"train" not found'),
        ("get-raycluster-train-x7.error", "Error (Forbidden): no get", "Forbidden"),
        ("get-rayjob-train", '{"metadata": {}, "status": {}}', "it has not started, or has ended"),
        ("patch.error", "Error (Forbidden): no patch", "kubectl patch raycluster train-x7: Error"),
    ],
)
def test_what_kubernetes_refuses_is_said_in_words(
    fake: Path, name: str, value: str, part: str
) -> None:
    (fake / name).write_text(value)
    done = scale(fake, "rollout=6")
    assert done.exit_code == 2
    assert part in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "exec" not in [call[0] for call in calls(fake)]


def test_a_group_that_is_not_there_is_said(fake: Path) -> None:
    cluster(fake, roles=("learner",))
    done = scale(fake, "rollout=6")
    assert done.exit_code == 2
    assert "no group 'rollout', but learner; where devices are shared" in done.stderr


def test_ranks_of_a_foreign_rayjob_are_refused(fake: Path) -> None:
    write(fake / "get-rayjob-train", {"metadata": {}, "status": {"rayClusterName": "train-x7"}})
    done = scale(fake, "learner=2")
    assert done.exit_code == 2
    assert "annotation slipstream/ranks-per-pod" in done.stderr


def test_without_kubectl_it_says_so(fake: Path) -> None:
    done = scale(fake, "rollout=6", path=str(fake))
    assert done.exit_code == 2
    assert done.stderr.startswith("slipstream: kubectl is not on the PATH")
