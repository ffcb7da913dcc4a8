"""Losses, their aggregation and divergences that have one definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from case import FINITE, NEAR, Case, Side, of_draw
from draws import MAX_TOKENS, Draw
from torch import Tensor
from trl_side import grpo_loss, rloo_loss
from verl.trainer.ppo import core_algos
from verl_side import MODES, NO_DUAL_CLIP, batch_of, policy_loss

from learner.algorithms import losses
from learner.algorithms.corrections import truncated_weights
from learner.algorithms.kl import AdaptiveKLController, kl_estimate
from slipstream.config.algorithm import Aggregation

CLIP = {"clip_low": 0.2, "clip_high": 0.28}
VERL_CLIP = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}
TRL_CLIP = {"epsilon_low": 0.2, "epsilon_high": 0.28}
UNCLIPPED = {"clip_ratio_low": 1e9, "clip_ratio_high": 1e9, "clip_ratio_c": NO_DUAL_CLIP}
TRL_TYPES = {  # the loss that TRL gives each aggregation
    "dapo": "token_mean",
    "grpo": "seq_mean_token_mean",
    "luspo": "seq_mean_token_sum",
    "dr_grpo": "token_sum_norm",
}


def loss_cases() -> list[Case]:
    return [
        *_ppo_clip(),
        *_gspo(),
        *_cispo(),
        *_sapo(),
        *_policy_gradient(),
        _ppo_kl(),
        *_aggregation(),
        *_value_loss(),
        *_kl(),
        _whole(),
    ]


def scalar(loss_BT: Tensor, draw: Draw, mode: Aggregation = "token_mean") -> Tensor:
    mask_BT = draw.mask_BT
    denominator = losses.denominator_of(
        mode,
        num_tokens=int(mask_BT.sum()),
        num_rollouts=len(mask_BT),
        max_tokens=MAX_TOKENS,
    )
    return losses.aggregate(loss_BT, mask_BT, mode, denominator=denominator)


def _ours(
    function: Callable[..., Any],
    *,
    mode: Aggregation = "token_mean",
    by_rollout: bool = False,
    **settings: Any,
) -> Side:
    """`by_rollout`: one advantage an answer, as TRL's losses take it."""

    def side(draw: Draw, logprobs_BT: Tensor) -> Tensor:
        advantages_BT = draw.advantages_BT
        if by_rollout:
            advantages_BT = draw.advantages_B[:, None].expand_as(advantages_BT)
        loss_BT, _ = function(logprobs_BT, draw.old_BT, advantages_BT, draw.mask_BT, **settings)
        return scalar(loss_BT, draw, mode)

    return side


def _verl(name: str, mode: Aggregation = "token_mean", **settings: Any) -> Side:
    return lambda draw, x: policy_loss(name, draw, x, mode=mode, **settings)


def _trl(loss_type: str, **settings: Any) -> Side:
    return lambda draw, x: grpo_loss(draw, x, loss_type=loss_type, **settings)


def _ppo_clip() -> list[Case]:
    vanilla = "verl `compute_policy_loss_vanilla`"
    dual = {"dual_clip": 3.0}
    open_above = VERL_CLIP | {"clip_ratio_c": NO_DUAL_CLIP}
    ppo = losses.ppo_clip
    return [
        Case(
            "`ppo_clip`",
            vanilla,
            _ours(ppo),
            _verl("vanilla", clip_ratio_c=NO_DUAL_CLIP),
            "clip 0.2; verl's dual clip put out of reach",
        ),
        Case(
            "`ppo_clip`", vanilla, _ours(ppo, **CLIP), _verl("vanilla", **open_above), "0.2, 0.28"
        ),
        Case(
            "`ppo_clip`",
            vanilla,
            _ours(ppo, **CLIP, **dual),
            _verl("vanilla", **VERL_CLIP, clip_ratio_c=3.0),
            "`dual_clip: 3`",
        ),
        Case(
            "`ppo_clip`",
            "TRL `GRPOTrainer._compute_loss`",
            _ours(ppo, **CLIP, **dual, by_rollout=True),
            _trl("dapo", **TRL_CLIP, args={"delta": 3.0}),
            "`dual_clip: 3` beside `delta` 3",
            scales=FINITE,
        ),
    ]


