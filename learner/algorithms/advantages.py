"""From scores to advantages. Float32 in and out, no in-place change."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


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
    # In float32 the mean of equal scores rounds, and sigma would be of that rounding's size.
    scores_B = scores_B.double()
    _, index_B = torch.unique(group_B, return_inverse=True)
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


def reinforce(scores_B: Tensor, *, baseline: Literal["none", "batch_mean"] = "none") -> Tensor:
    """Score minus baseline, (B,). Williams 1992."""
    return scores_B - scores_B.mean() if baseline == "batch_mean" else scores_B.clone()


def _group_sum(values_B: Tensor, index_B: Tensor) -> Tensor:
    """Each entry's group total, (B,)."""
    totals = torch.zeros(int(index_B.max()) + 1, dtype=values_B.dtype, device=values_B.device)
    return totals.index_add(0, index_B, values_B)[index_B]
