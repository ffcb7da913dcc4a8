"""A job file as a KubeRay RayJob and the ConfigMap with the job file.

    head      driver, replay, weight board; no device; `num-cpus: 0`, so nothing else lands there
    rollout   one engine a pod; a wide range, so that workers come and go; may be spot
    learner   the ranks' pods; min = max

All pods pass Pod Security's "restricted" profile. The autoscaler brings pods for what the job asks
of Ray; with a Kueue queue, which admits no autoscaler, their number changes by `slipstream scale`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.deploy import groups
from orchestrator.deploy.groups import Group, Role
from orchestrator.deploy.pods import SAFE, Pods
from orchestrator.deploy.portable import Portable, portable
from orchestrator.deploy.rules import label_of
from slipstream.config.job import JobConfig

Manifest = dict[str, Any]
MOUNT = PurePosixPath("/slipstream")  # of the volume, where checkpoint.dir is relative
JOB_DIR = PurePosixPath("/etc/slipstream")
RUN_DIR_NOTE = "slipstream/run-dir"  # annotations of the RayJob, for `slipstream scale`
RANKS_NOTE = "slipstream/ranks-per-pod"
TTL_S = 300  # the cluster stays so long after the job, to be looked at
IDLE_S = 300  # from the cluster's start to the job's, a pod may be idle
RETRIES = 1  # with another cluster, from the last commit


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a job file does not say."""

    volume: str  # claim of a shared volume that all pods may write
    ray_version: str  # of the images
    images: Mapping[Role, str]
    memory_gib: Mapping[Role, int] = field(default_factory=dict)
    namespace: str | None = None
    queue: str | None = None  # a Kueue LocalQueue
    spot: tuple[str, str] | None = None  # label and taint of the nodes for rollout workers
    secret: str | None = None  # its keys become environment variables
    files: PurePosixPath | None = None  # where the job file's neighbours lie in the pods
    ranks_per_pod: int = 8


def render(job: JobConfig, job_dir: Path, options: Options) -> tuple[list[Manifest], Portable]:
    """The manifests, and what they carry of the job. Raises ValueError."""
    mount, runs = _places(job)
    changes = {"checkpoint.dir": str(runs), **groups.placement_changes(job)}
    files = options.files or mount / "files"
    carried = portable(job, job_dir, files=files, changes=changes)
    name = label_of(job.name)
    metadata = {
        "name": name,
        **({"namespace": options.namespace} if options.namespace else {}),
        "labels": {"app.kubernetes.io/name": "slipstream", "app.kubernetes.io/instance": name},
    }
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"job.yaml": carried.text, **carried.modules},
    }
    about = {"name": job.name, "mode": job.mode, "model": carried.model}
    ray_job = _ray_job(job, options, metadata, mount, runs / job.name)
    ray_job["spec"]["metadata"] = about  # in Ray's dashboard
    return [config, ray_job], carried


def _places(job: JobConfig) -> tuple[PurePosixPath, PurePosixPath]:
    """Where the volume is mounted, and `checkpoint.dir` on it."""
    runs = PurePosixPath(job.checkpoint.dir)
    return (runs, runs) if runs.is_absolute() else (MOUNT, MOUNT / "runs")


def _ray_job(
    job: JobConfig,
    options: Options,
    metadata: Mapping[str, Any],
    mount: PurePosixPath,
    run_dir: PurePosixPath,
) -> Manifest:
    labels = dict(metadata["labels"])
    if options.queue:
        labels["kueue.x-k8s.io/queue-name"] = options.queue
    workers = _groups(job, options)
    notes = {RUN_DIR_NOTE: str(run_dir), RANKS_NOTE: str(_ranks_per_pod(job, options))}
    pods = Pods(
        config_map=metadata["name"],
        config_dir=str(JOB_DIR),
        claim=options.volume,
        mount=str(mount),
        secret=options.secret,
        spot=options.spot,
        grace_s=job.rollout.grace_s,
    )
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {**metadata, "labels": labels, "annotations": notes},
        "spec": {
            "entrypoint": _entrypoint(run_dir),
            "submissionMode": "HTTPMode",  # by the operator itself: no further pod to secure
            "backoffLimit": RETRIES,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": TTL_S,
            **({"suspend": True} if options.queue else {}),  # until Kueue admits it
            "rayClusterSpec": _cluster(options, workers, pods),
        },
    }


def _entrypoint(run_dir: PurePosixPath) -> str:
    """Goes on where an earlier cluster of this job has committed; one that died before it could
    begins anew."""
    run = shlex.quote(str(run_dir))
    how = (
        f"if ls -d {run}/checkpoints/step-* >/dev/null 2>&1; then echo --resume; "
        f"elif test -e {run}; then echo --overwrite; fi"
    )
    return f"slipstream launch {JOB_DIR}/job.yaml --address auto $({how})"


def _ranks_per_pod(job: JobConfig, options: Options) -> int:
    return groups.fitting(job.learner.num_ranks, options.ranks_per_pod)


def _groups(job: JobConfig, options: Options) -> list[Group]:
    memory_gib = options.memory_gib
    learner = groups.learner(job, options.ranks_per_pod, memory_gib.get("learner"))
    if job.rollout.colocate:
        return [learner]
    return [groups.rollout(job, memory_gib.get("rollout")), learner]


def _cluster(options: Options, workers: list[Group], pods: Pods) -> Manifest:
    head = groups.head(options.memory_gib.get("head"))
    return {
        "rayVersion": options.ray_version,
        "authOptions": {"mode": "token"},
        **({} if options.queue else _autoscaler()),
        "headGroupSpec": {
            "labels": dict(head.labels),
            "rayStartParams": {"num-cpus": "0"},
            "template": pods.template(head, options.images["head"]),
        },
        "workerGroupSpecs": [
            {
                "groupName": group.role,
                "replicas": group.num,
                "minReplicas": group.num_min,
                "maxReplicas": group.num_max,
                "labels": dict(group.labels),
                **({"resources": dict(group.resources)} if group.resources else {}),
                "rayStartParams": {},
                "template": pods.template(group, options.images[group.role]),
            }
            for group in workers
        ],
    }


def _autoscaler() -> Manifest:
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": IDLE_S,
            "securityContext": SAFE,
            "resources": {
                "requests": {"cpu": "500m", "memory": "1Gi"},
                "limits": {"cpu": "500m", "memory": "1Gi"},
            },
        },
    }
