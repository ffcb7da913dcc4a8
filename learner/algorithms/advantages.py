"""From scores to advantages. Float32 in and out, no in-place change.

Sums and means are taken in float64: in float32 the mean of equal scores rounds, and what
should be 0 would be divided by a sigma of that rounding's size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from learner.algorithms.masks import unmasked

AllSum = Callable[[Tensor], Tensor]


def _one_rank(values: Tensor) -> Tensor:
    """The sum over ranks where there is only one."""
    return values


# --- one number a rollout ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MovingAverage:
    """Average of the batches' mean scores, the older ones faded by `decay` a batch.

    `value` is None before the first batch. `dataclasses.asdict` gives what JSON can hold.
    """

    decay: float = 0.9
    value: float | None = None

    def update(self, scores_B: Tensor) -> MovingAverage:
        """decay * value + (1 - decay) * mean; the mean itself in the first batch."""
        mean = float(scores_B.double().mean())
        value = mean if self.value is None else self.decay * self.value + (1 - self.decay) * mean
        return replace(self, value=value)


def reinforce(
    scores_B: Tensor,
    *,
    baseline: Literal["none", "batch_mean", "moving_average", "optimal"] = "none",
    average: float | None = None,
    lengths_B: Tensor | None = None,
    group_B: Tensor | None = None,
) -> Tensor:
    """Score minus baseline, (B,). Williams 1992.

    `moving_average`: `average` is that of the batches *before* this one (`MovingAverage.value`),
    so that no score is in its own baseline; in the first batch, None, the batch's mean is used.
    `optimal`: sum(l r) / sum(l), the constant that minimises the gradient's variance if the squared
    norm of an answer's gradient is proportional to its length l: `lengths_B`, in trained tokens
    (OPO, arXiv 2505.23585). Over the batch; with `group_B`, as in the paper, over each group.
    """
    if baseline == "none":
        return scores_B.clone()
    values_B = scores_B.double()
    match baseline:
        case "batch_mean":
            baseline_B = values_B.mean()
        case "moving_average":
            baseline_B = values_B.mean() if average is None else values_B.new_tensor(average)
        case "optimal":
            if lengths_B is None:
                raise ValueError("the optimal baseline weighs the scores by lengths_B")
            lengths_B = lengths_B.double()
            index_B = torch.zeros_like(scores_B, dtype=torch.long)
            if group_B is not None:
                index_B = _index_of(group_B)
            # Answers without a token weigh nothing: of such alone the baseline is 0.
            weight_B = _group_sum(lengths_B, index_B).clamp(min=torch.finfo(torch.double).tiny)
            baseline_B = _group_sum(lengths_B * values_B, index_B) / weight_B
    return (values_B - baseline_B).to(scores_B.dtype)


def rloo(scores_B: Tensor, group_B: Tensor) -> Tensor:
    """Score minus the mean of the *other* rollouts of its group, (B,). arXiv 2402.14740.

    A rollout alone in its group has no baseline; its advantage is 0, as in `grpo`, and it is not
    trained on: its bare score would push it up or down whatever its worth, and by far more than
    the centred scores beside it.
    """
    values_B, index_B = scores_B.double(), _index_of(group_B)
    size_B = _group_sum(torch.ones_like(values_B), index_B)
    # r - (S - r) / (n - 1) = (r - S / n) n / (n - 1), which is exactly 0 for equal scores.
    centred_B = values_B - _group_sum(values_B, index_B) / size_B
    return (centred_B * size_B / (size_B - 1.0).clamp(min=1.0)).to(scores_B.dtype)


def remax(scores_B: Tensor, greedy_scores_B: Tensor) -> Tensor:
    """Score minus that of the greedy answer to the same prompt, (B,). arXiv 2310.10505."""
    return scores_B - greedy_scores_B


def grpo(
    scores_B: Tensor,
    group_B: Tensor,
    *,
    scale: Literal["group", "batch", "none"] = "group",
    unbiased: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """(r - mean of the group) / (sigma + eps), (B,). DeepSeekMath, arXiv 2402.03300.

    `group_B` numbers each rollout's group. `scale`: sigma of the group, of the whole batch,
    or none at all (Dr.GRPO, arXiv 2503.20783). `unbiased` divides by n - 1; the sigma of a
    single rollout is then 0, as it is without.
    """
    dtype = scores_B.dtype
    scores_B = scores_B.double()
    index_B = _index_of(group_B)
    size_B = _group_sum(torch.ones_like(scores_B), index_B)
    centred_B = scores_B - _group_sum(scores_B, index_B) / size_B
    match scale:
        case "none":
            return centred_B.to(dtype)
        case "group":
            squares_B, count_B = _group_sum(centred_B**2, index_B), size_B
        case "batch":
            squares_B = ((scores_B - scores_B.mean()) ** 2).sum().expand_as(scores_B)
            count_B = torch.full_like(scores_B, float(len(scores_B)))
    sigma_B = (squares_B / (count_B - float(unbiased)).clamp(min=1.0)).sqrt()
    return (centred_B / (sigma_B + eps)).to(dtype)


# --- one number a token -----------------------------------------------------------


def reward_to_go(rewards_BT: Tensor, mask_BT: Tensor, gamma: float = 1.0) -> Tensor:
    """R_t = r_t + gamma R_(t+1), (B, T), 0 where masked. Sutton and Barto 2018, section 3.3.

    Masked tokens pass the running return through: they neither add reward nor discount it.
    """
    return _discounted_sum(rewards_BT.double(), mask_BT, gamma).to(rewards_BT.dtype)


def reinforce_plus_plus(
    rewards_BT: Tensor,
    mask_BT: Tensor,
    gamma: float = 1.0,
    *,
    group_B: Tensor | None = None,
    all_sum: AllSum = _one_rank,
) -> Tensor:
    """Reward-to-go, whitened over the unmasked tokens of all ranks, (B, T). arXiv 2501.03262.

    With `group_B`, REINFORCE++-baseline: the mean of the group's total rewards is first taken
    off each rollout's last reward, so that it is discounted as an outcome reward is. A group
    lies on one rank. `all_sum`: see `whiten`.
    """
    clean_BT = unmasked(rewards_BT.double(), mask_BT)
    if group_B is not None:
        index_B, total_B = _index_of(group_B), clean_BT.sum(-1)
        mean_B = _group_sum(total_B, index_B) / _group_sum(torch.ones_like(total_B), index_B)
        last_BT = _next_unmasked(mask_BT) == mask_BT.shape[-1]  # and what is masked behind it
        clean_BT = torch.where(last_BT, clean_BT - mean_B[:, None], clean_BT)
    returns_BT = _discounted_sum(clean_BT, mask_BT, gamma)
    return whiten(returns_BT, mask_BT, all_sum=all_sum).to(rewards_BT.dtype)


def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    gamma: float,
    lam: float,
    *,
    bootstrap_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(advantages, returns), each (B, T), 0 where masked, not whitened. arXiv 1506.02438.

    delta_t = r_t + gamma V_(t+1) - V_t; A_t = delta_t + gamma lam A_(t+1); return = A + V. t + 1 is
    the next unmasked token. Behind a rollout's last one the value is `bootstrap_B`, for answers
    that were cut by length; 0 by default, for those that ended.
    """
    clean_BT = unmasked(values_BT.double(), mask_BT)
    next_BT = _next_values(clean_BT, mask_BT, bootstrap_B)
    delta_BT = rewards_BT.double() + gamma * next_BT - clean_BT
    advantages_BT = _discounted_sum(delta_BT, mask_BT, gamma * lam)
    dtype = values_BT.dtype
    return advantages_BT.to(dtype), (advantages_BT + clean_BT).to(dtype)


