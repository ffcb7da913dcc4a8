"""What a rollout worker asks of an engine: token ids in, token ids out, one step at a time.

The caller owns the loop, so that weights are exchanged exactly between two decode steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from slipstream.records import FinishReason, LogProbs, TokenIds, VersionSpan

if TYPE_CHECKING:
    import torch

GREEDY = 0.0  # a temperature


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One answer to sample."""

    request_id: str
    prompt_token_ids: TokenIds  # (P,)
    max_new_tokens: int
    temperature: float  # GREEDY takes the likeliest token
    top_p: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One finished answer of T tokens."""

    request_id: str
    token_ids: TokenIds  # (T,) with the end-of-sequence token where it was sampled
    logprobs: LogProbs  # (T,) of the sampled tokens, after temperature and top-p
    spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason


class Engine(Protocol):
    """Continuous batching over a fixed number of slots."""

    @property
    def version(self) -> int:
        """The policy version held; -1 before the first `load`."""

    @property
    def num_running(self) -> int:
        """Requests submitted whose generation `step` has not returned yet."""

    @property
    def num_tokens(self) -> int:
        """Tokens made since the start, of whatever."""

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request; it joins the batch at the next step with a free slot."""

    def step(self) -> list[Generation]:
        """One decode step of everything in flight; returns what finished in it."""

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forget these requests; unknown ids are ignored."""

    def load(self, version: int, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Exchange all weights. What is in flight goes on, its KV cache is kept."""

    def transfer(self, call: str, payload: Mapping[str, Any]) -> None:
        """One call of the engine's own GPU-to-GPU transfer, all of them but the last."""

    def finish_transfer(self, version: int) -> None:
        """The last call: what was transferred is in use from now on."""

    def score(self, token_ids: TokenIds) -> LogProbs:
        """(N - 1,) log-probs of tokens 1..N-1 given those before, at temperature 1.

        Requests in flight take part in the step that this needs; nothing of them is lost.
        """

    def sleep(self) -> None:
        """Give the device's memory back; only with nothing in flight."""

    def wake(self) -> None:
        """Undo `sleep`, if need be. Weights must be loaded again before the next step."""

    def close(self) -> None:
        """Release everything."""
