"""Weights that correct for sampling from another policy than the one that is trained.

`log_ratio_BT` is log pi_old - log mu, (B, T) with one rollout a row. Weights are multiplied into
the loss per token: constant (no gradient), 1 where masked, clamped in log space before `exp`. A
weight of 0 takes a token out of the sum and never out of the denominator, so that what is left
gains no weight.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from learner.algorithms.losses import MAX_LOG_RATIO
from learner.algorithms.masks import rollout_mean, unmasked


def truncated_weights(
    log_ratio_BT: Tensor,
    mask_BT: Tensor,
    *,
    level: Literal["token", "sequence"] = "token",
    cap: float | Tensor = 2.0,
) -> Tensor:
    """min(pi_old / mu, cap) per token, or of the whole answer's product, (B, T).

    `cap` is a number, or one a token (see `cap_by_lag`). Truncated importance sampling: Yao et
    al. 2025, "On the rollout-training mismatch in modern RL systems".
    """
    log_ratio_BT = unmasked(log_ratio_BT.detach(), mask_BT)
    if level == "sequence":
        log_ratio_BT = log_ratio_BT.sum(-1, keepdim=True).expand_as(log_ratio_BT)
    log_cap = torch.as_tensor(cap, dtype=log_ratio_BT.dtype, device=log_ratio_BT.device).log()
    weights_BT = torch.minimum(log_ratio_BT, log_cap).exp()
    return torch.where(mask_BT > 0, weights_BT, 1.0)


def cap_by_lag(lags_BT: Tensor, cap: float = 2.0, *, decay: float = 0.9) -> Tensor:
    """1 + (cap - 1) decay^lag, any shape: the older a token's policy, the nearer the cap to 1.

    `lags_BT` counts the learner's versions since the token was sampled. For `truncated_weights`;
    our own rule, not of a paper.
    """
    return 1.0 + (cap - 1.0) * decay ** lags_BT.to(torch.get_default_dtype())


def icepop(log_ratio_BT: Tensor, mask_BT: Tensor, low: float, high: float) -> Tensor:
    """pi_old / mu where it is inside [low, high], else 0, (B, T). IcePop, arXiv 2510.18855."""
    ratio_BT = _ratio(unmasked(log_ratio_BT, mask_BT))
    inside_BT = (ratio_BT >= low) & (ratio_BT <= high)
    return torch.where(mask_BT > 0, ratio_BT * inside_BT, 1.0)


def geometric_mask(log_ratio_BT: Tensor, mask_BT: Tensor, low: float, high: float) -> Tensor:
    """1 for rollouts whose exp(mean of log(pi_old / mu)) is inside [low, high], else 0, (B, T).

    The mean, unlike the product, does not drop answers because they are long.
    """
    ratio_B1 = _ratio(rollout_mean(log_ratio_BT, mask_BT))
    kept_B1 = (ratio_B1 >= low) & (ratio_B1 <= high)
    return torch.where(mask_BT > 0, kept_B1.to(log_ratio_BT.dtype), 1.0)


def opposite_sign_mask(
    log_ratio_BT: Tensor, mask_BT: Tensor, advantages_BT: Tensor, threshold: float
) -> Tensor:
    """0 for tokens with A < 0 in rollouts with KL(mu || pi) > threshold, else 1, (B, T).

    `log_ratio_BT` is log pi - log mu here, with what this step's updates have moved. KL is the mean
    of its negative over the rollout's unmasked tokens, k1 on mu's samples: answers that were bad
    and that the policy has moved away from already. DeepSeek-V3.2, arXiv 2512.02556.
    """
    kl_B1 = -rollout_mean(log_ratio_BT.detach(), mask_BT)
    dropped_BT = (mask_BT > 0) & (advantages_BT < 0) & (kl_B1 > threshold)
    return (~dropped_BT).to(log_ratio_BT.dtype)


def _ratio(log_ratio: Tensor) -> Tensor:
    return log_ratio.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