def n_step(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    gamma: float,
    n: int,
    *,
    bootstrap_B: Tensor | None = None,
) -> Tensor:
    """r_t + ... + gamma^(n-1) r_(t+n-1) + gamma^n V_(t+n) - V_t, (B, T), 0 where masked.

    `n` counts unmasked tokens; where fewer follow, the sum ends with the answer, in `bootstrap_B`
    as in `gae`. A3C, arXiv 1602.01783.
    """
    clean_BT = unmasked(values_BT.double(), mask_BT)
    target_BT = clean_BT
    for _ in range(min(n, mask_BT.shape[-1])):  # one step of look-ahead a turn
        target_BT = rewards_BT.double() + gamma * _next_values(target_BT, mask_BT, bootstrap_B)
    return unmasked(target_BT - clean_BT, mask_BT).to(values_BT.dtype)


def whiten(
    x_BT: Tensor, mask_BT: Tensor, *, shift_mean: bool = True, all_sum: AllSum = _one_rank
) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over the unmasked entries, (B, T), 0 where masked.

    var with n - 1; without `shift_mean` the mean is added back. `all_sum` sums a tensor over the
    ranks (it may do so in place), which makes mean and var those of all ranks' entries; every
    rank must then call, also one without unmasked entries.
    """
    clean_BT = unmasked(x_BT.double(), mask_BT)
    count, total = all_sum(torch.stack([(mask_BT > 0).sum().double(), clean_BT.sum()]))
    mean = total / count.clamp(min=1.0)
    centred_BT = unmasked(clean_BT - mean, mask_BT)
    variance = all_sum((centred_BT**2).sum()) / (count - 1.0).clamp(min=1.0)
    white_BT = centred_BT / (variance + 1e-8).sqrt() + (0.0 if shift_mean else mean)
    return unmasked(white_BT, mask_BT).to(x_BT.dtype)


# --- shared -----------------------------------------------------------------------


def _index_of(group_B: Tensor) -> Tensor:
    """The groups' numbers from 0 on, (B,)."""
    index_B: Tensor = torch.unique(group_B, return_inverse=True)[1]
    return index_B


