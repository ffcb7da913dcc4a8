"""From records to tensors: the one place where a batch changes its form.

T is the longest sequence of the microbatch, prompt and answer, less one: position t of
every (B, T) tensor is about predicting token t + 1 from the tokens up to t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slipstream.records import Batch, Rollout, TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One rollout with its prompt and its group's number in the batch."""

    prompt_token_ids: TokenIds  # (P,)
    rollout: Rollout
    group: int

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + self.rollout.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTensors:
    """The samples of one microbatch."""

    inputs_BT: Tensor  # int64, right-padded
    targets_BT: Tensor  # int64, the inputs one position on
    mask_BT: Tensor  # float32, 1 where the target is a token of the answer
    behaviour_logprobs_BT: Tensor  # float32, 0 where masked
    advantages_BT: Tensor  # float32, 0 where masked


def samples_of(batch: Batch) -> list[Sample]:
    """Every rollout of the batch, group by group."""
    return [
        Sample(prompt_token_ids=entry.group.prompt_token_ids, rollout=rollout, group=index)
        for index, entry in enumerate(batch.groups)
        for rollout in entry.group.rollouts
    ]


def to_tensors(
    samples: Sequence[Sample], advantages: Sequence[float], device: torch.device
) -> SampleTensors:
    """Right-pad `samples`; `advantages` has one number a sample, given to all its tokens.

    No samples at all make one row that trains nothing, so that every rank has a forward
    and a backward to run.
    """
    rows = max(1, len(samples))
    width = max([2, *(sample.num_tokens for sample in samples)])
    tokens = np.zeros((rows, width), dtype=np.int64)
    mask = np.zeros((rows, width), dtype=np.float32)
    logprobs, advantage = np.zeros_like(mask), np.zeros_like(mask)
    for row, sample in enumerate(samples):
        start, stop = len(sample.prompt_token_ids), sample.num_tokens
        tokens[row, :start] = sample.prompt_token_ids
        tokens[row, start:stop] = sample.rollout.token_ids
        mask[row, start:stop] = 1.0
        logprobs[row, start:stop] = sample.rollout.logprobs
        advantage[row, start:stop] = advantages[row]
    return SampleTensors(
        inputs_BT=torch.tensor(tokens[:, :-1], device=device),
        targets_BT=torch.tensor(tokens[:, 1:], device=device),
        mask_BT=torch.tensor(mask[:, 1:], device=device),
        behaviour_logprobs_BT=torch.tensor(logprobs[:, 1:], device=device),
        advantages_BT=torch.tensor(advantage[:, 1:], device=device),
    )
