"""At max_staleness 0 the batches depend on the data alone, not on who is fast."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from replay.buffer import ReplayBuffer
from replay.rules import Rules
from replay.scripted import scripted_group, scripted_prompt
from slipstream.records import Batch, Lease

NUM_STEPS = 6
WORKERS = ("w0", "w1", "w2")


def rewards_of(ordinal: int) -> Sequence[float]:
    """About every third group has rewards that are all equal."""
    return (1.0, 1.0) if random.Random(ordinal).random() < 0.35 else (0.0, float(ordinal % 5))


def batches(chance: random.Random, **settings: Any) -> Sequence[Sequence[int]]:
    """Ordinals of each batch, with leases and pushes in an order drawn from `chance`."""
    settings = {"groups_per_batch": 4, "max_staleness": 0} | settings
    rules = Rules(group_size=2, num_steps=NUM_STEPS, **settings)
    buffer = ReplayBuffer(rules, scripted_prompt)
    running: list[Lease] = []
    seen: list[Sequence[int]] = []
    while len(seen) < NUM_STEPS:
        worker = chance.choice(WORKERS)
        held = list(buffer.state.running)
        running += buffer.lease(worker, 0, chance.randint(0, 3), now_s=0.0, held=held).leases
        if running and chance.random() < 0.7:
            lease = running.pop(chance.randrange(len(running)))
            group = scripted_group(lease, rewards=rewards_of(lease.prompt.ordinal))
            assert buffer.put(group, now_s=0.0).refused is None
        batch = buffer.take(buffer.version, now_s=0.0)
        if isinstance(batch, Batch):
            seen.append([entry.group.ordinal for entry in batch.groups])
            assert {entry.weight for entry in batch.groups} == {1.0}  # nothing had to be drawn
            buffer.trained(buffer.version + 1)
    return seen


@pytest.mark.parametrize("dynamic_sampling", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"whole_batches": True},
        {"select": "fifo"},
        {"select": "freshest"},
        {"select": "priority"},
        {"select": "random"},
        {"on_stale": "requeue", "max_uses": 3},
    ],
)
def test_batches_do_not_depend_on_arrival(
    settings: Mapping[str, Any], dynamic_sampling: bool
) -> None:
    good = [o for o in range(100) if not dynamic_sampling or len(set(rewards_of(o))) > 1]
    expected = [good[4 * step : 4 * step + 4] for step in range(NUM_STEPS)]
    for seed in range(10):
        found = batches(random.Random(seed), dynamic_sampling=dynamic_sampling, **settings)
        assert found == expected


def test_whole_batches_are_the_same_at_any_bound() -> None:
    """Without dynamic sampling: what is generated ahead is what would have been anyway."""
    for seed in range(10):
        found = batches(random.Random(seed), whole_batches=True, max_staleness=1)
        assert found == [list(range(4 * step, 4 * step + 4)) for step in range(NUM_STEPS)]
