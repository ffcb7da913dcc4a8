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

    `run`: the run's directory in the pods, where the RayJob was not rendered by us.
    """
    job = kubectl.get("rayjob", ray_job)
    notes = job["metadata"].get("annotations", {})
    name = job.get("status", {}).get("rayClusterName")
    if not name:
        raise KubernetesError(f"RayJob {ray_job} has no cluster: it has not started, or has ended")
    cluster = kubectl.get("raycluster", name)
    head = cluster.get("status", {}).get("head", {}).get("podName")
    if not head:
        raise KubernetesError(f"RayCluster {name} has no head pod yet; ask again")
    changes = [room(cluster, role, num) for role, num in _pods(request, notes, ray_job).items()]
    if operations := [one for change in changes for one in change.operations]:
        kubectl.patch("raycluster", name, operations)
    if operations and request.learner is not None:
        _wait_for_pods(kubectl, name)
    counts = [f"{role}={num}" for role, num in _counts(request).items()]
    command = ["slipstream", "scale", notes.get(RUN_DIR_NOTE, run), *counts]
    answer = kubectl.execute(head, "ray-head", command)
    if operations and not answer.ok:
        kubectl.patch("raycluster", name, [one for change in changes for one in change.undo])
    return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """New and old numbers of one group of a RayCluster, by key."""

    index: int  # of the group
    role: str
    new: Mapping[str, int]
    old: Mapping[str, int]

    @property
    def operations(self) -> list[dict[str, Any]]:
        """As JSON patch, which fails where the groups have changed places."""
        return self._set(self.new)

    @property
    def undo(self) -> list[dict[str, Any]]:
        """But for `replicas`: fewer of them could take a pod from those at work."""
        return self._set({key: value for key, value in self.old.items() if key != "replicas"})

    def _set(self, values: Mapping[str, int]) -> list[dict[str, Any]]:
        if not values:
            return []
        where = f"/spec/workerGroupSpecs/{self.index}"
        test = {"op": "test", "path": f"{where}/groupName", "value": self.role}
        sets = [{"op": "add", "path": f"{where}/{key}", "value": values[key]} for key in values]
        return [test, *sets]


def room(cluster: Mapping[str, Any], role: str, num: int) -> Room:
    """What makes room for `num` pods in the role's group; nothing where there is.

    With the autoscaler, what the job asks of Ray brings a worker's pod, up to `maxReplicas`, and
    an idle pod goes, down to `minReplicas`. Without it `replicas` decides, and is never lowered:
    nothing would say which pods are idle.
    """
    spec = cluster["spec"]
    names = [group["groupName"] for group in spec.get("workerGroupSpecs", ())]
    if role not in names:
        raise KubernetesError(
            f"RayCluster {cluster['metadata']['name']} has no group {role!r}, but "
            f"{', '.join(names) or 'none'}; where devices are shared, the numbers stay"
        )
    index = names.index(role)
    old = {"minReplicas": 0, "maxReplicas": 0, "replicas": 0, **spec["workerGroupSpecs"][index]}
    new = {
        # The learner waits for nothing: its pods are there before it is asked.
        "minReplicas": num if role == "learner" else min(old["minReplicas"], num),
        "maxReplicas": max(old["maxReplicas"], num),
    }
    if not spec.get("enableInTreeAutoscaling"):
        new["replicas"] = max(old["replicas"], num)
    changed = [key for key, value in new.items() if old[key] != value]
    return Room(
        index=index,
        role=role,
        new={key: new[key] for key in changed},
        old={key: old[key] for key in changed},
    )


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
        cluster = kubectl.get("raycluster", cluster_name)
        status = cluster.get("status", {})
        is_seen = status.get("observedGeneration", 0) >= cluster["metadata"].get("generation", 0)
        ready, desired = (status.get(f"{key}WorkerReplicas", 0) for key in ("ready", "desired"))
        if is_seen and ready >= desired:
            return
    raise KubernetesError(
        f"RayCluster {cluster_name}: the new pods were not ready within {PODS_S:g} s; the job was "
        "not asked. `kubectl get pods` shows what they wait for; then ask again"
    )
