"""From scores to advantages: which function, on which tensors. The formulas are in `algorithms`.

An advantage of whole rollouts is computed on every rank from the scores of the whole batch. One
of tokens is computed by each rank for its own answers; what it needs of the others it sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learner.algorithms.advantages import AllSum, grpo, reinforce, reinforce_plus_plus, rloo
from learner.algorithms.kl import kl_estimate
from learner.algorithms.shaping import overlong_penalty
from learner.minibatch import Microbatch
from learner.state import AlgorithmState
from learner.tensors import Sample
from slipstream.config.algorithm import AdvantageConfig, AlgorithmConfig
from slipstream.config.job import JobConfig


@dataclass(frozen=True, slots=True)
class Scores:
    """Of all rollouts of the batch, the same on every rank, on the CPU."""

    scores_B: Tensor
    group_B: Tensor
    lengths_B: Tensor


def scores_of(job: JobConfig, samples: Sequence[Sample]) -> Scores:
    """Rewards, with the penalty on overlong answers."""
    lengths_B = torch.tensor([sample.rollout.num_tokens for sample in samples])
    scores_B = torch.tensor([sample.rollout.reward for sample in samples])
    overlong = job.algorithm.overlong
    if overlong.buffer_tokens:
        limit, buffer = job.rollout.max_new_tokens, overlong.buffer_tokens
        scores_B = scores_B + overlong_penalty(lengths_B, limit, buffer, factor=overlong.penalty)
    return Scores(scores_B, torch.tensor([sample.group for sample in samples]), lengths_B)


def assign_advantages(
    algorithm: AlgorithmConfig,
    state: AlgorithmState,
    scores: Scores,
    entries: Sequence[Microbatch],
    all_sum: AllSum,
) -> None:
    """Fill in `advantages_BT` of this rank's microbatches. Every rank calls it."""
    penalties = [_kl_penalty(algorithm, state, entry) for entry in entries]
    if algorithm.advantage.kind == "reinforce_plus_plus":
        _assign_by_token(algorithm.advantage, scores, entries, penalties, all_sum)
        return
    if _in_reward(algorithm):
        total_B = torch.zeros_like(scores.scores_B)  # what KL takes off each rollout
        for entry, penalty_BT in zip(entries, penalties, strict=True):
            total_B.index_add_(0, entry.index_B, penalty_BT.sum(-1).to(total_B))
        device = entries[0].tensors.mask_BT.device
        total_B = all_sum(total_B.to(device)).cpu()
        scores = replace(scores, scores_B=scores.scores_B + total_B)
    advantages_B = _of_rollouts(algorithm.advantage, scores, state.average_score)
    for entry in entries:
        mask_BT = entry.tensors.mask_BT
        entry.advantages_BT = advantages_B[entry.index_B].to(mask_BT)[:, None] * mask_BT


def _of_rollouts(config: AdvantageConfig, scores: Scores, average_score: float | None) -> Tensor:
    """(B,) of all rollouts of the batch."""
    scores_B, group_B = scores.scores_B, scores.group_B
    match config.kind:
        case "grpo":
            return grpo(
                scores_B, group_B, scale=config.scale, unbiased=config.unbiased, eps=config.eps
            )
        case "rloo":
            return rloo(scores_B, group_B)
        case "reinforce":
            return reinforce(
                scores_B,
                baseline=config.baseline,
                average=average_score,
                lengths_B=scores.lengths_B,
                group_B=group_B,
            )
        case "reinforce_plus_plus":
            raise AssertionError("one number a token")


def _assign_by_token(
    config: AdvantageConfig,
    scores: Scores,
    entries: Sequence[Microbatch],
    penalties: Sequence[Tensor],
    all_sum: AllSum,
) -> None:
    """This rank's answers in one tensor, because what is whitened is the whole batch."""
    assert config.kind == "reinforce_plus_plus"
    scores_B = scores.scores_B
    if config.baseline == "group_mean":
        scores_B = grpo(scores_B, scores.group_B, scale="none")
    mask_BT = _stacked([entry.tensors.mask_BT for entry in entries])
    index_B = torch.cat([entry.index_B for entry in entries])
    rewards_BT = _stacked(penalties) + _on_last_token(scores_B[index_B].to(mask_BT), mask_BT)
    advantages_BT = reinforce_plus_plus(rewards_BT, mask_BT, config.gamma, all_sum=all_sum)
    start = 0
    for entry in entries:
        num_answers, num_tokens = entry.tensors.mask_BT.shape
        entry.advantages_BT = advantages_BT[start : start + num_answers, :num_tokens]
        start += num_answers


def _kl_penalty(algorithm: AlgorithmConfig, state: AlgorithmState, entry: Microbatch) -> Tensor:
    """What KL takes off the reward of each token, (B, T); 0 where it is a term of the loss."""
    mask_BT = entry.tensors.mask_BT
    if not _in_reward(algorithm):
        return torch.zeros_like(mask_BT)
    assert entry.old_logprobs_BT is not None and entry.reference_logprobs_BT is not None
    kl_BT = kl_estimate(entry.old_logprobs_BT, entry.reference_logprobs_BT, algorithm.kl.estimator)
    return -state.kl_coefficient * kl_BT * mask_BT


def _in_reward(algorithm: AlgorithmConfig) -> bool:
    return algorithm.kl.coefficient > 0 and algorithm.kl.place == "reward"


def _on_last_token(scores_B: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T): each score at its answer's last unmasked token, 0 elsewhere."""
    num_tokens = mask_BT.shape[-1]
    behind_BT = mask_BT.flip(-1).cumsum(-1).flip(-1)  # unmasked tokens from here on
    last_BT = (mask_BT > 0) & (behind_BT == 1)
    return last_BT * scores_B[:, None].expand(-1, num_tokens)


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """(B1 + B2 + ..., longest T), padded with 0."""
    longest = max(part.shape[-1] for part in parts)
    return torch.cat(
        [torch.nn.functional.pad(part, (0, longest - part.shape[-1])) for part in parts]
    )
