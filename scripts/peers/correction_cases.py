"""Corrections for what sampled that have one definition. Compared where tokens train: at others our
weights are 1 and verl's 0, and the loss is 0 anyway."""

from __future__ import annotations

from case import FINITE, Case, of_draw
from draws import Draw
from loss_cases import scalar
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer
from verl_side import policy_loss, rejection, weights

from learner.algorithms.corrections import (
    geometric_mask,
    icepop,
    opposite_sign_mask,
    truncated_weights,
)
from learner.algorithms.losses import policy_gradient

LOW, HIGH = 0.8, 1.1
THRESHOLD = 0.01


def correction_cases() -> list[Case]:
    name = "verl `compute_rollout_correction_weights`"
    return [
        *[
            of_draw(
                "`truncated_weights`",
                name,
                lambda d, level=level: (
                    d.mask_BT * truncated_weights(_log_ratio(d), d.mask_BT, level=level, cap=2.0)
                ),
                lambda d, level=level: weights(d, level, 2.0),
                f"`level: {level}`",
            )
            for level in ("token", "sequence")
        ],
        of_draw(
            "`icepop`",
            name,
            lambda d: icepop(_log_ratio(d), d.mask_BT, 0.5, 5.0) * d.mask_BT,
            lambda d: weights(d, "token", "0.5_5.0"),
            scales=FINITE,  # where all weights are 0 verl's metrics divide by 0
        ),
        of_draw(
            "`geometric_mask`",
            "verl `compute_rollout_rejection_mask` seq_mean_k1",
            lambda d: geometric_mask(_log_ratio(d), d.mask_BT, LOW, HIGH) * d.mask_BT,
            lambda d: rejection(d, "seq_mean_k1", f"{1 / HIGH}_{1 / LOW}"),
            "verl's bounds are of the inverse ratio",
            scales=FINITE,  # verl clamps before it takes the mean
        ),
        of_draw(
            "`opposite_sign_mask`",
            "TRL `GRPOTrainer.get_off_policy_mask`",
            _opposite_sign,
            lambda d: (
                d.mask_BT
                * GRPOTrainer.get_off_policy_mask(
                    d.advantages_B[:, None], d.old_BT, d.mu_BT, d.mask_BT, THRESHOLD
                )
            ),
        ),
        Case(
            "`truncated_weights`, `policy_gradient`",
            "verl `compute_policy_loss_gpg`, weighted",
            _weighted,
            lambda d, x: policy_loss("gpg", d, x, weights_BT=weights(d, "token", 2.0)),
            "weights are constant, and no part of the denominator",
        ),
    ]


def _log_ratio(draw: Draw) -> Tensor:
    return draw.old_BT - draw.mu_BT


def _opposite_sign(draw: Draw) -> Tensor:
    advantages_BT = draw.advantages_B[:, None].expand_as(draw.mask_BT)
    kept_BT = opposite_sign_mask(_log_ratio(draw), draw.mask_BT, advantages_BT, THRESHOLD)
    return kept_BT * draw.mask_BT


def _weighted(draw: Draw, logprobs_BT: Tensor) -> Tensor:
    advantages_BT, mask_BT = draw.advantages_BT, draw.mask_BT
    loss_BT, _ = policy_gradient(logprobs_BT, draw.old_BT, advantages_BT, mask_BT)
    return scalar(loss_BT * truncated_weights(_log_ratio(draw), mask_BT), draw)