def _group_sum(values_B: Tensor, index_B: Tensor) -> Tensor:
    """Each entry's group total, (B,)."""
    totals = torch.zeros(int(index_B.max()) + 1, dtype=values_B.dtype, device=values_B.device)
    return totals.index_add(0, index_B, values_B)[index_B]


def _discounted_sum(terms_BT: Tensor, mask_BT: Tensor, decay: float) -> Tensor:
    """S_t = x_t + decay S_(t+1) over the unmasked tokens alone, (B, T), 0 where masked."""
    running_B = torch.zeros_like(terms_BT[:, 0])
    sums = []
    for t in reversed(range(terms_BT.shape[-1])):
        running_B = torch.where(mask_BT[:, t] > 0, terms_BT[:, t] + decay * running_B, running_B)
        sums.append(running_B)
    return unmasked(torch.stack(sums[::-1], dim=-1), mask_BT)


def _next_unmasked(mask_BT: Tensor) -> Tensor:
    """The position of the first unmasked token behind each, T if there is none, (B, T)."""
    num_tokens = mask_BT.shape[-1]
    places_T = torch.arange(num_tokens, device=mask_BT.device)
    places_BT = torch.where(mask_BT > 0, places_T, num_tokens)
    here_BT = places_BT.flip(-1).cummin(-1).values.flip(-1)  # this token or the first behind it
    return torch.cat([here_BT[:, 1:], torch.full_like(here_BT[:, :1], num_tokens)], dim=-1)


def _next_values(values_BT: Tensor, mask_BT: Tensor, bootstrap_B: Tensor | None) -> Tensor:
    """V of the next unmasked token, (B, T); behind the last one `bootstrap_B`, or 0."""
    end_B = torch.zeros_like(values_BT[:, 0]) if bootstrap_B is None else bootstrap_B
    padded_BT = torch.cat([values_BT, end_B.to(values_BT.dtype)[:, None]], dim=-1)
    return padded_BT.gather(-1, _next_unmasked(mask_BT))
