"""How many machines of which size a job needs, where machines are all alike in a role. Pure.

A rollout worker has a pod of its own, so that each can come and go. The learner's ranks share pods,
as many in each as fit. On shared devices there are the learner's pods alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from slipstream.config.job import JobConfig, PlacementConfig

Role = Literal["head", "rollout", "learner"]
WorkerRole = Literal["rollout", "learner"]
ROLES: tuple[Role, ...] = ("head", "rollout", "learner")
ROLE_LABEL = "slipstream-role"
SPARE = 4  # times as many workers as the job starts with, unless rollout.autoscale says how many
# Memory by rule of thumb, in GiB; `slipstream plan` reckons it for a model.
HEAD_GIB = 16  # replay and the newest weights
WORKER_GIB, WORKER_GIB_PER_GPU = 8, 64
RANK_GIB, RANK_GIB_PER_GPU = 8, 96
HEAD_CPUS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Pods or nodes of one role, all alike."""

    role: Role
    num: int  # to start with
    num_min: int
    num_max: int
    cpus: int  # of each, and so on
    gpus: int
    memory_gib: int
    labels: Mapping[str, str]  # Ray's, which the placement asks for
    resources: Mapping[str, str] = field(default_factory=dict)  # Ray's custom ones


def head(memory_gib: int | None) -> Group:
    """The driver, replay and the weight board; nothing that trains or generates."""
    return Group(
        role="head",
        num=1,
        num_min=1,
        num_max=1,
        cpus=HEAD_CPUS,
        gpus=0,
        memory_gib=memory_gib or HEAD_GIB,
        labels={ROLE_LABEL: "head"},
    )


def rollout(job: JobConfig, memory_gib: int | None) -> Group:
    """One engine a pod."""
    role = job.rollout
    scale = role.autoscale
    cpu_gib = WORKER_GIB + role.kv_cache_gib
    return Group(
        role="rollout",
        num=role.num_workers,
        num_min=scale.min_workers if scale else 0,
        num_max=scale.max_workers if scale else SPARE * role.num_workers,
        cpus=role.cpus,
        gpus=role.gpus,
        memory_gib=memory_gib or (role.gpus * WORKER_GIB_PER_GPU or cpu_gib),
        labels=labels(job, "rollout"),
        resources=_amounts(role.placement, 1),
    )


def learner(job: JobConfig, ranks_per_pod: int, memory_gib: int | None) -> Group:
    """So many pods as the ranks need, no more and no fewer; on shared devices with the workers."""
    role, worker = job.learner, job.rollout
    shared = worker.colocate
    num = max(role.num_ranks, worker.num_workers) if shared else role.num_ranks
    cpus = max(role.cpus_per_rank, worker.cpus if shared else 0)
    gpus = max(role.gpus_per_rank, worker.gpus if shared else 0)
    each = fitting(num, ranks_per_pod)
    gib = (gpus * RANK_GIB_PER_GPU or RANK_GIB) + (WORKER_GIB if shared else 0)
    return Group(
        role="learner",
        num=num // each,
        num_min=num // each,
        num_max=num // each,
        cpus=each * cpus,
        gpus=each * gpus,
        memory_gib=memory_gib or each * gib,
        labels=labels(job, "learner"),
        resources=_amounts(role.placement, each),
    )


def fitting(num: int, at_most: int) -> int:
    """The largest number up to `at_most` by which `num` is divided into equal parts."""
    return max(each for each in range(1, min(num, at_most) + 1) if num % each == 0)


def labels(job: JobConfig, role: WorkerRole) -> dict[str, str]:
    """Of the role's machines: what its placement asks for, or else its name."""
    return dict(_placement(job, role).labels) or {ROLE_LABEL: role}


def placement_changes(job: JobConfig) -> dict[str, dict[str, object]]:
    """Keys of the job file with which each role stays on its own machines, where it does not ask
    for some already."""
    roles: tuple[WorkerRole, ...] = ("rollout", "learner")
    return {
        f"{role}.placement": {"labels": labels(job, role), "resources": asked.resources}
        for role in roles
        if not (asked := _placement(job, role)).labels and not job.rollout.colocate
    }


def _placement(job: JobConfig, role: WorkerRole) -> PlacementConfig:
    return job.rollout.placement if role == "rollout" else job.learner.placement


def _amounts(placement: PlacementConfig, times: int) -> dict[str, str]:
    return {name: f"{times * amount:g}" for name, amount in placement.resources.items()}
