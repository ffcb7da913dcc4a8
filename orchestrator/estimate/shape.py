"""The shape of a dense decoder-only model, from its config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipstream.errors import SlipstreamError

NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
# What says that a layer is not the one that is counted here.
OTHER_LAYERS = ("num_experts", "num_local_experts", "n_routed_experts", "kv_lora_rank")
TWO_MATRICES = ("gpt_neox", "opt", "phi", "starcoder2")  # model types without a gate
BIASED = ("qwen2",)  # query, key and value have biases, and the config does not say so
# Whose output layer is the embeddings where the config does not say; that of others is not.
TIED = (
    *("cohere", "cohere2", "ernie4_5", "falcon", "gemma", "gemma2", "gemma3_text", "opt"),
    *("smollm3", "starcoder2", "vaultgemma"),
)


class UnknownShape(SlipstreamError):
    """A model whose size cannot be told; `str()` says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The counts are of numbers, not bytes."""

    num_layers: int
    hidden: int  # H
    intermediate: int  # of the feed-forward part
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int  # V
    is_tied: bool  # the output layer is the embeddings
    has_gate: bool = True  # three matrices in the feed-forward part instead of two
    has_qkv_bias: bool = False

    @property
    def layer_params(self) -> int:
        """Of one layer."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden * (2 * queries + 2 * keys)
        biases = (queries + 2 * keys) if self.has_qkv_bias else 0
        feed_forward = (3 if self.has_gate else 2) * self.hidden * self.intermediate
        return attention + biases + feed_forward + 2 * self.hidden  # two norms

    @property
    def head_params(self) -> int:
        """Of the output layer."""
        return self.vocabulary * self.hidden

    @property
    def trunk_params(self) -> int:
        """All but the output layer, the embeddings among them."""
        return self.head_params + self.num_layers * self.layer_params + self.hidden

    @property
    def params(self) -> int:
        return self.trunk_params + (0 if self.is_tied else self.head_params)

    @property
    def sent_params(self) -> int:
        """What a weight update holds: the output layer is sent even where it is tied."""
        return self.trunk_params + self.head_params

    @property
    def kv_numbers_per_token(self) -> int:
        """Keys and values that the cache of an engine holds for one token."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def activations_per_token(self) -> int:
        """Numbers of one layer and token that the backward pass needs.

        Inputs of the norms, of the matrices and of the gate's product, and what attention without
        an S x S matrix keeps: queries and keys before and after their rotation, values, output.
        """
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return (
            6 * self.hidden
            + 3 * queries
            + 3 * keys
            + (4 if self.has_gate else 2) * (self.intermediate)
        )


def read_shape(model: str) -> ModelShape:
    """Of a model's directory. Raises UnknownShape."""
    file = Path(model) / "config.json"
    if not file.is_file():
        raise UnknownShape(
            f"model.path: {model} is no directory here that holds a config.json, and nothing is "
            "downloaded to plan; download the model (hf download OWNER/MODEL --local-dir DIR) and "
            "plan with model.path=DIR; its config.json alone is enough"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnknownShape(f"model.path: {file} cannot be read: {error}") from None
    return shape_of(config, str(file))


def shape_of(config: Mapping[str, Any], where: str) -> ModelShape:
    """Of a parsed config.json. Raises UnknownShape."""
    text = config.get("text_config", config)
    missing = [key for key in NEEDED if not isinstance(text.get(key), int)]
    if missing:
        raise UnknownShape(f"model.path: {where} has no {', '.join(missing)}")
    if other := [key for key in OTHER_LAYERS if text.get(key)]:
        raise UnknownShape(
            f"model.path: {where} has {', '.join(other)}; only dense models with ordinary "
            "attention can be planned for, no mixtures of experts and no latent attention"
        )
    kind = str(text.get("model_type", ""))
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    return ModelShape(
        num_layers=text["num_hidden_layers"],
        hidden=hidden,
        intermediate=text.get("intermediate_size") or 4 * hidden,
        num_heads=heads,
        num_kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or hidden // heads,
        vocabulary=text["vocab_size"],
        is_tied=bool(
            text.get("tie_word_embeddings", config.get("tie_word_embeddings", kind in TIED))
        ),
        has_gate=kind not in TWO_MATRICES,
        has_qkv_bias=kind in BIASED or bool(text.get("attention_bias")),
    )
