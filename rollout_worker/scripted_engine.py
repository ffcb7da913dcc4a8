"""An engine without a model: the same tokens for the same seed, at the pace asked for.

For contract and chaos tests only; nothing that it does says anything about the product.
A prompt may be poison to it: `exit 5 12; hang 7` ends the process where a prompt holds token 12
after 5, and stops it for good where one holds 7. `raise` raises.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rollout_worker.engine import GREEDY, Generation, GenerationRequest
from slipstream.records import FinishReason, LogProbs, TokenIds, VersionSpan


@dataclass(slots=True)
class _Answer:
    request: GenerationRequest
    random: np.random.Generator
    token_ids: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


class ScriptedEngine:
    """Uniform tokens below `vocabulary`, and the one that ends an answer. A step takes `step_s`."""

    def __init__(
        self,
        *,
        num_slots: int = 16,
        vocabulary: int = 24,
        eos_token_id: int = 1,
        step_s: float = 0.0,
        poison: str = "",
    ) -> None:
        self._num_slots = num_slots
        self._tokens = sorted({*range(vocabulary), eos_token_id})
        self._eos_token_id = eos_token_id
        self._step_s = step_s
        self._poison = list(_parse(poison))
        self._num_tokens = 0
        self._version = -1
        self._answers: dict[str, _Answer] = {}  # in the order submitted
        self.asleep = False

    @property
    def version(self) -> int:
        return self._version

    @property
    def num_running(self) -> int:
        return len(self._answers)

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def submit(self, request: GenerationRequest) -> None:
        assert not self.asleep
        seed = 0 if request.temperature == GREEDY else request.seed
        self._answers[request.request_id] = _Answer(request, np.random.default_rng(seed))

    def step(self) -> list[Generation]:
        assert not self.asleep
        time.sleep(self._step_s)
        done = []
        for answer in list(self._answers.values())[: self._num_slots]:
            self._taste(answer.request.prompt_token_ids.tolist())
            token = self._tokens[answer.random.integers(len(self._tokens))]
            self._num_tokens += 1
            answer.token_ids.append(token)
            answer.versions.append(self._version)
            ended = token == self._eos_token_id
            if ended or len(answer.token_ids) == answer.request.max_new_tokens:
                del self._answers[answer.request.request_id]
                done.append(self._generation(answer, ended=ended))
        return done

    def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self._answers.pop(request_id, None)

    def load(self, version: int, tensors: Iterator[tuple[str, Any]]) -> None:
        assert not self.asleep
        for _ in tensors:
            pass
        self._version = version

    def transfer(self, call: str, payload: Mapping[str, Any]) -> None:
        assert call in ("init_weight_transfer_engine", "start_weight_update", "update_weights")

    def finish_transfer(self, version: int) -> None:
        self._version = version

    def score(self, token_ids: TokenIds) -> LogProbs:
        self._num_tokens += 1
        return self._logprobs(len(token_ids) - 1)

    def sleep(self) -> None:
        assert not self._answers
        self.asleep = True

    def wake(self) -> None:
        self.asleep = False

    def close(self) -> None:
        self._answers.clear()

    def _taste(self, prompt: list[int]) -> None:
        for action, poison in self._poison:
            if not _holds(prompt, poison):
                continue
            match action:
                case "exit":
                    os._exit(1)
                case "hang":
                    threading.Event().wait()
                case "raise":
                    raise RuntimeError(f"the prompt holds {poison}")

    def _generation(self, answer: _Answer, *, ended: bool) -> Generation:
        return Generation(
            request_id=answer.request.request_id,
            token_ids=np.asarray(answer.token_ids, dtype=np.int32),
            logprobs=self._logprobs(len(answer.token_ids)),
            spans=tuple(_spans(answer.versions)),
            finish_reason=FinishReason.EOS if ended else FinishReason.LENGTH,
        )

    def _logprobs(self, count: int) -> LogProbs:
        return np.full(count, -np.log(len(self._tokens)), dtype=np.float32)


def _parse(poison: str) -> Iterator[tuple[str, list[int]]]:
    """Each action, and the tokens that bring it about."""
    for part in filter(None, map(str.strip, poison.split(";"))):
        action, *tokens = part.split()
        if action not in ("exit", "hang", "raise") or not tokens:
            raise ValueError(f"no poison: {part!r}; write as in 'exit 5 12; hang 7'")
        yield action, [int(token) for token in tokens]


def _holds(prompt: list[int], tokens: list[int]) -> bool:
    last = len(prompt) - len(tokens)
    return any(prompt[at : at + len(tokens)] == tokens for at in range(last + 1))


def _spans(versions: list[int]) -> Iterator[VersionSpan]:
    start = 0
    for place in range(1, len(versions) + 1):
        if place == len(versions) or versions[place] != versions[start]:
            yield VersionSpan(version=versions[start], start=start, stop=place)
            start = place
