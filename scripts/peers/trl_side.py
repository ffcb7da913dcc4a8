"""TRL's losses are methods of its trainers: called here on trainers without a model, a data set or
an accelerator, which hold just what the method reads."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from draws import MAX_TOKENS, Draw
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer


def _state(logprobs_BT: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "logprobs_BT": logprobs_BT,
        "model": SimpleNamespace(training=True),
        "aux_loss_enabled": False,
        "accelerator": SimpleNamespace(
            num_processes=1,
            gather=lambda tensor: tensor,
            reduce=lambda tensor, reduction: tensor,
        ),
        "_metrics": {"train": defaultdict(list)},
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        **settings,
    }


class _Grpo(GRPOTrainer):
    def __init__(self, logprobs_BT: Tensor, args: dict[str, Any], **settings: Any) -> None:
        defaults = {"delta": None, "use_bias_correction_kl": False, "steps_per_generation": 1}
        self.__dict__ |= {
            "args": SimpleNamespace(**(defaults | args)),
            "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None,
            "importance_sampling_level": "token",
            "beta": 0.0,
            "use_vllm": False,
            "vllm_importance_sampling_correction": False,
            "current_gradient_accumulation_steps": 1,
            "max_completion_length": MAX_TOKENS,
            "_entropy_bonus_enabled": False,
            **_state(logprobs_BT, settings),
        }

    def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        return self.logprobs_BT, torch.zeros_like(self.logprobs_BT), None


class _Rloo(RLOOTrainer):
    def __init__(self, logprobs_BT: Tensor, **settings: Any) -> None:
        self.__dict__ |= _state(logprobs_BT, settings)

    _get_per_token_logps_and_entropies = _Grpo._get_per_token_logps_and_entropies


def grpo_loss(
    draw: Draw,
    logprobs_BT: Tensor,
    *,
    args: dict[str, Any] | None = None,
    weights_BT: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """`GRPOTrainer._compute_loss`; `weights_BT` is the correction for what sampled."""
    if weights_BT is not None:
        settings |= {"use_vllm": True, "vllm_importance_sampling_correction": True}
    trainer = _Grpo(logprobs_BT, args or {}, **settings)
    inputs = _inputs(draw) | {
        "advantages": draw.advantages_B,
        "old_per_token_logps": draw.old_BT,
        "sampling_per_token_logps": draw.mu_BT,
        "ref_per_token_logps": draw.ref_BT,
        "importance_sampling_ratio": weights_BT,
        "num_items_in_batch": draw.mask_BT.sum(),
    }
    return trainer._compute_loss(None, inputs)


def rloo_loss(draw: Draw, logprobs_BT: Tensor) -> Tensor:
    """`RLOOTrainer._compute_loss`."""
    old_B = (draw.old_BT * draw.mask_BT).sum(-1)
    inputs = _inputs(draw) | {"advantages": draw.advantages_B, "old_logps": old_B}
    return _Rloo(logprobs_BT)._compute_loss(None, inputs)


def _inputs(draw: Draw) -> dict[str, Any]:
    ids_BT = torch.zeros_like(draw.mask_BT, dtype=torch.long)
    return {
        "prompt_ids": ids_BT[:, :1],
        "prompt_mask": ids_BT[:, :1] + 1,
        "completion_ids": ids_BT,
        "completion_mask": draw.mask_BT,
    }
