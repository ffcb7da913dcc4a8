"""From records to tensors: the one place where a batch changes its form.

The model computes rows (R rows of S positions), the algorithms see answers: B answers of at most T
tokens, whatever rows they were computed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from learner.policy import PADDING, PREFIX, Rows, SharedPrompts
from slipstream.records import Batch, FinishReason, Rollout, TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One rollout with its prompt and its group's number in the batch."""

    prompt_token_ids: TokenIds  # (P,)
    rollout: Rollout
    group: int
    version: int = 0  # of the learner that trains it
    greedy_reward: float | None = None  # of another answer to the same prompt
    weight: float = 1.0  # factor on its loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt and the answers computed behind it, each blind to the others.

    Input positions: the prompt without its last token, then for every answer the prompt's last
    token and the answer without its own last.
    """

    indices: tuple[int, ...]  # of its samples
    num_tokens: int  # input positions


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTensors:
    """One microbatch: its rows, and its answers in their order, right-padded."""

    rows: Rows
    targets_BT: Tensor  # int64, the answers' tokens; 0 where masked
    was_cut_B: Tensor  # bool, by length: the answer did not end by itself
    mask_BT: Tensor  # float32, 1 on tokens of the answers
    mask_BU: Tensor  # the same and 1 behind each answer, for a critic; U is T + 1
    behaviour_logprobs_BT: Tensor  # float32, 0 where masked
    lags_BT: Tensor  # float32, the learner's version minus that which sampled the token
    weights_B: Tensor  # float32, factors on the answers' losses


def samples_of(batch: Batch) -> list[Sample]:
    """Every rollout of the batch, group by group."""
    return [
        Sample(
            prompt_token_ids=entry.group.prompt_token_ids,
            rollout=rollout,
            group=index,
            version=batch.version,
            greedy_reward=entry.group.greedy_reward,
            weight=entry.weight,
        )
        for index, entry in enumerate(batch.groups)
        for rollout in entry.group.rollouts
    ]


def rows_of(samples: Sequence[Sample], hidden_size: int, *, with_ends: bool = False) -> list[Row]:
    """The rows that are cheapest to compute, in the order of the samples.

    `with_ends`: each answer's last token is an input too, for what a critic says behind it.

    A layer of width H costs a row of T positions about T (12 H + T) in matrix products and
    attention. Answers of one group share a row where that is less than a row each: with long
    prompts and short answers. `hidden_size` 0 says that the model cannot share.
    """

    def cost(num_tokens: int) -> int:
        return num_tokens * (12 * hidden_size + num_tokens)

    rows: list[Row] = []
    for _, members in groupby(range(len(samples)), key=lambda index: samples[index].group):
        group = list(members)
        prefix = len(samples[group[0]].prompt_token_ids) - 1
        answers = [samples[index].rollout.num_tokens + with_ends for index in group]
        apart = [prefix + num_tokens for num_tokens in answers]
        together = prefix + sum(answers)
        if hidden_size and len(group) > 1 and cost(together) < sum(map(cost, apart)):
            rows.append(Row(indices=tuple(group), num_tokens=together))
        else:
            rows += [Row(indices=(i,), num_tokens=n) for i, n in zip(group, apart, strict=True)]
    return rows


def to_tensors(
    rows: Sequence[Row],
    samples: Sequence[Sample],
    device: torch.device,
    *,
    with_ends: bool = False,
) -> SampleTensors:
    """Right-pad `rows`, as `rows_of` made them, and their answers.

    No rows at all make one that trains nothing, so that every rank has a forward and a backward to
    run.
    """
    answers = [index for row in rows for index in row.indices]
    longest = max([1, *(samples[index].rollout.num_tokens for index in answers)])
    shape_BT = max(1, len(answers)), longest
    targets = np.zeros(shape_BT, np.int64)
    mask, logprobs, lags = (np.zeros(shape_BT, np.float32) for _ in range(3))
    mask_BU = np.zeros((shape_BT[0], longest + 1), np.float32)
    was_cut = np.zeros(shape_BT[0], np.bool_)
    weights = np.ones(shape_BT[0], np.float32)
    for place, index in enumerate(answers):
        rollout = samples[index].rollout
        part = place, slice(rollout.num_tokens)
        targets[part], mask[part], logprobs[part] = rollout.token_ids, 1.0, rollout.logprobs
        for span in rollout.spans:
            lags[place, span.start : span.stop] = samples[index].version - span.version
        mask_BU[place, : rollout.num_tokens + 1] = 1.0
        was_cut[place] = rollout.finish_reason is FinishReason.LENGTH
        weights[place] = samples[index].weight
    return SampleTensors(
        rows=_to_rows(rows, samples, device, with_ends=with_ends),
        targets_BT=torch.from_numpy(targets).to(device),
        mask_BT=torch.from_numpy(mask).to(device),
        mask_BU=torch.from_numpy(mask_BU).to(device),
        was_cut_B=torch.from_numpy(was_cut).to(device),
        behaviour_logprobs_BT=torch.from_numpy(logprobs).to(device),
        lags_BT=torch.from_numpy(lags).to(device),
        weights_B=torch.from_numpy(weights).to(device),
    )


def _to_rows(
    rows: Sequence[Row], samples: Sequence[Sample], device: torch.device, *, with_ends: bool
) -> Rows:
    shape_RS = max(1, len(rows)), max([1, *(row.num_tokens for row in rows)])
    inputs = np.zeros(shape_RS, np.int64)
    trained, valued = np.zeros(shape_RS, np.bool_), np.zeros(shape_RS, np.bool_)
    segments, positions = np.full(shape_RS, PADDING, np.int64), np.zeros(shape_RS, np.int64)
    for place, row in enumerate(rows):
        prompt = samples[row.indices[0]].prompt_token_ids
        prefix = len(prompt) - 1
        inputs[place, :prefix], segments[place, :prefix] = prompt[:-1], PREFIX
        positions[place, :prefix] = np.arange(prefix)
        start = prefix
        for segment, index in enumerate(row.indices, start=PREFIX + 1):
            answer = samples[index].rollout
            size = answer.num_tokens + with_ends
            trained[place, start : start + answer.num_tokens] = True
            part = place, slice(start, start := start + size)
            inputs[part] = np.concatenate([prompt[-1:], answer.token_ids])[:size]
            valued[part], segments[part] = True, segment
            positions[part] = np.arange(prefix, prefix + size)
    layout = None
    if any(len(row.indices) > 1 for row in rows):
        layout = SharedPrompts(
            torch.from_numpy(segments).to(device), torch.from_numpy(positions).to(device)
        )
    return Rows(
        torch.from_numpy(inputs).to(device),
        torch.from_numpy(trained).to(device),
        layout,
        valued_RS=torch.from_numpy(valued).to(device) if with_ends else None,
    )
