"""verl's functions, with the arguments that its trainer would give them."""

from __future__ import annotations

from typing import Any

import numpy as np
from draws import MAX_TOKENS, Draw
from torch import Tensor
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.rollout_corr_helper import (
    compute_rollout_correction_weights,
    compute_rollout_rejection_mask,
)
from verl.workers.config import ActorConfig

MODES = {
    "token_mean": "token-mean",
    "seq_mean_token_mean": "seq-mean-token-mean",
    "seq_mean_token_sum": "seq-mean-token-sum",
    "token_sum_norm": "seq-mean-token-sum-norm",
}
NO_DUAL_CLIP = 1e9  # verl has no switch for it


def batch_of(draw: Draw) -> dict[str, Any]:
    """The denominators of the whole batch, as verl's trainer hands them to every microbatch."""
    return {
        "dp_size": 1,
        "batch_num_tokens": int(draw.mask_BT.sum()),
        "global_batch_size": len(draw.mask_BT),
        "loss_scale_factor": MAX_TOKENS,
    }


def policy_loss(
    name: str,
    draw: Draw,
    logprobs_BT: Tensor,
    *,
    mode: str = "token_mean",
    weights_BT: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """A loss of verl's registry, on the same batch."""
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        global_batch_info=batch_of(draw),
        **settings,
    )
    loss, _ = core_algos.get_policy_loss_fn(name)(
        old_log_prob=draw.old_BT,
        log_prob=logprobs_BT,
        advantages=draw.advantages_BT,
        response_mask=draw.mask_BT,
        loss_agg_mode=MODES[mode],
        config=config,
        rollout_is_weights=weights_BT,
    )
    return loss


def advantage(name: str, draw: Draw, *, rewards_BT: Tensor | None = None, **more: Any) -> Tensor:
    """An advantage of verl's registry; rewards are the scores on the last tokens by default.
    0 where masked, which not all of them are."""
    result = core_algos.get_adv_estimator_fn(name)(
        token_level_rewards=(
            draw.last_token_scores() if rewards_BT is None else rewards_BT
        ).clone(),
        response_mask=draw.mask_BT,
        **({"index": draw.group_B.numpy().astype(np.int64)} | more),
    )
    return result[0] * draw.mask_BT


def discounted(gamma: float) -> AlgoConfig:
    return AlgoConfig(gamma=gamma)


def weights(draw: Draw, level: str, threshold: float | str) -> Tensor:
    """verl's weights for pi_old / mu."""
    log_ratio_BT = draw.old_BT - draw.mu_BT
    return compute_rollout_correction_weights(log_ratio_BT, draw.mask_BT, level, threshold)[0]


def rejection(draw: Draw, option: str, threshold: str) -> Tensor:
    """verl's mask of what its rejection sampling keeps."""
    log_ratio_BT = draw.old_BT - draw.mu_BT
    return compute_rollout_rejection_mask(log_ratio_BT, draw.mask_BT, option, threshold)[0]
