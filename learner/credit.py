"""From scores to advantages: which function, on which tensors. The formulas are in `algorithms`.

An advantage of whole rollouts is computed on every rank from the scores of the whole batch. One
of tokens is computed by each rank for its own answers; what it needs of the others it sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learner.algorithms.advantages import (
    AllSum,
    gae,
    grpo,
    n_step,
    reinforce,
    reinforce_plus_plus,
    remax,
    rloo,
    whiten,
)
from learner.algorithms.kl import kl_estimate
from learner.algorithms.shaping import overlong_penalty
from learner.minibatch import Microbatch
from learner.state import AlgorithmState
from learner.tensors import Sample
from slipstream.config.algorithm import (
    AlgorithmConfig,
    GaeAdvantage,
    GrpoAdvantage,
    NStepAdvantage,
    ReinforceAdvantage,
    ReinforcePlusPlusAdvantage,
    RemaxAdvantage,
    RlooAdvantage,
)
from slipstream.config.job import JobConfig


@dataclass(frozen=True, slots=True)
class Scores:
    """Of all rollouts of the batch, the same on every rank, on the CPU."""

    scores_B: Tensor
    group_B: Tensor
    lengths_B: Tensor
    greedy_B: Tensor  # of the greedy answer to the same prompt, NaN where there is none


def scores_of(job: JobConfig, samples: Sequence[Sample]) -> Scores:
    """Rewards, with the penalty on overlong answers."""
    lengths_B = torch.tensor([sample.rollout.num_tokens for sample in samples])
    scores_B = torch.tensor([sample.rollout.reward for sample in samples])
    overlong = job.algorithm.overlong
    if overlong.buffer_tokens:
        limit, buffer = job.rollout.max_new_tokens, overlong.buffer_tokens
        scores_B = scores_B + overlong_penalty(lengths_B, limit, buffer, factor=overlong.penalty)
    greedy = [sample.greedy_reward for sample in samples]
    return Scores(
        scores_B,
        torch.tensor([sample.group for sample in samples]),
        lengths_B,
        torch.tensor([math.nan if reward is None else reward for reward in greedy]),
    )


def assign_advantages(
    algorithm: AlgorithmConfig,
    state: AlgorithmState,
    scores: Scores,
    entries: Sequence[Microbatch],
    all_sum: AllSum,
) -> Tensor:
    """Fill in `advantages_BT` of this rank's microbatches; returns the scores they are of.

    Every rank calls it.
    """
    penalties = [_kl_penalty(algorithm, state, entry) for entry in entries]
    config = algorithm.advantage
    if isinstance(config, ReinforcePlusPlusAdvantage | GaeAdvantage | NStepAdvantage):
        _assign_by_token(config, scores, entries, penalties, all_sum)
        return scores.scores_B
    if algorithm.kl_in_reward:
        total_B = torch.zeros_like(scores.scores_B)  # what KL takes off each rollout
        for entry, penalty_BT in zip(entries, penalties, strict=True):
            total_B.index_add_(0, entry.index_B, penalty_BT.sum(-1).to(total_B))
        device = entries[0].tensors.mask_BT.device
        total_B = all_sum(total_B.to(device)).cpu()
        scores = replace(scores, scores_B=scores.scores_B + total_B)
    advantages_B = _of_rollouts(config, scores, state.average_score)
    for entry in entries:
        mask_BT = entry.tensors.mask_BT
        entry.advantages_BT = advantages_B[entry.index_B].to(mask_BT)[:, None] * mask_BT
    return scores.scores_B


def _of_rollouts(
    config: GrpoAdvantage | RlooAdvantage | RemaxAdvantage | ReinforceAdvantage,
    scores: Scores,
    average_score: float | None,
) -> Tensor:
    """(B,) of all rollouts of the batch."""
    scores_B, group_B = scores.scores_B, scores.group_B
    match config.kind:
        case "grpo":
            return grpo(
                scores_B, group_B, scale=config.scale, unbiased=config.unbiased, eps=config.eps
            )
        case "rloo":
            return rloo(scores_B, group_B)
        case "remax":
            return remax(scores_B, scores.greedy_B)
        case "reinforce":
            return reinforce(
                scores_B,
                baseline=config.baseline,
                average=average_score,
                lengths_B=scores.lengths_B,
                group_B=group_B,
            )


def _assign_by_token(
    config: ReinforcePlusPlusAdvantage | GaeAdvantage | NStepAdvantage,
    scores: Scores,
    entries: Sequence[Microbatch],
    penalties: Sequence[Tensor],
    all_sum: AllSum,
) -> None:
    """This rank's answers in one tensor, because what is whitened is the whole batch."""
    scores_B = scores.scores_B
    if config.kind == "reinforce_plus_plus" and config.baseline == "group_mean":
        scores_B = grpo(scores_B, scores.group_B, scale="none")  # a group can lie on several ranks
    mask_BT = _stacked([entry.tensors.mask_BT for entry in entries])
    index_B = torch.cat([entry.index_B for entry in entries])
    rewards_BT = _stacked(penalties) + _on_last_token(scores_B[index_B].to(mask_BT), mask_BT)
    if config.kind == "reinforce_plus_plus":
        advantages_BT = reinforce_plus_plus(rewards_BT, mask_BT, config.gamma, all_sum=all_sum)
    else:
        values_BT, bootstrap_B = _values(entries)
        if config.kind == "gae":
            advantages_BT, returns_BT = gae(
                rewards_BT, values_BT, mask_BT, config.gamma, config.lam, bootstrap_B=bootstrap_B
            )
        else:
            advantages_BT = n_step(
                rewards_BT, values_BT, mask_BT, config.gamma, config.n, bootstrap_B=bootstrap_B
            )
            returns_BT = advantages_BT + values_BT * mask_BT
        for entry, part_BT in zip(entries, _parted(returns_BT, entries), strict=True):
            entry.returns_BT = part_BT
        if config.whiten:
            advantages_BT = whiten(advantages_BT, mask_BT, all_sum=all_sum)
    for entry, part_BT in zip(entries, _parted(advantages_BT, entries), strict=True):
        entry.advantages_BT = part_BT


