"""Policy losses per token, the critic's, and their aggregation to a scalar.

Every policy loss takes log-probs of pi (with gradient), those of pi_old, advantages and the mask,
each (B, T) with one rollout a row, and returns (loss_BT, metrics). The loss is 0 where masked.
Metrics are sums over unmasked tokens: `ratio` and `kl_old` (k3) of pi / pi_old, and what the loss
adds to them. r is that ratio, A the advantage; sg(x) is x held constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.algorithms.masks import rollout_mean, unmasked
from slipstream.config.algorithm import Aggregation

MAX_LOG_RATIO = 20.0  # exp of it is finite in float32, and far outside any clip range

LossAndMetrics = tuple[Tensor, dict[str, Tensor]]


def policy_gradient(
    logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor
) -> LossAndMetrics:
    """-A log pi, (B, T): REINFORCE, Williams 1992. `old_logprobs_BT` is for the metrics alone."""
    log_ratio_BT = _log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    loss_BT = -unmasked(advantages_BT, mask_BT) * unmasked(logprobs_BT, mask_BT)
    return loss_BT, _ratio_metrics(log_ratio_BT, mask_BT)


def ppo_clip(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> LossAndMetrics:
    """-min(r A, clip(r, 1 - low, 1 + high) A), (B, T). PPO, arXiv 1707.06347.

    `clip_high` above `clip_low` is clip-higher (DAPO, arXiv 2503.14476). With `dual_clip` c, tokens
    with A < 0 lose at most -c A (arXiv 1912.09729). Adds `clip_share`.
    """
    log_ratio_BT = _log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    loss_BT, clipped_BT = _clipped(log_ratio_BT.exp(), advantages_BT, clip_low, clip_high)
    if dual_clip is not None:
        bounded_BT = torch.minimum(loss_BT, -dual_clip * advantages_BT)
        loss_BT = torch.where(advantages_BT < 0, bounded_BT, loss_BT)
    metrics = _ratio_metrics(log_ratio_BT, mask_BT) | {"clip_share": _count(clipped_BT, mask_BT)}
    return unmasked(loss_BT, mask_BT), metrics


def ppo_kl(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    beta: float = 1.0,
) -> LossAndMetrics:
    """-(r A - beta KL(pi_old || pi)), (B, T). PPO's penalty form, arXiv 1707.06347, section 4.

    KL by k3 on pi_old's samples, r - 1 - log r: unbiased in value and in gradient, never negative,
    and its gradient r - 1 is 0 where the policies agree. `kl_old` over the number of tokens is what
    `AdaptiveKLController` takes to change `beta`.
    """
    log_ratio_BT = _log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    ratio_BT = log_ratio_BT.exp()
    loss_BT = beta * (ratio_BT - 1.0 - log_ratio_BT) - ratio_BT * advantages_BT
    return unmasked(loss_BT, mask_BT), _ratio_metrics(log_ratio_BT, mask_BT)


def gspo(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> LossAndMetrics:
    """-min(s A, clip(s, 1 - low, 1 + high) A), (B, T). GSPO-token, arXiv 2507.18071.

    s = sg(S) pi / sg(pi), with S = exp(mean of log r over the rollout's unmasked tokens). Its value
    is S, its gradient the token's own: where a rollout's advantages are equal, the mean over its
    tokens (`seq_mean_token_mean`) has the gradient of the sequence's loss. Adds `clip_share`;
    `ratio` and `kl_old` remain those of tokens.
    """
    log_ratio_BT = _log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    mean_B1 = rollout_mean((logprobs_BT - old_logprobs_BT).detach(), mask_BT)
    # 0 in value; added to the mean before the clamp, which then stops the gradient too.
    own_BT = unmasked(logprobs_BT - logprobs_BT.detach(), mask_BT)
    ratio_BT = (mean_B1 + own_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    loss_BT, clipped_BT = _clipped(ratio_BT, advantages_BT, clip_low, clip_high)
    metrics = _ratio_metrics(log_ratio_BT, mask_BT) | {"clip_share": _count(clipped_BT, mask_BT)}
    return unmasked(loss_BT, mask_BT), metrics


def cispo(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
) -> LossAndMetrics:
    """-sg(clip(r, 1 - low, 1 + high)) A log pi, (B, T). MiniMax-M1, arXiv 2506.13585.

    No token loses its gradient. As in the paper there is no lower bound by default; the upper one,
    5, is of arXiv 2510.13786. Adds `clip_share`, the tokens with r outside the bounds.
    """
    log_ratio_BT = _log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    ratio_BT = log_ratio_BT.detach().exp()
    weight_BT = ratio_BT.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss_BT = -weight_BT * unmasked(advantages_BT, mask_BT) * unmasked(logprobs_BT, mask_BT)
    clip_share = _count(weight_BT != ratio_BT, mask_BT)
    return loss_BT, _ratio_metrics(log_ratio_BT, mask_BT) | {"clip_share": clip_share}


def sapo(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
) -> LossAndMetrics:
    """-sigmoid(tau (r - 1)) 4 / tau A, (B, T). Soft clipping, SAPO, arXiv 2511.20347.

    tau is `tau_pos` where A > 0, else `tau_neg`. At r = 1 the gradient is -A whatever tau; it
    fades away from 1, the faster the larger tau.
    """
    log_ratio_BT = _log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    both = log_ratio_BT.new_tensor([tau_pos, tau_neg])
    tau_BT = torch.where(advantages_BT > 0, both[0], both[1])
    gate_BT = (tau_BT * (log_ratio_BT.exp() - 1.0)).sigmoid() * 4.0 / tau_BT
    return unmasked(-gate_BT * advantages_BT, mask_BT), _ratio_metrics(log_ratio_BT, mask_BT)


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip: float | None = None,
) -> LossAndMetrics:
    """The critic's 1/2 (V - R)^2, (B, T), 0 where masked.

    With `clip` c, 1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2), as in OpenAI's PPO.
    Metrics are sums over unmasked tokens: `value`, `value_error` (the plain square) and
    `value_clip_share`.
    """
    values_BT, returns_BT = unmasked(values_BT, mask_BT), unmasked(returns_BT, mask_BT)
    plain_BT = (values_BT - returns_BT) ** 2
    square_BT = plain_BT
    if clip is not None:
        old_BT = unmasked(old_values_BT, mask_BT)
        near_BT = torch.clamp(values_BT, old_BT - clip, old_BT + clip)
        square_BT = torch.maximum(plain_BT, (near_BT - returns_BT) ** 2)
    metrics = {
        "value": values_BT.detach().sum(),
        "value_error": plain_BT.detach().sum(),
        "value_clip_share": _count(square_BT > plain_BT, mask_BT),
    }
    return 0.5 * square_BT, metrics


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


def _log_ratio(logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log pi - log pi_old, (B, T), 0 where masked; beyond the clamp it has no gradient."""
    log_ratio_BT = unmasked(logprobs_BT - old_logprobs_BT, mask_BT)
    return log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _clipped(
    ratio_BT: Tensor, advantages_BT: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic loss, and where clipping raised it, (B, T)."""
    plain_BT = -ratio_BT * advantages_BT
    clipped_BT = -ratio_BT.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages_BT
    return torch.maximum(plain_BT, clipped_BT), clipped_BT > plain_BT


@torch.no_grad()
def _ratio_metrics(log_ratio_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    ratio_BT = log_ratio_BT.exp()
    return {
        "ratio": (ratio_BT * mask_BT).sum(),
        "kl_old": ((ratio_BT - 1.0 - log_ratio_BT) * mask_BT).sum(),
    }


def _count(flags_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return (flags_BT * mask_BT).sum()
