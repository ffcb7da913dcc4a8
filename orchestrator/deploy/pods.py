"""A pod of one role: its devices, its volumes, and what it must not do. Pure.

The root file system stays writable: Ray, vLLM and DeepSpeed write below /tmp and the home
directory, and KubeRay mounts volumes of its own below /tmp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from orchestrator.deploy.groups import Group

Manifest = dict[str, Any]
USER = 1000  # of the images in deploy/docker
GPU = "nvidia.com/gpu"
SHM_SHARE = 0.5  # of a pod's memory: Ray's object store takes 0.3, engines share tensors there
SPARE_S = 15.0  # of a pod that ends, beyond the time that its worker has
HEALTH = {  # a lost node is noticed within seconds; docs/reliability.md
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
SAFE: Manifest = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """What the pods of one job have in common."""

    config_map: str
    config_dir: str
    claim: str
    mount: str  # of the claim
    secret: str | None
    spot: tuple[str, str] | None
    grace_s: float  # of a worker that must leave

    def template(self, group: Group, image: str) -> Manifest:
        """The pod template of a group."""
        is_worker, is_rollout = group.role != "head", group.role == "rollout"
        return {
            "spec": {
                **({"automountServiceAccountToken": False} if is_worker else {}),
                **({"nodeSelector": dict([self.spot])} if is_rollout and self.spot else {}),
                **({"tolerations": found} if (found := self._tolerations(group)) else {}),
                **({"terminationGracePeriodSeconds": self._end_s} if is_rollout else {}),
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": USER,
                    "runAsGroup": USER,
                    "fsGroup": USER,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [self._container(group, image)],
                "volumes": self._volumes(group),
            }
        }

    @property
    def _end_s(self) -> int:
        return math.ceil(self.grace_s + SPARE_S)

    def _container(self, group: Group, image: str) -> Manifest:
        amounts = {"cpu": str(group.cpus), "memory": f"{group.memory_gib}Gi"}
        if group.gpus:
            amounts[GPU] = str(group.gpus)
        is_head = group.role == "head"
        env = [{"name": name, "value": value} for name, value in HEALTH.items()]
        return {
            "name": "ray-head" if is_head else "ray-worker",
            "image": image,
            **({"env": env} if is_head else {}),
            **({"envFrom": [{"secretRef": {"name": self.secret}}]} if self.secret else {}),
            # Equal, so that the pod is the last to be evicted.
            "resources": {"requests": dict(amounts), "limits": dict(amounts)},
            "volumeMounts": [
                {"name": "job", "mountPath": self.config_dir, "readOnly": True},
                {"name": "runs", "mountPath": self.mount},
                {"name": "shm", "mountPath": "/dev/shm"},
            ],
            "securityContext": SAFE,
            **({"lifecycle": self._lifecycle()} if group.role == "rollout" else {}),
        }

    def _lifecycle(self) -> Manifest:
        """Before a rollout pod ends, Ray is told; the driver then has its worker hand over."""
        seconds = math.ceil(self.grace_s)
        drain = (
            "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the pod ends' "
            f"--deadline-remaining-seconds {seconds} && sleep {seconds}"
        )
        return {"preStop": {"exec": {"command": ["/bin/sh", "-c", drain]}}}

    def _volumes(self, group: Group) -> list[Manifest]:
        shm_gib = max(1, int(group.memory_gib * SHM_SHARE))
        return [
            {"name": "job", "configMap": {"name": self.config_map}},
            {"name": "runs", "persistentVolumeClaim": {"claimName": self.claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_gib}Gi"}},
        ]

    def _tolerations(self, group: Group) -> list[Manifest]:
        found: list[Manifest] = []
        if group.gpus:
            found.append({"key": GPU, "operator": "Exists", "effect": "NoSchedule"})
        if group.role == "rollout" and self.spot:
            key, value = self.spot
            taint = {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
            found.append(taint)
        return found
