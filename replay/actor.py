"""The process shell of replay: data, tokenizer, clock and journal around the state machine.

    worker ── lease, put ──▶ ReplayActor ◀── take, trained, discard, snapshot, committed ── rank
                                 │ ▲ open, go_back, lose, pause, stop, stats, eval_prompts ── driver
                                 ▼
                              journal: every call is answered once its facts are down

One thread answers all calls, each step of it in micro- to milliseconds, so that the state
machine needs no lock. A lease or a take that cannot be granted yet is held, and tried again
whenever something has changed: nobody polls. `ReplayActor` is a plain class; the orchestrator
makes a Ray actor of it and gives roles a `ReplayClient` of its handle. When its process dies,
Ray starts another, which goes on from the journal, and repeats the calls that were under way.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from replay.buffer import ReplayBuffer
from replay.facts import Fact, Reissued
from replay.held_out import held_out_prompts, stream_of
from replay.journal import FILE_NAME
from replay.keeper import Keeper
from replay.rollback import go_back
from replay.rules import Rules
from replay.sources import open_source
from replay.state import ReplayState
from replay.stream import PromptStream
from slipstream.config.job import JobConfig
from slipstream.errors import SlipstreamError
from slipstream.records import (
    Batch,
    Group,
    LeaseReply,
    Prompt,
    PutReply,
    ReplaySnapshot,
    Stop,
    Wait,
)
from slipstream.stacks import stacks
from slipstream.text import load_tokenizer

if TYPE_CHECKING:
    from ray.actor import ActorHandle

LONG_POLL_S = 1.0  # a call that cannot be granted is answered after this
T = TypeVar("T")


class ReplayActor:
    """Owns the groups it has accepted; see `replay.buffer` for what each call means."""

    def __init__(self, job: JobConfig, run_dir: Path) -> None:
        self._job = job
        self._rules = Rules.of(job)
        self._path = run_dir / FILE_NAME
        self._changed = asyncio.Event()  # a new one after every change
        self._settled = asyncio.Event()  # not while the run goes back
        self._settled.set()
        self._facts: list[Fact] = []  # that are not written down yet
        # Step boundaries whose commits are not durable yet, by version: their place in the journal,
        # and the leases of the groups that were buffered.
        self._boundaries: dict[int, tuple[Mapping[str, Any], list[int]]] = {}

    def open(self) -> None:
        """Load tokenizer and data, and open the journal. Raises DataError, JournalError.

        For a new launch, which counts the incarnations of its workers from 0 again.
        """
        self._buffer.state.lost.clear()

    # --- what is opened once, by `open`, or by the first call after a restart ---------

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._job.model)

    @cached_property
    def _train(self) -> PromptStream:
        data = self._job.data
        train = stream_of(
            self._job, data.train, open_source(data.train), self._tokenizer, shuffle=data.shuffle
        )
        train.prompt(0)  # a field or a template that does not fit shows at the first item
        return train

    @cached_property
    def _keeper(self) -> Keeper:
        durability = self._job.replay.durability
        return Keeper(self._path, job=self._job.name, durability=durability, rules=self._rules)

    @cached_property
    def _buffer(self) -> ReplayBuffer:
        return self._buffer_of(self._keeper.restore())

    def _buffer_of(self, state: ReplayState | None) -> ReplayBuffer:
        return ReplayBuffer(self._rules, self._train.prompt, self._facts.append, state)

    def __repr__(self) -> str:
        return f"replay v{self._buffer.version}" if "_buffer" in self.__dict__ else "replay"

    async def lease(
        self,
        worker: str,
        incarnation: int,
        num_groups: int,
        *,
        held: Sequence[int],
        yielded_version: int | None,
        pinned: tuple[int, int] | None = None,
    ) -> LeaseReply:
        def ask() -> LeaseReply:
            now_s = time.monotonic()
            return self._buffer.lease(
                worker,
                incarnation,
                num_groups,
                now_s,
                held=held,
                yielded_version=yielded_version,
                pinned=pinned,
            )

        def says_something(reply: LeaseReply) -> bool:
            to_yield = reply.yield_device and yielded_version != reply.version
            # Until it takes newer weights nothing can come, whatever changes here.
            is_behind = pinned is not None and pinned < (reply.timeline, reply.version)
            is_over = to_yield or is_behind or reply.stop is not None
            return bool(reply.leases or reply.revoked) or is_over

        if yielded_version is not None:
            self._notify()  # the learner may be waiting for just this
        return await self._answered(ask, says_something)

    async def put(self, groups: Sequence[Group]) -> Sequence[PutReply]:
        await self._settled.wait()
        now_s = time.monotonic()
        replies = [self._buffer.put(group, now_s) for group in groups]
        self._notify()
        await self._written()
        return replies

    async def take(self, version: int, timeline: int) -> Batch | Wait | Stop:
        return await self._answered(
            lambda: self._buffer.take(version, time.monotonic(), timeline=timeline),
            lambda reply: not isinstance(reply, Wait),
        )

    async def trained(self, version: int, timeline: int) -> None:
        await self._settled.wait()
        self._buffer.trained(version, timeline=timeline)
        self._notify()
        await self._written()

    async def discard(self, version: int, timeline: int, number: int) -> None:
        await self._settled.wait()
        self._buffer.discard(version, timeline=timeline, number=number)
        self._notify()
        await self._written()

    async def lose(self, worker: str, incarnation: int, *, blame: bool) -> None:
        await self._settled.wait()
        self._buffer.lose(worker, incarnation, time.monotonic(), blame=blame)
        self._notify()
        await self._written()

    async def pause(self, is_paused: bool) -> None:
        await self._settled.wait()
        self._buffer.pause(is_paused)
        self._notify()

    async def dismiss_learner(self, is_dismissed: bool) -> None:
        await self._settled.wait()
        self._buffer.dismiss_learner(is_dismissed)
        self._notify()

    def stacks(self) -> str:
        return stacks()

    async def stop(self, reason: str) -> None:
        await self._settled.wait()
        self._buffer.stop(reason)
        self._notify()
        await self._written()

    # --- commits ----------------------------------------------------------------------

    async def snapshot(self, timeline: int) -> ReplaySnapshot:
        """Replay at this step boundary, for a commit."""
        await self._settled.wait()
        self._buffer.check_learner(timeline)
        snapshot = self._buffer.snapshot()
        live = [entry.group.lease_id for entry in self._buffer.state.shelf.entries.values()]
        # Both are asked for before anything else can happen: the facts before this boundary.
        written, kept = self._written(), self._keeper.keep_commit(snapshot.state)
        await written
        place = await kept
        self._boundaries[snapshot.state["version"]] = place, live
        return replace(snapshot, state={**snapshot.state, "journal": place})

    async def committed(self, version: int, timeline: int) -> None:
        """The commit of `version` is durable: nothing goes back behind it."""
        await self._settled.wait()
        if timeline != self._buffer.state.timeline:
            return  # the run went back to another one
        if version in self._boundaries:
            await self._keeper.forget_before(*self._boundaries[version])
        self._boundaries = {v: kept for v, kept in self._boundaries.items() if v > version}

    async def go_back(self, commit: ReplaySnapshot, timeline: int) -> None:
        """To the step boundary of a commit; `timeline` begins there. Asked again, it does nothing.

        What the timeline before has leased or taken is void.
        """
        self._settled.clear()
        try:
            await self._go_back(commit, timeline)
        finally:
            self._settled.set()
            self._notify()

    async def _go_back(self, commit: ReplaySnapshot, timeline: int) -> None:
        self._boundaries.clear()
        await self._written()
        now = self._buffer.state
        if timeline == now.timeline:
            return  # asked again, as the answer got lost
        if timeline < now.timeline:
            raise SlipstreamError(
                f"the journal has seen timeline {now.timeline}, and the checkpoints say that "
                f"{timeline} is new: files are missing there. Bring back checkpoints/.timeline-*, "
                f"or move {self._path} away to go on from the commit alone"
            )
        version, place = commit.state["version"], commit.state["journal"]
        since = await self._keeper.groups_since(place, version, commit.state["timeline"])
        state, groups = go_back(now, commit, self._rules, since=since or (), timeline=timeline)
        if since is not None:
            state["from_seq"] = place["seq"]
        await self._keeper.keep_rollback(state, groups.values())
        is_paused = self._buffer.is_paused
        self._buffer = self._buffer_of(ReplayState.restore(state, groups.__getitem__))
        self._buffer.pause(is_paused)

    # --- waiting ----------------------------------------------------------------------

    def _written(self) -> Awaitable[object]:
        """Done once all that has happened so far is as durable as `replay.durability` says."""
        facts, self._facts[:] = list(self._facts), []
        return self._keeper.write(facts)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _answered(self, ask: Callable[[], T], says_something: Callable[[T], bool]) -> T:
        """The first answer that says something, or the last one within LONG_POLL_S."""
        deadline_s = time.monotonic() + LONG_POLL_S
        while True:
            await self._settled.wait()
            changed, num_before = self._changed, len(self._facts)
            reply = ask()
            if any(isinstance(fact, Reissued) for fact in self._facts[num_before:]):
                self._notify()  # a prompt for those that wait
            left_s = deadline_s - time.monotonic()
            if says_something(reply) or left_s <= 0:
                await self._written()
                return reply
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), left_s)

    async def stats(self) -> dict[str, Any]:
        await self._settled.wait()
        now_s = time.monotonic()
        self._buffer.expire(now_s)
        await self._written()
        return {
            **self._buffer.stats(),
            "oldest_lease_s": self._buffer.oldest_lease_s(now_s),
            "pid": os.getpid(),
        }

    def eval_prompts(self) -> dict[str, list[Prompt]]:
        """Of every held-out set, by its name."""
        return held_out_prompts(self._job, self._tokenizer)


class ReplayClient:
    """Replay as its callers see it: ReplayForWorkers and ReplayForLearners over an actor."""

    def __init__(self, actor: ActorHandle[Any]) -> None:
        self._actor = actor

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
        call = self._actor.lease.remote
        options = {"held": held, "yielded_version": yielded_version, "pinned": pinned}
        return _future(call(worker, incarnation, num_groups, **options))

    def put(self, groups: Sequence[Group]) -> Future[Sequence[PutReply]]:
        return _future(self._actor.put.remote(groups))

    def take(self, version: int, timeline: int) -> Future[Batch | Wait | Stop]:
        return _future(self._actor.take.remote(version, timeline))

    def trained(self, version: int, timeline: int) -> Future[None]:
        return _future(self._actor.trained.remote(version, timeline))

    def discard(self, version: int, timeline: int, number: int) -> Future[None]:
        return _future(self._actor.discard.remote(version, timeline, number))

    def snapshot(self, timeline: int) -> Future[ReplaySnapshot]:
        return _future(self._actor.snapshot.remote(timeline))

    def committed(self, version: int, timeline: int) -> Future[None]:
        return _future(self._actor.committed.remote(version, timeline))


def _future(reference: Any) -> Future[Any]:
    future: Future[Any] = reference.future()
    return future
