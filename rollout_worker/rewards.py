"""Rewards: from the job file to a function `(prompt, answer, item) -> float`.

Imported in the scoring processes, which know neither vllm nor torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from slipstream.config.job import RewardConfig
from slipstream.errors import SlipstreamError
from slipstream.protocols import Reward


def build_reward(config: RewardConfig) -> Reward:
    """The reward of the job file. Raises SlipstreamError where it cannot be had."""
    match config.kind:
        case "function":
            return import_function(config.path)
        case "exact_match":
            return ExactMatch(config.answer_field)
        case "reasoning_gym":
            return reasoning_gym_verifier()


def import_function(path: str) -> Reward:
    """`package.module:function`, from the import path."""
    module_name, _, name = path.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
        for part in name.split("."):
            target = getattr(target, part)
    except Exception as error:  # whatever the user's module raises
        raise SlipstreamError(
            f"reward.path {path!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(target):
        raise SlipstreamError(f"reward.path {path!r} is not a function")
    return target  # type: ignore[no-any-return]


class ExactMatch:
    """1.0 where the stripped answer equals the item's field, else 0.0."""

    def __init__(self, answer_field: str) -> None:
        self._answer_field = answer_field

    def __call__(self, prompt: str, answer: str, item: Mapping[str, Any]) -> float:
        return float(answer.strip() == str(item[self._answer_field]).strip())


def reasoning_gym_verifier() -> Reward:
    """The score of the task that made the item (`metadata.source_dataset`)."""
    from reasoning_gym import get_score_answer_fn

    def verify(prompt: str, answer: str, item: Mapping[str, Any]) -> float:
        return float(get_score_answer_fn(item["metadata"]["source_dataset"])(answer, item))

    return verify
