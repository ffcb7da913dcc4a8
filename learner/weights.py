"""Publishes whole policy versions: gather by bucket, pack, announce.

Every rank iterates the same buckets, because gathering a ZeRO-3 partition is a collective;
only rank 0 copies and sends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.engine import LearnerEngine, full_numel
from learner.policy import Rows
from slipstream.records import Probe, TensorSpec, TokenIds, WeightUpdate

Named = tuple[str, Tensor]
MAX_PROBE_TOKENS = 32


def full_parameters(
    engine: LearnerEngine, bucket_bytes: int, device: torch.device | str = "cpu"
) -> Iterator[list[Named]]:
    """Whole parameters under their Hugging Face names, by bucket; copies, on `device`.

    On other ranks than 0 the buckets are empty. The output layer is sent even where it is
    tied to the embeddings: vLLM keeps a repacked copy of its own.
    """
    for bucket in _buckets(named_parameters(engine), bucket_bytes):
        with engine.gathered([parameter for _, parameter in bucket]):
            yield [
                (name, parameter.detach().to(device, copy=True))
                for name, parameter in bucket
                if engine.rank == 0
            ]


def named_parameters(engine: LearnerEngine) -> list[tuple[str, Any]]:
    """(name, parameter) in the order in which they are sent; tied ones under each name."""
    return list(engine.model.hf.named_parameters(remove_duplicate=False))


def _buckets(named: list[tuple[str, Any]], bucket_bytes: int) -> Iterator[list[tuple[str, Any]]]:
    """Consecutive parameters of at most `bucket_bytes`, or a single larger one."""
    bucket: list[tuple[str, Any]] = []
    size = 0
    for name, parameter in named:
        num_bytes = full_numel(parameter) * parameter.element_size()
        if bucket and size + num_bytes > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, parameter))
        size += num_bytes
    if bucket:
        yield bucket


class ObjectStorePublisher:
    """Puts each bucket into a shared-memory store and announces the version as a whole.

    `put` stores one byte array and returns its reference; `announce` hands the update to
    the board, and returns once the board has it.
    """

    def __init__(
        self,
        engine: LearnerEngine,
        *,
        bucket_bytes: int,
        put: Callable[[Any], Any],
        announce: Callable[[WeightUpdate], None],
    ) -> None:
        self._engine = engine
        self._bucket_bytes = bucket_bytes
        self._put = put
        self._announce = announce
        self._newest: WeightUpdate | None = None  # announced, on rank 0

    def publish(self, timeline: int, version: int, probe: Probe | None) -> dict[str, float]:
        """Make `version` available; every rank calls it."""
        specs, references = [], []
        num_bytes, put_s, start_s = 0, 0.0, time.perf_counter()
        for bucket in full_parameters(self._engine, self._bucket_bytes):
            if self._engine.rank == 0:
                specs.append(tuple(_spec(name, tensor) for name, tensor in bucket))
                put_start_s = time.perf_counter()
                packed = _packed(bucket)
                references.append(self._put(packed))
                put_s += time.perf_counter() - put_start_s
                num_bytes += packed.nbytes
        gathered_s = time.perf_counter()
        if self._engine.rank == 0:
            update = WeightUpdate(
                timeline=timeline,
                version=version,
                bucket_specs=tuple(specs),
                buckets=tuple(references),
                probe=probe,
                published_at_s=time.time(),
            )
            self._announce(update)
            self._newest = update
        return {
            "gather_s": gathered_s - start_s - put_s,
            "publish_s": put_s + time.perf_counter() - gathered_s,
            "num_bytes": num_bytes,
        }

    def remind(self) -> None:
        """A board that died comes back empty, and workers without weights would wait for ever."""
        if self._newest is not None:
            self._announce(self._newest)


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(
        name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape)
    )


def _packed(bucket: list[Named]) -> Any:
    """The tensors back to back as bytes."""
    flat = [tensor.contiguous().view(-1).view(torch.uint8).numpy() for _, tensor in bucket]
    return np.concatenate(flat)


class Prober:
    """Measures the learner's log-probs of fixed tokens, for engines to compare with.

    `max_tokens` is what an engine can take as a prompt.
    """

    def __init__(
        self, engine: LearnerEngine, *, vocabulary: int, max_tokens: int, seed: int
    ) -> None:
        self._engine = engine
        num_tokens = min(MAX_PROBE_TOKENS, max_tokens)
        self._token_ids: TokenIds = np.random.default_rng(seed).integers(
            0, vocabulary, num_tokens, dtype=np.int32
        )

    @torch.no_grad()
    def measure(self) -> Probe:
        """At temperature 1; every rank calls it."""
        tokens_1T = torch.from_numpy(self._token_ids.astype(np.int64))[None].to(self._engine.device)
        mask_1T = torch.ones(tokens_1T[:, 1:].shape, device=self._engine.device)
        rows = Rows(tokens_1T[:, :-1], mask_1T > 0, None)
        logprobs_1T = self._engine.forward(rows, tokens_1T[:, 1:], mask_1T, 1.0).logprobs_BT
        return Probe(
            token_ids=self._token_ids, logprobs=logprobs_1T[0].float().cpu().numpy().copy()
        )
