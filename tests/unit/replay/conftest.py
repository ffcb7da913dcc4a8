"""A buffer played by hand: B = 2 groups of G = 2 a batch, a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest

from replay.buffer import ReplayBuffer
from replay.facts import Fact
from replay.rules import Rules
from replay.scripted import scripted_group, scripted_prompt
from replay.state import ReplayState
from slipstream.records import Batch, Lease, LeaseReply, PutReply, ReplaySnapshot, Stop, Wait
from tests.helpers.rollbacks import gone_back


class Play:
    def __init__(
        self,
        *,
        snapshot: ReplaySnapshot | None = None,
        too_long: Collection[int] = (),
        **rules: Any,
    ) -> None:
        settings = {"group_size": 2, "groups_per_batch": 2, "num_steps": 100, "max_staleness": 0}
        self.now_s = 0.0
        self.rules = Rules(**(settings | rules))
        self.facts: list[Fact] = []
        self._too_long = too_long
        self.start(None if snapshot is None else self._gone_back_to(snapshot))

    def start(self, state: ReplayState | None) -> None:
        """Go on from a state, or from the beginning."""
        self.buffer = ReplayBuffer(
            self.rules,
            lambda ordinal: None if ordinal in self._too_long else scripted_prompt(ordinal),
            self.facts.append,
            state,
        )

    def _gone_back_to(self, snapshot: ReplaySnapshot) -> ReplayState:
        return gone_back(ReplayState(), snapshot, self.rules, timeline=1)

    def ask(
        self,
        num_groups: int,
        worker: str = "w0",
        incarnation: int = 0,
        yielded: bool = False,
        held: Collection[int] | None = None,
    ) -> LeaseReply:
        return self.buffer.lease(
            worker,
            incarnation,
            num_groups,
            self.now_s,
            held=self.running(worker) if held is None else held,
            yielded_version=self.buffer.version if yielded else None,
        )

    def running(self, worker: str) -> list[int]:
        running = self.buffer.state.running.values()
        return [leased.lease_id for leased in running if leased.worker == worker]

    def lease(self, num_groups: int, worker: str = "w0") -> dict[int, Lease]:
        """By ordinal."""
        return {lease.prompt.ordinal: lease for lease in self.ask(num_groups, worker).leases}

    def put(
        self, *leases: Lease, rewards: Sequence[float] = (0.0, 1.0), **more: Any
    ) -> list[PutReply]:
        groups = [scripted_group(lease, rewards=rewards, **more) for lease in leases]
        return [self.buffer.put(group, self.now_s) for group in groups]

    def take(self) -> Batch | Wait | Stop:
        timeline = self.buffer.state.timeline
        return self.buffer.take(self.buffer.version, self.now_s, timeline=timeline)

    def step(self) -> list[int]:
        """One learner step; the ordinals that it trained."""
        batch = self.take()
        assert isinstance(batch, Batch), batch
        self.buffer.trained(batch.version + 1, timeline=self.buffer.state.timeline)
        self.buffer.state.ledger.check()
        return ordinals(batch)


def ordinals(batch: Batch) -> list[int]:
    return [entry.group.ordinal for entry in batch.groups]


@pytest.fixture
def play() -> Callable[..., Play]:
    return Play
