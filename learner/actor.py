"""The Ray shells of the learner: one `LearnerRank` per rank, and the `WeightBoard`.

Torch and DeepSpeed are imported in the rank's own process, after its environment is set, and
as the actor is made: that takes seconds in which replay reads the data.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from slipstream.affinity import bind_process
from slipstream.config.job import JobConfig
from slipstream.errors import DeadlineExceeded
from slipstream.protocols import ReplayForLearners
from slipstream.records import WeightUpdate
from slipstream.stacks import stacks
from slipstream.telemetry import Beat, EventLog

LONG_POLL_S = 5.0


class WeightBoard:
    """Holds the newest published version, for every worker to fetch at any time.

    Of `every` versions it also holds the last multiple, which a worker gets before any newer one:
    so the worker that is to evaluate it comes to hold just this. 0: only the newest.
    """

    def __init__(self, every: int = 0) -> None:
        self._every = every
        self._newest: WeightUpdate | None = None
        self._multiple: WeightUpdate | None = None
        self._changed = asyncio.Condition()

    async def announce(self, update: WeightUpdate) -> None:
        async with self._changed:
            if self._newest is not None and update.order < self._newest.order:
                return  # of a learner that was given up
            if self._newest is not None and _is_of_another_learner(self._newest, update):
                self._multiple = None  # its buckets are gone with the ranks that put them
            self._newest = update
            if self._every and update.version % self._every == 0:
                self._multiple = update
            self._changed.notify_all()

    async def wait_newer(self, held: tuple[int, int]) -> WeightUpdate | None:
        """The newest update once it is above (timeline, version), or the last multiple where that
        is too; None after a few seconds."""
        try:
            async with asyncio.timeout(LONG_POLL_S), self._changed:
                await self._changed.wait_for(
                    lambda: self._newest is not None and self._newest.order > held
                )
        except TimeoutError:
            return None
        assert self._newest is not None
        multiple = self._multiple
        # That of an earlier timeline may be of weights that are gone.
        if multiple is None or multiple.timeline != self._newest.timeline:
            return self._newest
        return multiple if held < multiple.order else self._newest

    async def stats(self) -> dict[str, Any]:
        return {"pid": os.getpid()}

    def __repr__(self) -> str:
        return f"weights v{self._newest.version}" if self._newest else "weights"


def _is_of_another_learner(before: WeightUpdate, update: WeightUpdate) -> bool:
    """Ranks that take over in the same timeline publish their first version once more; a reminder
    is the same update."""
    return update.order == before.order and update.published_at_s != before.published_at_s


class LearnerRank:
    """One rank: `address` (rank 0), then `start` on all, then `run` on all."""

    def __init__(self, job: JobConfig, rank: int, cores: Sequence[int]) -> None:
        bind_process(cores)
        os.environ["RANK"], os.environ["LOCAL_RANK"] = str(rank), "0"
        os.environ["WORLD_SIZE"] = str(job.learner.num_ranks)
        if job.learner.gpus_per_rank == 0:
            os.environ["DS_ACCELERATOR"] = "cpu"
        from learner.engine import import_deepspeed

        import_deepspeed()
        self._job = job
        self._rank = rank
        self._events = EventLog("learner", rank)
        self._loop: Any = None

    def address(self) -> tuple[str, int]:
        """Where the ranks may meet: this node, and a port that is free now."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def start(
        self,
        address: tuple[str, int],
        weights_address: tuple[str, int],
        replay: ReplayForLearners,
        board: Any,
        workers: Sequence[Any],
        run_dir: Path,
        *,
        timeline: int,
        commit_dir: Path | None,
    ) -> None:
        """Load the model, meet the other ranks, and go on from a commit where there is one.

        The ranks meet at `address`; with `nccl` rank 0 meets the workers at `weights_address`.
        """
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address[0], str(address[1])
        from learner.build import build_loop

        def announce(update: WeightUpdate) -> None:
            timeout_s = self._job.health.call_timeout_s
            try:
                ray.get(board.announce.remote(update), timeout=timeout_s)
            except ray.exceptions.GetTimeoutError:
                raise DeadlineExceeded(
                    f"the weight board did not take version {update.version} within {timeout_s} s"
                ) from None

        def call_workers(call: str, payloads: Sequence[Any]) -> None:
            calls = [
                worker.transfer.remote(call, payload)
                for worker, payload in zip(workers, payloads, strict=True)
            ]
            try:
                ray.get(calls, timeout=self._job.weights.timeout_s)
            except ray.exceptions.GetTimeoutError:
                raise DeadlineExceeded(
                    f"the workers did not finish {call} within {self._job.weights.timeout_s} s"
                ) from None

        self._loop = build_loop(
            self._job,
            replay=replay,
            put=ray.put,
            announce=announce,
            call_workers=call_workers,
            rendezvous=weights_address,
            checkpoints=run_dir / "checkpoints",
            timeline=timeline,
            commit_dir=commit_dir,
            events=self._events,
        )

    def run(self) -> int:
        """Train to the end of the job; returns the last version."""
        from learner.ranks import collectives

        with collectives(self._job.learner.step_timeout_s):
            return int(self._loop.run())

    def drain(self) -> tuple[Beat | None, Sequence[Mapping[str, Any]]]:
        """What the rank does now, None before its start is done, and its events since the last."""
        beat = None if self._loop is None else self._loop.beat()
        return beat, self._events.drain()

    def stacks(self) -> str:
        """What every thread does."""
        return stacks()

    def __repr__(self) -> str:
        """Ray's dashboard shows the one of the moment when the actor was made."""
        name = f"learner-{self._rank}"
        return name if self._loop is None else f"{name} {self._loop.beat()}"
