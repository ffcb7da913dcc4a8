"""Weights that correct for sampling from another policy than the one that is trained."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor


def truncated_weights(
    log_ratio_BT: Tensor,
    mask_BT: Tensor,
    *,
    level: Literal["token", "sequence"] = "token",
    cap: float = 2.0,
) -> Tensor:
    """min(pi_old / mu, cap) per token, or of the whole answer's product, (B, T).

    `log_ratio_BT` is log pi_old - log mu. Clamped in log space before `exp`; constant
    (no gradient); 1 where masked. Truncated importance sampling, arXiv 2508.03501.
    """
    log_ratio_BT = torch.where(mask_BT > 0, log_ratio_BT.detach(), 0.0)
    if level == "sequence":
        log_ratio_BT = log_ratio_BT.sum(-1, keepdim=True).expand_as(log_ratio_BT)
    weights_BT = log_ratio_BT.clamp(max=math.log(cap)).exp()
    return torch.where(mask_BT > 0, weights_BT, 1.0)