def _gspo() -> list[Case]:
    mode: Aggregation = "seq_mean_token_mean"
    return [
        Case(
            "`gspo`",
            "verl `compute_policy_loss_gspo`",
            _ours(losses.gspo, mode=mode, **CLIP),
            _verl("gspo", mode, **VERL_CLIP),
            scales=FINITE,
        ),
        Case(
            "`gspo`",
            "TRL `GRPOTrainer._compute_loss`",
            _ours(losses.gspo, mode=mode, by_rollout=True, **CLIP),
            _trl("grpo", **TRL_CLIP, importance_sampling_level="sequence"),
            "TRL's ratio is the answer's, ours a token's with the same sum",
            scales=FINITE,
        ),
    ]


def _cispo() -> list[Case]:
    return [
        Case(
            "`cispo`",
            "verl `compute_policy_loss_cispo`",
            _ours(losses.cispo),
            _verl("cispo", clip_ratio_low=1.0, clip_ratio_high=4.0),
            "our bounds",
        ),
        Case(
            "`cispo`",
            "verl `compute_policy_loss_cispo`",
            _ours(losses.cispo, **CLIP),
            _verl("cispo", **VERL_CLIP),
            "0.2, 0.28",
        ),
        Case(
            "`cispo`",
            "TRL `GRPOTrainer._compute_loss`",
            _ours(losses.cispo, by_rollout=True),
            _trl("cispo", epsilon_high=5.0),
            "TRL's 5 is the bound itself: our 1 + 4",
            scales=FINITE,
        ),
    ]


