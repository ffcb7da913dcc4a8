"""The worker's end of the `object_store` transport: fetch the newest version, unpack it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slipstream.errors import UpdateLost
from slipstream.records import TensorSpec, WeightUpdate

Bytes = npt.NDArray[np.uint8]
WaitNewer = Callable[[tuple[int, int]], Future[WeightUpdate | None]]


class ObjectStoreReceiver:
    """Keeps one question to the board under way: are there newer weights than mine?

    `wait_newer((timeline, version))` asks the board and returns a future; `get` fetches a bucket.
    """

    def __init__(
        self,
        wait_newer: WaitNewer,
        get: Callable[[Any], Bytes],
    ) -> None:
        self._wait_newer = wait_newer
        self._get = get
        self._asked: Future[WeightUpdate | None] | None = None
        self._lost = (-1, -1)  # an update of which the board may still tell

    def poll(self, held: tuple[int, int]) -> WeightUpdate | None:
        """The newest update above (timeline, version), if the board has told of one."""
        held = max(held, self._lost)
        if self._asked is None:
            self._asked = self._wait_newer(held)
        if not self._asked.done():
            return None
        update, self._asked = self._asked.result(), None
        return update if update is not None and update.order > held else None

    def tensors(self, update: WeightUpdate) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter. All buckets are fetched first: a version comes whole or not at all.

        Raises UpdateLost.
        """
        try:
            buckets = [self._get(reference) for reference in update.buckets]
        except UpdateLost:
            self._lost = update.order
            raise
        pairs = zip(update.bucket_specs, buckets, strict=True)
        return (named for specs, bucket in pairs for named in unpack(specs, bucket))


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
