"""Small jobs, models and batches for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from slipstream.config.job import JobConfig
from slipstream.config.presets import apply_preset
from slipstream.records import (
    Batch,
    BatchGroup,
    FinishReason,
    Group,
    Rollout,
    VersionSpan,
)

EOS, VOCABULARY = 1, 24


def make_job(model: Path | str = "model", **sections: dict[str, Any] | str | int) -> JobConfig:
    """A valid job; `sections` are laid over its sections, key by key."""
    raw: dict[str, Any] = {
        "name": "test",
        "mode": "buffered",
        "model": {"path": str(model)},
        "data": {"train": {"kind": "reasoning_gym", "task": "chain_sum", "size": 100}},
        "reward": {"kind": "reasoning_gym"},
        "rollout": {"group_size": 4, "max_new_tokens": 8, "num_slots": 16, "enforce_eager": True},
        "learner": {"num_steps": 5, "groups_per_batch": 4, "learning_rate": 1e-3},
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section} if isinstance(section, dict) else section
    return JobConfig.model_validate(apply_preset(raw))


def make_model(directory: Path, *, tied: bool = True, seed: int = 0) -> Path:
    """An untrained two-layer Qwen2 with a character tokenizer, in Hugging Face format."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # of 32: the CPU attention knows no smaller ones
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=0,
        initializer_range=0.2,  # log-probs that differ between tokens
    )
    Qwen2ForCausalLM(config).save_pretrained(directory)
    characters = {char: index + 2 for index, char in enumerate("0123456789+-= abcdefgh")}
    tokenizer = Tokenizer(
        models.WordLevel({"<pad>": 0, "<eos>": EOS, **characters}, unk_token="<pad>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(directory)
    return directory


def make_batch(
    version: int,
    *,
    num_groups: int = 4,
    group_size: int = 4,
    seed: int = 0,
    reward: float | None = None,
) -> Batch:
    """Random rollouts of uneven lengths, the second of each group cut by length, and rewards of 0
    and 1 unless `reward` is given; the same for the same arguments."""
    random = np.random.default_rng([seed, version])
    return Batch(
        version=version,
        groups=tuple(
            BatchGroup(group=_group(random, ordinal, group_size, reward), lag=0, use=1)
            for ordinal in range(num_groups)
        ),
    )


def _group(
    random: np.random.Generator, ordinal: int, group_size: int, reward: float | None
) -> Group:
    prompt = random.integers(2, VOCABULARY, int(random.integers(3, 9)), dtype=np.int32)
    return Group(
        lease_id=ordinal,
        worker="rollout-0",
        incarnation=0,
        ordinal=ordinal,
        attempt=0,
        prompt_token_ids=prompt,
        rollouts=tuple(
            _rollout(random, reward, FinishReason.LENGTH if place == 1 else FinishReason.EOS)
            for place in range(group_size)
        ),
        greedy_reward=float(ordinal % 2),
    )


def _rollout(
    random: np.random.Generator, reward: float | None, finish_reason: FinishReason
) -> Rollout:
    num_tokens = int(random.integers(1, 12))
    return Rollout(
        token_ids=random.integers(1, VOCABULARY, num_tokens, dtype=np.int32),
        logprobs=-random.random(num_tokens, dtype=np.float32) * 3,
        spans=(VersionSpan(version=0, start=0, stop=num_tokens),),
        finish_reason=finish_reason,
        reward=float(random.integers(0, 2)) if reward is None else reward,
    )
