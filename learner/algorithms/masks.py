"""What is left of a (B, T) tensor where `mask_BT` is 1."""

from __future__ import annotations

import torch
from torch import Tensor


def unmasked(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`values_BT`, with 0 where masked, (B, T). Unlike a product, stops NaN and its gradient."""
    return torch.where(mask_BT > 0, values_BT, 0.0)


def rollout_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over each rollout's unmasked tokens, (B, 1); 0 for a rollout without any."""
    count_B1 = (mask_BT > 0).sum(-1, keepdim=True).clamp(min=1)
    return unmasked(values_BT, mask_BT).sum(-1, keepdim=True) / count_B1
