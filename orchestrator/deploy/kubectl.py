"""More or fewer pods for a running RayJob, with the user's own kubectl and rights.

    RayJob ── status.rayClusterName ──▶ RayCluster: its groups are patched
                                        its head's pod: there the job is asked, as on any machine

KubeRay ignores changes of a running RayJob's own `rayClusterSpec`, so it is left alone. Every call
has a deadline.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.control import Answer, Scale
from orchestrator.deploy.kuberay import RANKS_NOTE, RUN_DIR_NOTE
from slipstream.errors import SlipstreamError

CALL_S = 20  # of one request to Kubernetes
ASK_S = 120  # of the job's answer
PODS_S = 600.0  # for the learner's new pods to be there
LOOK_EVERY_S = 2.0


class KubernetesError(SlipstreamError):
    """What kubectl cannot do, in its own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubectl:
    """Calls in one namespace; None is the user's current one."""

    namespace: str | None

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._run("get", kind, name, "--output=json"))
        return found

    def patch(self, kind: str, name: str, operations: Sequence[Mapping[str, Any]]) -> None:
        self._run("patch", kind, name, "--type=json", f"--patch={json.dumps(operations)}")

    def execute(self, pod: str, container: str, command: Sequence[str]) -> Answer:
        """What a command in a pod says: it is done where it exits with 0."""
        where = ["exec", pod, f"--container={container}", "--", *command]
        done = self._call(*where, timeout_s=ASK_S)
        said = (done.stdout if done.returncode == 0 else done.stderr).strip()
        return Answer(ok=done.returncode == 0, message=said)

    def _run(self, *arguments: str) -> str:
        done = self._call(*arguments, f"--request-timeout={CALL_S}s", timeout_s=2 * CALL_S)
        if done.returncode != 0:
            raise KubernetesError(f"kubectl {' '.join(arguments[:3])}: {done.stderr.strip()}")
        return done.stdout

    def _call(self, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        namespace = [f"--namespace={self.namespace}"] if self.namespace else []
        command = ["kubectl", *namespace, *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
        except FileNotFoundError:
            raise KubernetesError(
                "kubectl is not on the PATH; install it, or scale from a pod of the cluster"
            ) from None
        except subprocess.TimeoutExpired:
            raise KubernetesError(
                f"kubectl {' '.join(arguments[:3])}: no answer within {timeout_s:g} s"
            ) from None


def scale(kubectl: Kubectl, ray_job: str, run: str, request: Scale) -> Answer:
    """Make room for what is asked, then ask the job, in its head's pod. Raises KubernetesError.

    `run`: the run's directory in the pods, or its name where the RayJob was rendered by us.
    """
    job = kubectl.get("rayjob", ray_job)
    cluster_name = job.get("status", {}).get("rayClusterName")
    if not cluster_name:
        raise KubernetesError(f"RayJob {ray_job} has no cluster: it has not started, or has ended")
    cluster = kubectl.get("raycluster", cluster_name)
    notes = job["metadata"].get("annotations", {})
    wanted = _pods(request, notes, ray_job)
    operations = [one for role, num in wanted.items() for one in patches(cluster, role, num)]
    if operations:
        kubectl.patch("raycluster", cluster_name, operations)
    if operations and request.learner is not None:
        _wait_for_pods(kubectl, cluster_name)
    head = cluster.get("status", {}).get("head", {}).get("podName")
    if not head:
        raise KubernetesError(f"RayCluster {cluster_name} has no head pod yet; ask again")
    counts = [f"{role}={num}" for role, num in _counts(request).items()]
    run_dir = notes.get(RUN_DIR_NOTE, run)
    return kubectl.execute(head, "ray-head", ["slipstream", "scale", run_dir, *counts])


def patches(cluster: Mapping[str, Any], role: str, num: int) -> list[dict[str, Any]]:
    """What makes room for `num` pods in the role's group of a RayCluster; none where there is.

    With the autoscaler, the job's own asking brings the workers' pods, up to `maxReplicas`. A
    group of fixed size, as the learner's, changes as a whole. No pod of a worker is taken
    away here, as nothing would say which: the autoscaler does, once it is idle.
    """
    spec = cluster["spec"]
    groups = [group["groupName"] for group in spec.get("workerGroupSpecs", ())]
    if role not in groups:
        raise KubernetesError(
            f"RayCluster {cluster['metadata']['name']} has no group {role!r}, but "
            f"{', '.join(groups) or 'none'}; where devices are shared, the numbers stay"
        )
    index = groups.index(role)
    group = spec["workerGroupSpecs"][index]
    low, high, now = (group.get(key, 0) for key in ("minReplicas", "maxReplicas", "replicas"))
    changes: dict[str, int] = {}
    if role == "learner":
        changes = {"minReplicas": num, "maxReplicas": num, "replicas": num}
    elif spec.get("enableInTreeAutoscaling"):
        changes = {"maxReplicas": max(high, num), "minReplicas": min(low, num)}
    else:
        changes = {"maxReplicas": max(high, num), "replicas": max(now, num)}
    changes = {key: value for key, value in changes.items() if group.get(key, 0) != value}
    if not changes:
        return []
    where = f"/spec/workerGroupSpecs/{index}"
    test = {"op": "test", "path": f"{where}/groupName", "value": role}
    return [
        test,
        *(
            {"op": "add", "path": f"{where}/{key}", "value": value}
            for key, value in changes.items()
        ),
    ]


def _counts(request: Scale) -> dict[str, int]:
    asked = {"rollout": request.rollout, "learner": request.learner}
    return {role: num for role, num in asked.items() if num is not None}


def _pods(request: Scale, notes: Mapping[str, str], ray_job: str) -> dict[str, int]:
    """How many pods of each role hold what is asked for."""
    counts = _counts(request)
    if "learner" in counts:
        if RANKS_NOTE not in notes:
            raise KubernetesError(
                f"RayJob {ray_job} does not say how many ranks share a pod (annotation "
                f"{RANKS_NOTE}), as those of `slipstream render kuberay` do"
            )
        counts["learner"] = -(-counts["learner"] // int(notes[RANKS_NOTE]))
    return counts


def _wait_for_pods(kubectl: Kubectl, cluster_name: str) -> None:
    """Until the pods that the cluster wants are ready: a learner is built at once or not at all."""
    deadline_s = time.monotonic() + PODS_S
    while time.monotonic() < deadline_s:
        time.sleep(LOOK_EVERY_S)
        status = kubectl.get("raycluster", cluster_name).get("status", {})
        if status.get("readyWorkerReplicas", 0) >= status.get("desiredWorkerReplicas", 0):
            return
    raise KubernetesError(
        f"RayCluster {cluster_name}: the new pods were not ready within {PODS_S:g} s; the job was "
        "not asked. `kubectl get pods` shows what they wait for; then ask again"
    )
