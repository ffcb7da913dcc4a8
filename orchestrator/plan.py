"""From a job file to what it asks for: roles, devices, cores, budgets. Pure."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rich.table import Table

from slipstream.config.job import JobConfig, PlacementConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePlan:
    """`count` actors that each ask for the same."""

    role: str
    count: int
    cpus: int
    gpus: int
    placement: PlacementConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a job will ask of the cluster."""

    rollout: RolePlan
    learner: RolePlan
    shared: bool  # one set of devices, in turns
    worker_cores: tuple[tuple[int, ...], ...]  # of each worker; empty on GPUs: not bound
    rank_cores: tuple[tuple[int, ...], ...]
    admission_limit_groups: int  # running and accepted-but-untrained groups at most

    def totals(self) -> dict[str, int]:
        """CPUs and GPUs that the roles take together."""
        roles = (self.rollout, self.learner)
        if self.shared:  # each of as many bundles as the larger role has actors holds one of both
            count = max(role.count for role in roles)
            return {
                "CPU": count * max(role.cpus for role in roles),
                "GPU": count * max(role.gpus for role in roles),
            }
        return {
            "CPU": sum(role.count * role.cpus for role in roles),
            "GPU": sum(role.count * role.gpus for role in roles),
        }


def make_plan(job: JobConfig) -> Plan:
    """The plan of `job` on machines like this one."""
    rollout, learner = job.rollout, job.learner
    worker_cores, rank_cores = _cores(job, sorted(os.sched_getaffinity(0)))
    return Plan(
        rollout=RolePlan(
            role="rollout",
            count=rollout.num_workers,
            cpus=rollout.cpus,
            gpus=rollout.gpus,
            placement=rollout.placement,
        ),
        learner=RolePlan(
            role="learner",
            count=learner.num_ranks,
            cpus=learner.cpus_per_rank,
            gpus=learner.gpus_per_rank,
            placement=learner.placement,
        ),
        shared=rollout.colocate,
        worker_cores=worker_cores,
        rank_cores=rank_cores,
        admission_limit_groups=(job.replay.max_staleness + 1) * learner.groups_per_batch,
    )


Cores = tuple[tuple[int, ...], ...]


def _cores(job: JobConfig, cores: list[int]) -> tuple[Cores, Cores]:
    """Disjoint cores for CPU engines and ranks, from the last core down for the engines; the
    same ones on shared devices. More than there are wraps around."""
    rollout, learner = job.rollout, job.learner
    wanted = rollout.num_workers * rollout.cpus if rollout.gpus == 0 else 0
    workers = _slices(cores[::-1], 0, rollout.num_workers, rollout.cpus)
    start = 0 if rollout.colocate else wanted
    ranks = _slices(cores[::-1], start, learner.num_ranks, learner.cpus_per_rank)
    return (
        workers if rollout.gpus == 0 else ((),) * rollout.num_workers,
        ranks if learner.gpus_per_rank == 0 else ((),) * learner.num_ranks,
    )


def _slices(cores: list[int], start: int, count: int, size: int) -> Cores:
    return tuple(
        tuple(sorted({cores[(start + index * size + i) % len(cores)] for i in range(size)}))
        for index in range(count)
    )


def describe(plan: Plan) -> Table:
    """The placement as a table for people."""
    table = Table(title="Placement", title_justify="left")
    for column in ("role", "actors", "CPUs each", "GPUs each", "cores", "nodes"):
        table.add_column(column)
    for role, cores in ((plan.rollout, plan.worker_cores), (plan.learner, plan.rank_cores)):
        bound = "; ".join(",".join(map(str, one)) for one in cores if one) or "any"
        where = {**role.placement.labels, **role.placement.resources}
        nodes = ", ".join(f"{key}={value}" for key, value in where.items()) or "any"
        table.add_row(role.role, str(role.count), str(role.cpus), str(role.gpus), bound, nodes)
    asked = ", ".join(f"{count} {name}" for name, count in plan.totals().items() if count)
    shared = "one set of devices, in turns" if plan.shared else "a set of devices each"
    table.caption = (
        f"{asked} in all, {shared}; at most {plan.admission_limit_groups} groups running or "
        "waiting to be trained"
    )
    return table
