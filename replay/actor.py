"""The process shell of replay: data, tokenizer and clock around the state machine.

    worker ── lease, put ──▶ ReplayActor ◀── take, trained, snapshot ── learner rank
                                 ▲ stop, stats, eval_prompts ── orchestrator

One thread answers all calls, each step of it in micro- to milliseconds, so that the state
machine needs no lock. A lease or a take that cannot be granted yet is held, and tried again
whenever something has changed: nobody polls. `ReplayActor` is a plain class; the orchestrator
makes a Ray actor of it and gives roles a `ReplayClient` of its handle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from replay.buffer import ReplayBuffer
from replay.render import renderer
from replay.rules import Rules
from replay.sources import Items, open_source
from replay.stream import PromptStream
from slipstream.config.job import DataSource, JobConfig
from slipstream.records import Batch, Group, LeaseReply, Prompt, PutReply, Stop, Wait
from slipstream.text import load_tokenizer

if TYPE_CHECKING:
    from ray.actor import ActorHandle

LONG_POLL_S = 1.0  # a call that cannot be granted is answered after this
T = TypeVar("T")


class ReplayActor:
    """Owns the groups it has accepted; see `replay.buffer` for what each call means."""

    def __init__(self, job: JobConfig, snapshot: Mapping[str, Any] | None = None) -> None:
        self._job = job
        self._snapshot = snapshot
        self._changed = asyncio.Event()  # a new one after every change

    def open(self) -> None:
        """Load tokenizer and data, before any other call. Raises DataError."""
        data = self._job.data
        self._tokenizer = load_tokenizer(self._job.model)
        train = self._stream(data.train, open_source(data.train), shuffle=data.shuffle)
        train.prompt(0)  # a field or a template that does not fit shows at the first item
        self._buffer = ReplayBuffer(Rules.of(self._job), train.prompt, self._snapshot)

    def __repr__(self) -> str:
        return f"replay v{self._buffer.version}" if hasattr(self, "_buffer") else "replay"

    async def lease(
        self, worker: str, incarnation: int, num_groups: int, *, yielded_version: int | None
    ) -> LeaseReply:
        def ask() -> LeaseReply:
            now_s = time.monotonic()
            return self._buffer.lease(
                worker, incarnation, num_groups, now_s, yielded_version=yielded_version
            )

        def says_something(reply: LeaseReply) -> bool:
            to_yield = reply.yield_device and yielded_version != reply.version
            return bool(reply.leases) or to_yield or reply.stop is not None

        if yielded_version is not None:
            self._notify()  # the learner may be waiting for just this
        return await self._held(ask, says_something)

    async def put(self, groups: Sequence[Group]) -> Sequence[PutReply]:
        now_s = time.monotonic()
        replies = [self._buffer.put(_owned(group), now_s) for group in groups]
        self._notify()
        return replies

    async def take(self, version: int) -> Batch | Wait | Stop:
        return await self._held(
            lambda: self._buffer.take(version, time.monotonic()),
            lambda reply: not isinstance(reply, Wait),
        )

    async def trained(self, version: int) -> None:
        self._buffer.trained(version)
        self._notify()

    async def stop(self, reason: str) -> None:
        self._buffer.stop(reason)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _held(self, ask: Callable[[], T], says_something: Callable[[T], bool]) -> T:
        """The first answer that says something, or the last one within LONG_POLL_S."""
        deadline_s = time.monotonic() + LONG_POLL_S
        while True:
            changed = self._changed
            reply = ask()
            left_s = deadline_s - time.monotonic()
            if says_something(reply) or left_s <= 0:
                return reply
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), left_s)

    def stats(self) -> dict[str, Any]:
        self._buffer.expire(time.monotonic())
        return self._buffer.stats()

    def snapshot(self) -> dict[str, Any]:
        return self._buffer.snapshot()

    def eval_prompts(self) -> list[Prompt]:
        """The first `eval_num_prompts` items of data.eval, in order, without over-long ones."""
        if self._job.data.eval is None:
            return []
        items = open_source(self._job.data.eval)
        stream = self._stream(self._job.data.eval, items, shuffle=False)
        ordinals = range(min(len(items), self._job.data.eval_num_prompts))
        return [prompt for ordinal in ordinals if (prompt := stream.prompt(ordinal))]

    def _stream(self, source: DataSource, items: Items, *, shuffle: bool) -> PromptStream:
        return PromptStream(
            items,
            renderer(source, self._tokenizer),
            seed=self._job.seed,
            shuffle=shuffle,
            max_prompt_tokens=self._job.data.max_prompt_tokens,
        )


class ReplayClient:
    """Replay as its callers see it: ReplayForWorkers and ReplayForLearners over an actor."""

    def __init__(self, actor: ActorHandle[Any]) -> None:
        self._actor = actor

    def lease(
        self, worker: str, incarnation: int, num_groups: int, *, yielded_version: int | None
    ) -> Future[LeaseReply]:
        call = self._actor.lease.remote
        return _future(call(worker, incarnation, num_groups, yielded_version=yielded_version))

    def put(self, groups: Sequence[Group]) -> Future[Sequence[PutReply]]:
        return _future(self._actor.put.remote(groups))

    def take(self, version: int) -> Future[Batch | Wait | Stop]:
        return _future(self._actor.take.remote(version))

    def trained(self, version: int) -> Future[None]:
        return _future(self._actor.trained.remote(version))

    def snapshot(self) -> Future[Mapping[str, Any]]:
        return _future(self._actor.snapshot.remote())


def _owned(group: Group) -> Group:
    """A copy: arrays that arrive over Ray can be views of memory that goes with its worker."""
    return replace(
        group,
        prompt_token_ids=np.array(group.prompt_token_ids),
        rollouts=tuple(
            replace(r, token_ids=np.array(r.token_ids), logprobs=np.array(r.logprobs))
            for r in group.rollouts
        ),
    )


def _future(reference: Any) -> Future[Any]:
    future: Future[Any] = reference.future()
    return future
