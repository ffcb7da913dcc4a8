"""Many writers, one transaction: what is asked for while the disk works is written together next.

    do(), write() ──▶ queue, in order ──▶ a thread: everything queued, one commit ──▶ waiters

The event loop never waits for the disk, and a sync of some milliseconds is shared by all that
came meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from replay.facts import Fact
from replay.journal import Journal

T = TypeVar("T")


class JournalWriter:
    """Writes `journal` for one event loop, and nobody else may use it meanwhile.

    An error goes to every waiter of its transaction, and to all who come later.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._queued: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._writing: asyncio.Task[None] | None = None

    def write(self, facts: Sequence[Fact]) -> asyncio.Future[int]:
        """Done when `facts` and all before them are down, as durable as the journal is; the last
        one's seq."""
        return self.do(partial(self._journal.append, facts))

    def do(self, operation: Callable[[], T]) -> asyncio.Future[T]:
        """Call `operation` on the journal after all that was asked before; its result."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queued.append((operation, done))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        return done

    async def close(self) -> None:
        """Once everything queued is written."""
        if self._writing is not None:
            await self._writing
        self._thread.shutdown()
        self._journal.close()

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queued:
            together, self._queued = self._queued, []
            operations = [operation for operation, _ in together]
            try:
                results = await loop.run_in_executor(self._thread, self._together, operations)
            except Exception as error:
                for _, done in together:
                    if not done.done():
                        done.set_exception(error)
            else:
                for (_, done), result in zip(together, results, strict=True):
                    if not done.done():  # its waiter may have been cancelled
                        done.set_result(result)

    def _together(self, operations: Sequence[Callable[[], Any]]) -> list[Any]:
        with self._journal.transaction():
            return [operation() for operation in operations]