def _sapo() -> list[Case]:
    mode: Aggregation = "seq_mean_token_mean"
    temperatures = {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
    return [
        Case(
            "`sapo`",
            "verl `compute_policy_loss_sapo`",
            _ours(losses.sapo, mode=mode),
            _verl("sapo", mode, tau_pos=1.0, tau_neg=1.05),
        ),
        Case(
            "`sapo`",
            "TRL `GRPOTrainer._compute_loss`",
            _ours(losses.sapo, mode=mode, by_rollout=True),
            _trl("sapo", args=temperatures),
            scales=FINITE,
        ),
    ]


def _policy_gradient() -> list[Case]:
    plain = _ours(losses.policy_gradient)
    summed = _ours(losses.policy_gradient, mode="seq_mean_token_sum", by_rollout=True)

    def reinforce(draw: Draw, logprobs_BT: Tensor) -> Tensor:
        mu_BT, advantages_BT, mask_BT = draw.mu_BT, draw.advantages_BT, draw.mask_BT
        settings = _Settings(batch_of(draw))
        return core_algos.compute_policy_loss_reinforce(
            mu_BT, logprobs_BT, advantages_BT, mask_BT, "token-mean", settings
        )[0]

    return [
        Case("`policy_gradient`", "verl `compute_policy_loss_reinforce`", plain, reinforce),
        Case("`policy_gradient`", "verl `compute_policy_loss_gpg`", plain, _verl("gpg")),
        Case(
            "`policy_gradient`",
            "TRL `RLOOTrainer._compute_loss`",
            summed,
            rloo_loss,
            "gradients at pi = pi_old alone: TRL's loss is of the answer's ratio",
            leaf="old_BT",
            value=False,
        ),
    ]


class _Settings:
    def __init__(self, batch: dict[str, Any]) -> None:
        self.global_batch_info = batch


def _ppo_kl() -> Case:
    beta = 0.7

    def theirs(draw: Draw, logprobs_BT: Tensor) -> Tensor:
        kl_BT = core_algos.kl_penalty(draw.old_BT, logprobs_BT, "k3")
        penalty = core_algos.agg_loss(kl_BT, draw.mask_BT, "token-mean", **batch_of(draw))
        return policy_loss("vanilla", draw, logprobs_BT, **UNCLIPPED) + beta * penalty

    return Case(
        "`ppo_kl`",
        "verl `compute_policy_loss_vanilla` + `kl_penalty`",
        _ours(losses.ppo_kl, beta=beta),
        theirs,
        "unclipped, and k3 of pi_old to pi",
        scales=NEAR,
    )


def _aggregation() -> list[Case]:
    of_verl = [
        Case(
            f"`aggregate` {mode}",
            f"verl `agg_loss` {MODES[mode]}",
            lambda d, x, mode=mode: scalar(x * d.advantages_BT, d, mode),
            lambda d, x, mode=mode: core_algos.agg_loss(
                x * d.advantages_BT, d.mask_BT, MODES[mode], **batch_of(d)
            ),
        )
        for mode in get_args(Aggregation)
    ]
    of_trl = [
        Case(
            f"`ppo_clip`, `aggregate` {mode}",
            "TRL `GRPOTrainer._compute_loss`",
            _ours(losses.ppo_clip, mode=mode, by_rollout=True, **CLIP),
            _trl(loss_type, **TRL_CLIP),
            f"loss type {loss_type}",
            scales=FINITE,
        )
        for loss_type, mode in TRL_TYPES.items()
    ]
    return of_verl + of_trl


def _value_loss() -> list[Case]:
    def case(clip: float | None, beyond: float, note: str) -> Case:
        def mine(draw: Draw, values_BT: Tensor) -> Tensor:
            old_BT, returns_BT = draw.old_values_BT, draw.returns_BT
            loss_BT, _ = losses.value_loss(values_BT, old_BT, returns_BT, draw.mask_BT, clip=clip)
            return scalar(loss_BT, draw)

        def theirs(draw: Draw, values_BT: Tensor) -> Tensor:
            old_BT, returns_BT = draw.old_values_BT, draw.returns_BT
            return core_algos.compute_value_loss(
                values_BT, returns_BT, old_BT, draw.mask_BT, beyond, **batch_of(draw)
            )[0]

        name = "verl `compute_value_loss`"
        return Case("`value_loss`", name, mine, theirs, note, leaf="values_BT")

    return [case(0.2, 0.2, "`clip: 0.2`"), case(None, 1e9, "no clip; verl's out of reach")]


def _kl() -> list[Case]:
    # Ours clamps the difference of log-probs, verl's k3 the result: see the differences.
    estimators = {"k1": FINITE, "k2": FINITE, "k3": NEAR}
    of_tokens = [
        Case(
            f"`kl_estimate` {name}",
            f"verl `kl_penalty` {name}",
            lambda d, x, name=name: kl_estimate(x, d.ref_BT, name),
            lambda d, x, name=name: core_algos.kl_penalty(x, d.ref_BT, name),
            scales=scales,
        )
        for name, scales in estimators.items()
    ]

    def penalised(draw: Draw, logprobs_BT: Tensor) -> Tensor:
        policy = _ours(losses.ppo_clip, by_rollout=True)(draw, logprobs_BT)
        return policy + 0.1 * scalar(kl_estimate(logprobs_BT, draw.ref_BT, "k3"), draw)

    return [
        *of_tokens,
        Case(
            "`kl_estimate` k3",
            "TRL `GRPOTrainer._compute_loss`",
            penalised,
            _trl("dapo", beta=0.1),
            "in the loss",
            scales=FINITE,
        ),
        of_draw(
            "`AdaptiveKLController`",
            "verl `AdaptiveKLController`",
            lambda d: _steered(AdaptiveKLController(0.2, 6.0, 1000), d),
            lambda d: _steered(core_algos.AdaptiveKLController(0.2, 6.0, 1000), d),
            "its coefficient over a sequence of updates",
        ),
    ]


def _steered(controller: Any, draw: Draw) -> Tensor:
    """Coefficients after KLs far from its target and near it."""
    coefficients = []
    for current in (6.0 + 3.0 * draw.scores_B).tolist():
        controller.update(current, 64)
        coefficients.append(float(controller.value))
    return torch.tensor(coefficients)


def _whole() -> Case:
    """Clip, correction and KL in one: where each enters the sum."""

    def weights(draw: Draw) -> Tensor:
        return truncated_weights(draw.old_BT - draw.mu_BT, draw.mask_BT)

    def mine(draw: Draw, logprobs_BT: Tensor) -> Tensor:
        advantages_BT = draw.advantages_B[:, None].expand_as(logprobs_BT)
        loss_BT, _ = losses.ppo_clip(logprobs_BT, draw.old_BT, advantages_BT, draw.mask_BT)
        kl_BT = kl_estimate(logprobs_BT, draw.ref_BT, "k3")
        return scalar(loss_BT * weights(draw) + 0.1 * kl_BT, draw)

    return Case(
        "`ppo_clip`, `truncated_weights`, `kl_estimate`",
        "TRL `GRPOTrainer._compute_loss`",
        mine,
        lambda d, x: grpo_loss(d, x, loss_type="dapo", beta=0.1, weights_BT=weights(d)),
        "the sum of all: weights on the policy's loss, none on KL",
        scales=FINITE,
    )
