"""A job file as a Slurm batch script. Pure.

    nodes that are all alike:  head, driver and learner | learner | ... | rollout | rollout | ...

The script is a head of `#SBATCH` lines and variables, made here, and `slurm_body.sh`, the same for
every job: it starts Ray on each node, with its role as a label, and the driver on the first.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from orchestrator.deploy import groups
from slipstream.config.job import JobConfig, PlacementConfig

MAX_SIGNAL_S = 65535  # that sbatch takes
MIN_WORK_S = 600  # between the start and the warning that the time is up; nodes join in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a job file does not say."""

    gpus_per_node: int = 8
    cpus_per_node: int = 16  # of nodes without GPUs
    time: str | None = None  # as sbatch writes it
    partition: str | None = None
    account: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What one node gives to Ray. All have the same devices; which role uses them says a label."""

    labels: Mapping[str, str]
    resources: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Of one job."""

    cpus: int
    gpus: int
    nodes: tuple[Node, ...]  # the learner's first


def nodes_of(job: JobConfig, options: Options) -> Nodes:
    """As few as hold every worker and rank. Raises ValueError where one actor fits on none."""
    asked = _asked(job)
    if len(asked) > 1 and _fit_one_node(job, asked, options):
        return Nodes(
            cpus=sum(one.num * one.cpus for one in asked),
            gpus=sum(one.num * one.gpus for one in asked),
            nodes=(Node(labels={groups.ROLE_LABEL: "all"}, resources=_sum(asked)),),
        )
    each = [min(one.num, _room(one, options)) for one in asked]
    return Nodes(
        cpus=max(num * one.cpus for num, one in zip(each, asked, strict=True)),
        gpus=max(num * one.gpus for num, one in zip(each, asked, strict=True)),
        nodes=tuple(
            Node(
                labels=groups.labels(job, one.role),
                resources={key: num * amount for key, amount in one.placement.resources.items()},
            )
            for num, one in zip(each, asked, strict=True)
            for _ in range(math.ceil(one.num / num))
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """`num` actors that each ask for the same."""

    role: groups.WorkerRole
    num: int
    cpus: int
    gpus: int
    placement: PlacementConfig


def _asked(job: JobConfig) -> list[_Asked]:
    """Of the learner, and of the workers unless they share its devices."""
    learner, rollout = job.learner, job.rollout
    cpus, num = learner.cpus_per_rank, learner.num_ranks
    gpus: int = learner.gpus_per_rank
    if rollout.colocate:
        cpus, gpus = max(cpus, rollout.cpus), max(gpus, rollout.gpus)
        num = max(num, rollout.num_workers)
    ranks = _Asked(role="learner", num=num, cpus=cpus, gpus=gpus, placement=learner.placement)
    if rollout.colocate:
        return [ranks]
    workers = _Asked(
        role="rollout",
        num=rollout.autoscale.max_workers if rollout.autoscale else rollout.num_workers,
        cpus=rollout.cpus,
        gpus=rollout.gpus,
        placement=rollout.placement,
    )
    return [ranks, workers]


def _sum(asked: Sequence[_Asked]) -> Mapping[str, float]:
    """Custom resources of all together."""
    total: dict[str, float] = defaultdict(float)
    for one in asked:
        for name, amount in one.placement.resources.items():
            total[name] += one.num * amount
    return total


def _fit_one_node(job: JobConfig, asked: Sequence[_Asked], options: Options) -> bool:
    """Whether the roles may share a node, and have room on it."""
    gpus = sum(one.num * one.gpus for one in asked)
    cpus = sum(one.num * one.cpus for one in asked)
    has_room = gpus <= options.gpus_per_node if gpus else cpus <= options.cpus_per_node
    return has_room and len(groups.placement_changes(job)) == len(asked)


def _room(asked: _Asked, options: Options) -> int:
    """How many of a role one node holds. Raises ValueError."""
    if asked.gpus:
        there, each, name = options.gpus_per_node, asked.gpus, "gpus"
    else:
        there, each, name = options.cpus_per_node, asked.cpus, "cpus"
    if each > there:
        raise ValueError(
            f"one {asked.role} actor asks for {each} {name.upper()[:-1]}s, and --{name}-per-node "
            f"is {there}"
        )
    return there // each


def script(job: JobConfig, job_file: Path, overrides: Sequence[str], options: Options) -> str:
    """The whole batch script. `job_file` and the working directory are on a shared file system.
    Raises ValueError."""
    nodes = nodes_of(job, options)
    body = files("orchestrator.deploy").joinpath("slurm_body.sh").read_text(encoding="utf-8")
    head = [*_directives(job, nodes, options), "", *_variables(job, job_file, overrides, nodes)]
    return "\n".join(["#!/bin/bash", *head, "", body])


def _directives(job: JobConfig, nodes: Nodes, options: Options) -> list[str]:
    """For sbatch. A last step may take `learner.step_timeout_s`, and a commit follows. Raises
    ValueError."""
    warn_s = math.ceil(job.learner.step_timeout_s + job.rollout.grace_s + job.health.stop_timeout_s)
    warn_s = min(MAX_SIGNAL_S, warn_s)
    limit_s = math.inf if options.time is None else limit_of(options.time)
    if limit_s < warn_s + MIN_WORK_S:
        raise ValueError(
            f"--time {options.time} is too short: the job is warned {warn_s} s before the end "
            "(learner.step_timeout_s + rollout.grace_s + health.stop_timeout_s), and its start "
            f"takes minutes; give {math.ceil((warn_s + MIN_WORK_S) / 60)} minutes, or lower those"
        )
    asked = {
        "job-name": job.name,
        "nodes": len(nodes.nodes),
        "ntasks-per-node": 1,
        "cpus-per-task": nodes.cpus,
        "gpus-per-node": nodes.gpus or None,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "output": f"{job.name}-%j.log",
        "open-mode": "append",  # of a job that Slurm puts back into its queue
        "signal": f"B:USR1@{warn_s}",
    }
    lines = [f"#SBATCH --{key}={value}" for key, value in asked.items() if value is not None]
    # A node that fails takes its workers with it, not the job.
    return [*lines, "#SBATCH --requeue", "#SBATCH --no-kill"]


def limit_of(time: str) -> float:
    """Seconds of sbatch's `[days-]hours:minutes:seconds` and its shorter forms; infinite where it
    is a word."""
    days, dash, rest = time.rpartition("-")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time):
        return math.inf
    parts = [int(part) for part in rest.split(":")]
    if not dash and len(parts) < 3:
        parts = [0, *parts]  # of minutes, or of minutes and seconds
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _variables(job: JobConfig, job_file: Path, overrides: Sequence[str], nodes: Nodes) -> list[str]:
    changes = [
        f"{key}={_flow(value)}"
        for key, value in groups.placement_changes(job).items()
        if len(nodes.nodes) > 1
    ]
    arguments = [str(job_file.resolve()), *overrides, *changes]
    values = {
        "RUN_DIR": job.run_dir,
        "CPUS": nodes.cpus,
        "GPUS": nodes.gpus,
    }
    labels = [",".join(f"{k}={v}" for k, v in node.labels.items()) for node in nodes.nodes]
    resources = [_flow(node.resources) for node in nodes.nodes]
    return [
        *(f"{name}={shlex.quote(str(value))}" for name, value in values.items()),
        f"LAUNCH=({shlex.join(arguments)})",
        f"LABELS=({shlex.join(labels)})  # of each node",
        f"RESOURCES=({shlex.join(resources)})  # of each node",
    ]


def _flow(values: Mapping[str, object]) -> str:
    """As JSON, which is YAML too."""
    return json.dumps(dict(values))
