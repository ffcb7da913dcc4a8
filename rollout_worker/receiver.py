"""The worker's end of the `object_store` transport: fetch the newest version, unpack it.

Buckets are fetched in a thread, so that the engine decodes until all of them are here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slipstream.errors import UpdateLost, UpdateStalled
from slipstream.records import TensorSpec, WeightUpdate

Bytes = npt.NDArray[np.uint8]
WaitNewer = Callable[[tuple[int, int]], Future[WeightUpdate | None]]
ASK_AGAIN_S = 1.0  # while the board tells of what is gone
Get = Callable[[Sequence[Any]], Sequence[Bytes]]


class ObjectStoreReceiver:
    """Keeps one question to the board under way: are there newer weights than mine?

    `wait_newer((timeline, version))` asks the board and returns a future; `get` fetches all buckets
    of an update. Where it raises UpdateStalled, the same update is asked for again.
    """

    def __init__(self, wait_newer: WaitNewer, get: Get) -> None:
        self._wait_newer = wait_newer
        self._get = get
        self.wire_s = 0.0  # how long the buckets of the newest update were on their way
        self._asked: Future[WeightUpdate | None] | None = None
        self._fetching: tuple[WeightUpdate, Future[Sequence[Bytes]]] | None = None
        # An update that is gone, and of which the board may still tell; its version may come again.
        self._lost: WeightUpdate | None = None
        self._ask_again_s = 0.0

    def poll(self, held: tuple[int, int]) -> WeightUpdate | None:
        """The newest update above (timeline, version), once its buckets are here or given up."""
        if self._fetching is None:
            update = self._told(held)
            if update is None:
                return None
            self._fetching = update, self._fetch(update)
        update, buckets = self._fetching
        return update if buckets.done() else None

    def _told(self, held: tuple[int, int]) -> WeightUpdate | None:
        if self._asked is None:
            if time.monotonic() < self._ask_again_s:
                return None
            self._asked = self._wait_newer(held)
        if not self._asked.done():
            return None
        update, self._asked = self._asked.result(), None
        if update is None or update.order <= held:
            return None
        if self._lost is not None and update.published_at_s == self._lost.published_at_s:
            self._ask_again_s = time.monotonic() + ASK_AGAIN_S
            return None
        return update

    def tensors(self, update: WeightUpdate) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter of what `poll` gave: a version comes whole or not at all.

        Raises UpdateLost.
        """
        assert self._fetching is not None and self._fetching[0] is update
        fetched, self._fetching = self._fetching[1], None
        try:
            buckets = fetched.result(timeout=0)
        except UpdateStalled:
            raise
        except UpdateLost:
            self._lost = update
            raise
        pairs = zip(update.bucket_specs, buckets, strict=True)
        return (named for specs, bucket in pairs for named in unpack(specs, bucket))

    def _fetch(self, update: WeightUpdate) -> Future[Sequence[Bytes]]:
        fetched: Future[Sequence[Bytes]] = Future()

        def fetch() -> None:
            start_s = time.perf_counter()
            try:
                buckets = self._get(update.buckets)
                self.wire_s = time.perf_counter() - start_s
                fetched.set_result(buckets)
            except BaseException as error:  # raised in the loop, by `tensors`
                fetched.set_exception(error)

        threading.Thread(target=fetch, name="weights", daemon=True).start()
        return fetched


def unpack(specs: tuple[TensorSpec, ...], bucket: Bytes) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that lie back to back in `bucket`, copied out of it."""
    offset = 0
    for spec in specs:
        dtype = getattr(torch, spec.dtype)
        count = int(np.prod(spec.shape, dtype=np.int64))
        num_bytes = count * dtype.itemsize
        piece = np.array(bucket[offset : offset + num_bytes])  # the store's memory is read-only
        yield spec.name, torch.from_numpy(piece).view(dtype).view(spec.shape)
        offset += num_bytes
    if offset != len(bucket):
        raise ValueError(f"a bucket of {len(bucket)} bytes for tensors of {offset}")
