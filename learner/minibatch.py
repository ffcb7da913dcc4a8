"""What one optimizer step trains on: a batch cut into minibatches, and those by rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.batching import group_ranges, rows_of_ranks
from learner.tensors import Row, Sample, SampleTensors, rows_of, to_tensors
from slipstream.config.job import JobConfig
from slipstream.records import FinishReason


@dataclass(slots=True)
class Microbatch:
    """One forward and backward of this rank. What may be None is filled in ahead of the first
    update, where it is needed."""

    tensors: SampleTensors
    index_B: Tensor  # int64, of its answers among the batch's samples
    num_input_tokens: int  # without padding
    old_logprobs_BT: Tensor | None = None
    reference_logprobs_BT: Tensor | None = None
    advantages_BT: Tensor | None = None
    old_values_BU: Tensor | None = None  # of the critic; U as in `SampleTensors`
    returns_BT: Tensor | None = None  # what its values are trained towards


@dataclass(frozen=True, slots=True, kw_only=True)
class Minibatch:
    """One optimizer step; the counts are of all ranks together."""

    microbatches: list[Microbatch]  # of this rank
    num_tokens: int  # of the answers
    num_rollouts: int


def cut(
    job: JobConfig,
    samples: Sequence[Sample],
    *,
    width: int,
    rank: int,
    num_ranks: int,
    device: torch.device,
) -> list[Minibatch]:
    """The minibatches of a batch, by groups, with `rank`'s microbatches; none of nothing at all.

    `width`: see `rows_of`.
    """
    num_groups = samples[-1].group + 1
    parts = []
    for groups in group_ranges(num_groups, job.algorithm.minibatches):
        index = [
            place
            for place, sample in enumerate(samples)
            if sample.group in groups and _trains(job, sample)
        ]
        if not index:
            continue
        chosen = [samples[place] for place in index]
        rows = rows_of(chosen, width, with_ends=job.algorithm.has_critic)
        of_ranks = rows_of_ranks(
            [row.num_tokens for row in rows],
            max_tokens=job.learner.max_tokens_per_microbatch,
            num_ranks=num_ranks,
        )
        parts.append(
            Minibatch(
                microbatches=[
                    _microbatch(job, [rows[place] for place in part], chosen, index, device)
                    for part in of_ranks[rank]
                ],
                num_tokens=sum(sample.rollout.num_tokens for sample in chosen),
                num_rollouts=len(chosen),
            )
        )
    return parts


def _trains(job: JobConfig, sample: Sample) -> bool:
    was_cut = sample.rollout.finish_reason is FinishReason.LENGTH
    return not (was_cut and job.algorithm.overlong.filter)


def _microbatch(
    job: JobConfig,
    rows: list[Row],
    chosen: list[Sample],
    index: list[int],
    device: torch.device,
) -> Microbatch:
    # The answer of an empty microbatch, all masked, stands for any sample.
    answers = [index[place] for row in rows for place in row.indices] or [0]
    return Microbatch(
        to_tensors(rows, chosen, device, with_ends=job.algorithm.has_critic),
        index_B=torch.tensor(answers),
        num_input_tokens=sum(row.num_tokens for row in rows),
    )
