"""Replay without Ray and rollouts without an engine, for tests.

`LocalReplay` is the state machine in this process behind the same protocols as the actor's client.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import numpy as np

from replay.buffer import ReplayBuffer
from slipstream.records import (
    Batch,
    FinishReason,
    Group,
    Lease,
    LeaseReply,
    Prompt,
    PutReply,
    ReplaySnapshot,
    Rollout,
    Stop,
    VersionSpan,
    Wait,
)

T = TypeVar("T")


class LocalReplay:
    """ReplayForWorkers and ReplayForLearners; every future is done when it is returned."""

    def __init__(self, buffer: ReplayBuffer, clock: Callable[[], float] = time.monotonic) -> None:
        self.buffer = buffer
        self._clock = clock

    def lease(
        self,
        worker: str,
        incarnation: int,
        num_groups: int,
        *,
        held: Sequence[int],
        yielded_version: int | None = None,
        pinned: tuple[int, int] | None = None,
    ) -> Future[LeaseReply]:
        return _done(
            lambda: self.buffer.lease(
                worker,
                incarnation,
                num_groups,
                self._clock(),
                held=held,
                yielded_version=yielded_version,
                pinned=pinned,
            )
        )

    def put(self, groups: Sequence[Group]) -> Future[Sequence[PutReply]]:
        return _done(lambda: [self.buffer.put(group, self._clock()) for group in groups])

    def take(self, version: int, timeline: int = 0) -> Future[Batch | Wait | Stop]:
        return _done(lambda: self.buffer.take(version, self._clock(), timeline=timeline))

    def trained(self, version: int, timeline: int = 0) -> Future[None]:
        return _done(lambda: self.buffer.trained(version, timeline=timeline))

    def discard(self, version: int, timeline: int, number: int) -> Future[None]:
        return _done(lambda: self.buffer.discard(version, timeline=timeline, number=number))

    def snapshot(self, timeline: int) -> Future[ReplaySnapshot]:
        return _done(self.buffer.snapshot)

    def committed(self, version: int, timeline: int) -> Future[None]:
        return _done(lambda: None)


def scripted_prompt(ordinal: int) -> Prompt:
    """A prompt of one token, its ordinal."""
    return Prompt(
        ordinal=ordinal,
        epoch=0,
        item_index=ordinal,
        item={"prompt": str(ordinal)},
        text=str(ordinal),
        token_ids=np.array([ordinal], dtype=np.int32),
    )


def scripted_lease(ordinal: int, version: int) -> Lease:
    """As the buffer would grant it to `w0`, without an end."""
    return Lease(
        lease_id=ordinal,
        prompt=scripted_prompt(ordinal),
        attempt=0,
        num_failed=0,
        worker="w0",
        incarnation=0,
        timeline=0,
        min_version=version,
        expires_at_s=math.inf,
    )


def scripted_group(
    lease: Lease, *, rewards: Sequence[float], version: int | None = None, num_tokens: int = 2
) -> Group:
    """A sound group for `lease`: one rollout for each reward, all tokens from `version`."""
    rollout_version = lease.min_version if version is None else version
    return Group(
        lease_id=lease.lease_id,
        worker=lease.worker,
        incarnation=lease.incarnation,
        ordinal=lease.prompt.ordinal,
        attempt=lease.attempt,
        prompt_token_ids=lease.prompt.token_ids,
        rollouts=tuple(_scripted_rollout(r, rollout_version, num_tokens) for r in rewards),
    )


def _scripted_rollout(reward: float, version: int, num_tokens: int) -> Rollout:
    return Rollout(
        token_ids=np.full(num_tokens, 7, dtype=np.int32),
        logprobs=np.full(num_tokens, -0.5, dtype=np.float32),
        spans=(VersionSpan(version=version, start=0, stop=num_tokens),),
        finish_reason=FinishReason.EOS,
        reward=reward,
    )


def _done(call: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()
    try:
        future.set_result(call())
    except Exception as error:  # as a remote call would: it is raised by result()
        future.set_exception(error)
    return future
