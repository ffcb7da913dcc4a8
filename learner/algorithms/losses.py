"""Policy losses per token, and their aggregation to a scalar."""

from __future__ import annotations

import torch
from torch import Tensor

from slipstream.config.job import Aggregation

MAX_LOG_RATIO = 20.0  # exp of it is finite in float32, and far outside any clip range


def ppo_clip(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = pi / pi_old, (B, T), 0 where masked.

    PPO, arXiv 1707.06347. `clip_high` above `clip_low` is clip-higher (DAPO, arXiv
    2503.14476). With `dual_clip` c, tokens with A < 0 lose at most -c A (arXiv 1912.09729).
    Metrics are sums over unmasked tokens: `clip_share`, `ratio`, `kl_old` (k3).
    """
    log_ratio_BT = torch.where(mask_BT > 0, logprobs_BT - old_logprobs_BT, 0.0)
    log_ratio_BT = log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_BT = log_ratio_BT.exp()
    plain_BT = -ratio_BT * advantages_BT
    clipped_BT = -ratio_BT.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages_BT
    loss_BT = torch.maximum(plain_BT, clipped_BT)
    if dual_clip is not None:
        bounded_BT = torch.minimum(loss_BT, -dual_clip * advantages_BT)
        loss_BT = torch.where(advantages_BT < 0, bounded_BT, loss_BT)
    with torch.no_grad():
        metrics = {
            "clip_share": ((clipped_BT > plain_BT) * mask_BT).sum(),
            "ratio": (ratio_BT * mask_BT).sum(),
            "kl_old": ((ratio_BT - 1.0 - log_ratio_BT) * mask_BT).sum(),
        }
    return torch.where(mask_BT > 0, loss_BT, 0.0), metrics


def aggregate(loss_BT: Tensor, mask_BT: Tensor, mode: Aggregation, *, denominator: float) -> Tensor:
    """The scalar that is minimised: a sum over this microbatch over a *global* denominator.

    `denominator` is that of the whole optimizer step, over all ranks and microbatches, so
    that how the batch is cut never changes the gradient (see `denominator_of`).
    """
    masked_BT = torch.where(mask_BT > 0, loss_BT, 0.0)
    if mode == "seq_mean_token_mean":
        return (masked_BT.sum(-1) / mask_BT.sum(-1).clamp(min=1.0)).sum() / denominator
    return masked_BT.sum() / denominator


def denominator_of(
    mode: Aggregation, *, num_tokens: int, num_rollouts: int, max_tokens: int
) -> float:
    """What `aggregate` divides by: trained tokens, rollouts, or rollouts times the longest
    answer allowed (Dr.GRPO's constant, arXiv 2503.20783), of the whole optimizer step."""
    match mode:
        case "token_mean":
            return float(num_tokens)
        case "seq_mean_token_mean" | "seq_mean_token_sum":
            return float(num_rollouts)
        case "token_sum_norm":
            return float(num_rollouts * max_tokens)
