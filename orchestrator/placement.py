"""Where the roles run: Ray placement groups and actor options, from the plan.

Each rollout worker has a placement group of its own, because no bundle can be added to an
existing group and workers come and go. The learner ranks share one group. On shared
devices a worker and a rank sit in one bundle and take half of it each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from slipstream.config.job import JobConfig, PlacementConfig
from slipstream.errors import RoleFailed

SHARED = 0.5  # share of a bundle that each of the two roles takes


@dataclass(frozen=True, slots=True)
class Placement:
    """Actor options of every worker and rank, and the groups to remove at the end."""

    worker_options: tuple[dict[str, Any], ...]
    rank_options: tuple[dict[str, Any], ...]
    groups: tuple[PlacementGroup, ...]

    def remove(self) -> None:
        for group in self.groups:
            remove_placement_group(group)


def place(job: JobConfig, timeout_s: float) -> Placement:
    """Reserve the devices; raise RoleFailed when the cluster does not have them in time."""
    placement = _shared(job) if job.rollout.colocate else _split(job)
    ready, _ = ray.wait(
        [group.ready() for group in placement.groups],
        num_returns=len(placement.groups),
        timeout=timeout_s,
    )
    if len(ready) < len(placement.groups):
        placement.remove()
        raise RoleFailed(
            f"the cluster did not give the devices within {timeout_s:.0f} s; it has "
            f"{ray.available_resources()} free. Ask for fewer, or free or add nodes."
        )
    return placement


def _split(job: JobConfig) -> Placement:
    rollout, learner = job.rollout, job.learner
    workers = [
        _group([(rollout.cpus, rollout.gpus)], rollout.placement)
        for _ in range(rollout.num_workers)
    ]
    ranks = _group(
        [(learner.cpus_per_rank, learner.gpus_per_rank)] * learner.num_ranks, learner.placement
    )
    return Placement(
        worker_options=tuple(_options(group, 0, rollout.cpus, rollout.gpus) for group in workers),
        rank_options=tuple(
            _options(ranks, rank, learner.cpus_per_rank, learner.gpus_per_rank)
            for rank in range(learner.num_ranks)
        ),
        groups=(*workers, ranks),
    )


def _shared(job: JobConfig) -> Placement:
    rollout, learner = job.rollout, job.learner
    cpus = max(rollout.cpus, learner.cpus_per_rank)
    gpus = max(rollout.gpus, learner.gpus_per_rank)
    num_bundles = max(rollout.num_workers, learner.num_ranks)
    group = _group([(cpus, gpus)] * num_bundles, learner.placement)
    half = [_options(group, index, cpus * SHARED, gpus * SHARED) for index in range(num_bundles)]
    return Placement(
        worker_options=tuple(half[: rollout.num_workers]),
        rank_options=tuple(half[: learner.num_ranks]),
        groups=(group,),
    )


def _group(bundles: list[tuple[int, int]], where: PlacementConfig) -> PlacementGroup:
    resources = [{"CPU": cpus, "GPU": gpus, **where.resources} for cpus, gpus in bundles]
    asked = [{name: count for name, count in bundle.items() if count} for bundle in resources]
    selectors = [dict(where.labels)] * len(asked) if where.labels else None
    return placement_group(asked, strategy="PACK", bundle_label_selector=selectors)


def _options(group: PlacementGroup, bundle: int, cpus: float, gpus: float) -> dict[str, Any]:
    return {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=bundle
        ),
    }
