"""Where the roles run: Ray placement groups and actor options.

Each rollout worker has a placement group of its own, because no bundle can be added to an
existing group and workers come and go. The learner ranks share one group. On shared
devices a worker and a rank sit in one bundle and take half of it each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from slipstream.config.job import JobConfig, PlacementConfig

SHARED = 0.5  # share of a bundle that each of the two roles takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Devices of one actor."""

    group: PlacementGroup
    index: int  # in the group
    cpus: float
    gpus: float

    @property
    def is_placed(self) -> bool:
        """Whether a node has given it; a lost node's bundles are placed anew."""
        return bool(self._table["state"] == "CREATED")

    @property
    def node(self) -> str | None:
        """The node's id, once it is placed."""
        found: str | None = self._table["bundles_to_node_id"].get(self.index)
        return found

    @property
    def _table(self) -> dict[str, Any]:
        table: dict[str, Any] = placement_group_table(self.group)
        return table

    @property
    def options(self) -> dict[str, Any]:
        """Of an actor in it."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=self.group, placement_group_bundle_index=self.index
            ),
        }

    def remove(self) -> None:
        """With everybody in its group."""
        remove_placement_group(self.group)


def worker_bundle(job: JobConfig) -> Bundle:
    """For one more worker."""
    rollout = job.rollout
    group = _group([(rollout.cpus, rollout.gpus)], rollout.placement)
    return Bundle(group=group, index=0, cpus=rollout.cpus, gpus=rollout.gpus)


def rank_bundles(job: JobConfig) -> list[Bundle]:
    """For the learner's ranks."""
    learner = job.learner
    cpus, gpus = learner.cpus_per_rank, learner.gpus_per_rank
    group = _group([(cpus, gpus)] * learner.num_ranks, learner.placement)
    return [
        Bundle(group=group, index=rank, cpus=cpus, gpus=gpus) for rank in range(learner.num_ranks)
    ]


def shared_bundles(job: JobConfig) -> tuple[list[Bundle], list[Bundle]]:
    """For workers and ranks that take turns on the same devices."""
    rollout, learner = job.rollout, job.learner
    cpus = max(rollout.cpus, learner.cpus_per_rank)
    gpus = max(rollout.gpus, learner.gpus_per_rank)
    num_bundles = max(rollout.num_workers, learner.num_ranks)
    group = _group([(cpus, gpus)] * num_bundles, learner.placement)
    halves = [
        Bundle(group=group, index=index, cpus=cpus * SHARED, gpus=gpus * SHARED)
        for index in range(num_bundles)
    ]
    return halves[: rollout.num_workers], halves[: learner.num_ranks]


def here() -> dict[str, Any]:
    """Options of an actor that lives and dies with the driver's node, and takes no device."""
    node = ray.get_runtime_context().get_node_id()
    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
    }


def living_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def draining_nodes() -> set[str]:
    """Nodes that Ray has been told will go, as before a spot instance is taken away."""
    # Ray Train reads it there too; nothing public says it.
    state = ray._private.state.state
    return set(state.get_draining_nodes())


def _group(bundles: list[tuple[int, int]], where: PlacementConfig) -> PlacementGroup:
    resources = [{"CPU": cpus, "GPU": gpus, **where.resources} for cpus, gpus in bundles]
    asked = [{name: count for name, count in bundle.items() if count} for bundle in resources]
    selectors = [dict(where.labels)] * len(asked) if where.labels else None
    return placement_group(asked, strategy="PACK", bundle_label_selector=selectors)
