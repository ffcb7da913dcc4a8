"""The loss of one microbatch: the policy's, its correction, KL and entropy terms."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.algorithms import losses
from learner.algorithms.corrections import (
    cap_by_lag,
    geometric_mask,
    icepop,
    opposite_sign_mask,
    truncated_weights,
)
from learner.algorithms.kl import kl_estimate
from learner.algorithms.losses import LossAndMetrics, aggregate, value_loss
from learner.minibatch import Microbatch
from learner.state import AlgorithmState
from slipstream.config.algorithm import AlgorithmConfig, CorrectionConfig, LossConfig, MaskConfig


def loss_of(
    algorithm: AlgorithmConfig,
    state: AlgorithmState,
    entry: Microbatch,
    logprobs_BT: Tensor,
    entropies_BT: Tensor,
    *,
    denominator: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The microbatch's share of the loss, and metrics as sums over its tokens.

    A group's weight is a factor on the whole of it; what is divided by does not know of it.
    """
    tensors, advantages_BT = entry.tensors, entry.advantages_BT
    assert advantages_BT is not None
    mask_BT, mu_BT = tensors.mask_BT, tensors.behaviour_logprobs_BT
    old_BT = logprobs_BT.detach() if entry.old_logprobs_BT is None else entry.old_logprobs_BT
    loss_BT, metrics = policy_loss(
        algorithm.loss, state, logprobs_BT, old_BT, advantages_BT, mask_BT
    )
    mismatch_BT = (old_BT - mu_BT) * mask_BT
    weights_BT = correction_weights(algorithm.correction, mismatch_BT, mask_BT, tensors.lags_BT)
    if algorithm.mask is not None:
        moved_BT = (logprobs_BT.detach() - mu_BT) * mask_BT
        kept_BT = mask_of(algorithm.mask, mismatch_BT, moved_BT, advantages_BT, mask_BT)
        metrics["masked_share"] = ((1.0 - kept_BT) * mask_BT).sum()
        weights_BT = weights_BT * kept_BT
    loss_BT = loss_BT * weights_BT
    if entry.reference_logprobs_BT is not None:
        kl_BT = kl_estimate(logprobs_BT, entry.reference_logprobs_BT, algorithm.kl.estimator)
        metrics["kl_reference"] = (kl_BT.detach() * mask_BT).sum()
        if algorithm.kl.place == "loss":
            loss_BT = loss_BT + state.kl_coefficient * kl_BT * mask_BT
    if state.entropy_coefficient > 0:
        loss_BT = loss_BT - state.entropy_coefficient * entropies_BT
    loss_BT = loss_BT * tensors.weights_B[:, None]
    loss = aggregate(loss_BT, mask_BT, algorithm.aggregate, denominator=denominator)
    return loss, metrics | {
        "loss": loss.detach(),
        "num_tokens": mask_BT.sum(),
        "entropy": entropies_BT.detach().sum(),
        "mu_mismatch": mismatch_BT.abs().sum(),
        "correction_weight": (weights_BT * mask_BT).sum(),
        "group_weight": (tensors.weights_B[:, None] * mask_BT).sum(),
        "input_tokens": mask_BT.new_tensor(entry.num_input_tokens),
        "padded_tokens": mask_BT.new_tensor(tensors.rows.inputs_RS.numel()),
    }


def critic_loss_of(
    clip: float | None, entry: Microbatch, values_BU: Tensor, *, num_tokens: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The microbatch's share of the critic's loss, the mean over all trained tokens."""
    assert entry.old_values_BU is not None and entry.returns_BT is not None
    mask_BT, old_BT = entry.tensors.mask_BT, entry.old_values_BU[:, :-1]
    loss_BT, metrics = value_loss(values_BU[:, :-1], old_BT, entry.returns_BT, mask_BT, clip=clip)
    loss_BT = loss_BT * entry.tensors.weights_B[:, None]
    return aggregate(loss_BT, mask_BT, "token_mean", denominator=max(1, num_tokens)), metrics


def policy_loss(
    config: LossConfig,
    state: AlgorithmState,
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
) -> LossAndMetrics:
    """The function of `learner.algorithms.losses` that the job file names, with its arguments."""
    arguments = config.arguments()
    if config.kind == "ppo_kl":
        arguments["beta"] = state.beta
    function = getattr(losses, config.kind)
    result: LossAndMetrics = function(
        logprobs_BT, old_logprobs_BT, advantages_BT, mask_BT, **arguments
    )
    return result


def correction_weights(
    config: CorrectionConfig, mismatch_BT: Tensor, mask_BT: Tensor, lags_BT: Tensor
) -> Tensor:
    """(B, T) constants; `mismatch_BT` is log pi_old - log mu."""
    match config.kind:
        case "none":
            return torch.ones_like(mask_BT)
        case "truncated":
            cap_BT = cap_by_lag(lags_BT, config.cap, decay=config.lag_decay)
            return truncated_weights(mismatch_BT, mask_BT, level=config.level, cap=cap_BT)
        case "icepop":
            return icepop(mismatch_BT, mask_BT, config.low, config.high)


def mask_of(
    config: MaskConfig,
    mismatch_BT: Tensor,
    moved_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
) -> Tensor:
    """(B, T), 0 for tokens that do not train and still count in the denominator. `mismatch_BT` is
    log pi_old - log mu, `moved_BT` log pi - log mu."""
    match config.kind:
        case "geometric":
            return geometric_mask(mismatch_BT, mask_BT, config.low, config.high)
        case "opposite_sign":
            return opposite_sign_mask(moved_BT, mask_BT, advantages_BT, config.threshold)
