"""The boundaries between roles, as protocols.

Calls that cross a process return a `concurrent.futures.Future`, so that a loop can have
one under way while it works, and every wait for one has a deadline. Which actor answers
is the shell's business (`*/actor.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from slipstream.records import (
    Batch,
    Group,
    LeaseReply,
    Probe,
    PutReply,
    ReplaySnapshot,
    Stop,
    Wait,
    WeightUpdate,
)


class ReplayForWorkers(Protocol):
    """What a rollout worker asks of replay."""

    def lease(
        self,
        worker: str,
        incarnation: int,
        num_groups: int,
        *,
        held: Sequence[int],
        yielded_version: int | None,
        pinned: tuple[int, int] | None = None,
    ) -> Future[LeaseReply]:
        """Up to `num_groups` prompts, beside the leases `held`. `yielded_version`: the version for
        whose training this worker has released the shared devices, if any. `pinned`: timeline and
        version of the weights that it keeps for now: it gets no prompt for newer ones."""

    def put(self, groups: Sequence[Group]) -> Future[Sequence[PutReply]]:
        """Hand over finished groups, one answer each; replay owns them from then on. Repeated, it
        changes nothing."""


class ReplayForLearners(Protocol):
    """What a learner rank asks of replay."""

    def take(self, version: int, timeline: int) -> Future[Batch | Wait | Stop]:
        """The batch for the step from `version`. Every rank that asks gets the same one."""

    def trained(self, version: int, timeline: int) -> Future[None]:
        """The step is done and `version` is published: the batch has changed the weights."""

    def discard(self, version: int, timeline: int, number: int) -> Future[None]:
        """Batch `number`, of `version`, gave no finite gradient: no weight changed, and none of it
        trains again. The version stays, and the next `take` of it is another batch: no rank may
        ask for it before this is answered. Repeated, it changes nothing."""

    def snapshot(self, timeline: int) -> Future[ReplaySnapshot]:
        """Replay at this step boundary, for a commit."""

    def committed(self, version: int, timeline: int) -> Future[None]:
        """The commit with the snapshot of `version` is durable."""


class WeightReceiver(Protocol):
    """The worker's end of the weight channel."""

    wire_s: float  # how long the bytes of what `tensors` gave last were on their way

    def poll(self, held: tuple[int, int]) -> WeightUpdate | None:
        """The newest update above the (timeline, version) held, once it can be loaded without
        waiting for it, or None. Never blocks."""

    def tensors(self, update: WeightUpdate) -> Iterator[tuple[str, Any]]:
        """(name, torch tensor) of every parameter, on the CPU, of what `poll` gave. Raises
        UpdateLost, at the call; nothing has changed then."""


class WeightPublisher(Protocol):
    """The learner's end of the weight channel; every rank calls it."""

    def publish(self, timeline: int, version: int, probe: Probe | None) -> Mapping[str, float]:
        """Make a version available as a whole. Returns the figures of the event `published`:
        `gather_s`, `publish_s` and `num_bytes`, which only rank 0 sends."""

    def remind(self) -> None:
        """Say again which version is the newest, as whoever was told may have died. Cheap."""


class Reward(Protocol):
    """Scores one answer, in a process of its own."""

    def __call__(self, prompt: str, answer: str, item: Mapping[str, Any]) -> float: ...