def _values(entries: Sequence[Microbatch]) -> tuple[Tensor, Tensor]:
    """The critic's (B, T) before every token, and (B,) behind the last one: 0 where the answer
    ended by itself."""
    tokens, ends = [], []
    for entry in entries:
        assert entry.old_values_BU is not None
        tokens.append(entry.old_values_BU[:, :-1] * entry.tensors.mask_BT)
        last_B1 = entry.tensors.mask_BT.sum(-1, keepdim=True).long()
        ends.append(entry.old_values_BU.gather(-1, last_B1)[:, 0] * entry.tensors.was_cut_B)
    return _stacked(tokens), torch.cat(ends)


def _kl_penalty(algorithm: AlgorithmConfig, state: AlgorithmState, entry: Microbatch) -> Tensor:
    """What KL takes off the reward of each token, (B, T); 0 where it is a term of the loss."""
    mask_BT = entry.tensors.mask_BT
    if not algorithm.kl_in_reward:
        return torch.zeros_like(mask_BT)
    assert entry.old_logprobs_BT is not None and entry.reference_logprobs_BT is not None
    kl_BT = kl_estimate(entry.old_logprobs_BT, entry.reference_logprobs_BT, algorithm.kl.estimator)
    return -state.kl_coefficient * kl_BT * mask_BT


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


def _parted(whole_BT: Tensor, entries: Sequence[Microbatch]) -> Iterator[Tensor]:
    """What `_stacked` put together, in the shapes of `entries`."""
    start = 0
    for entry in entries:
        num_answers, num_tokens = entry.tensors.mask_BT.shape
        yield whole_BT[start : start + num_answers, :num_tokens]
        start += num_answers
