"""The policy as the learner sees it: tokens in, log-probs of the answers' tokens out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from learner.logprobs import linear_logprobs
from slipstream.config.job import ModelConfig

REMOTE = "transformers_modules"  # code that came with a model
PADDING, PREFIX = -1, 0  # segments; the answers of a row count from 1


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """Rows that hold several answers to one prompt: which positions see which."""

    segments_RS: Tensor  # int64: PADDING, PREFIX, or the number of the answer in its row
    positions_RS: Tensor  # int64, of the token in its own sequence

    def attention_mask(self) -> Tensor:
        """(R, 1, S, S), True where a query may look at a key: in the prefix or its own answer."""
        queries_RS1, keys_R1S = self.segments_RS[:, :, None], self.segments_RS[:, None, :]
        length = self.segments_RS.shape[1]
        causal_SS = torch.ones(length, length, device=keys_R1S.device).tril().bool()
        seen_RSS = (keys_R1S == PREFIX) | (keys_R1S == queries_RS1)
        return (seen_RSS & causal_SS)[:, None]


@dataclass(frozen=True, slots=True)
class Rows:
    """What the model computes: R rows of S input positions, right-padded.

    The trained positions, row by row, are the tokens of the answers, answer by answer.
    """

    inputs_RS: Tensor  # int64
    trained_RS: Tensor  # bool, where a position predicts a token of an answer
    layout: SharedPrompts | None  # None: every row is one sequence
    # bool, the same and the position behind each answer, where it is there for a critic
    valued_RS: Tensor | None = None


class LogProbHead(nn.Module):
    """Takes the place of the model's output layer and keeps its (perhaps tied) weight.

    As a module of its own it is gathered by ZeRO-3 like any other.
    """

    def __init__(self, weight_VH: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight_VH

    def forward(
        self, hidden_NH: Tensor, targets_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        return linear_logprobs(hidden_NH, self.weight, targets_N, temperature)


class Outputs(NamedTuple):
    """Of B answers of T tokens, float32, 0 where masked."""

    logprobs_BT: Tensor
    entropies_BT: Tensor
    values_BU: Tensor | None  # as `Critic.forward` gives them, of a policy with a value head


class Policy(nn.Module):
    """A Hugging Face causal language model whose output layer is a `LogProbHead`.

    With `has_value_head` it is its own critic.
    """

    def __init__(self, model: Any, *, has_value_head: bool = False) -> None:
        super().__init__()
        if getattr(model.lm_head, "bias", None) is not None:
            raise ValueError("models whose output layer has a bias are not supported")
        self.hf = model
        self.hf.lm_head = LogProbHead(model.lm_head.weight)
        self.value_head = _value_head(model) if has_value_head else None

    def forward(
        self,
        rows: Rows,
        targets_BT: Tensor,
        mask_BT: Tensor,
        temperature: float,
        mask_BU: Tensor | None = None,
    ) -> Outputs:
        """Log-probs and entropies at `mask_BT`; values at `mask_BU`, which a value head needs."""
        hidden_RSH = _hidden_states(self.hf.base_model, rows)
        trained_BT = mask_BT > 0
        logprobs_N, entropies_N = self.hf.lm_head(
            hidden_RSH[rows.trained_RS], targets_BT[trained_BT], temperature
        )
        blank_BT = torch.zeros(mask_BT.shape, dtype=logprobs_N.dtype, device=mask_BT.device)
        values_BU = None
        if self.value_head is not None and mask_BU is not None:
            values_BU = _values(self.value_head, hidden_RSH, rows, mask_BU)
        return Outputs(
            blank_BT.masked_scatter(trained_BT, logprobs_N),
            blank_BT.masked_scatter(trained_BT, entropies_N),
            values_BU,
        )


class Critic(nn.Module):
    """A model that gives every position of an answer its value; 0 everywhere at first."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.hf = trunk
        self.head = _value_head(trunk)

    def forward(self, rows: Rows, mask_BU: Tensor) -> Tensor:
        """(B, U) float32, 0 where `mask_BU` is 0. Entry t is the value before token t; the one
        behind the last token is that of going on, so U is T + 1."""
        return _values(self.head, _hidden_states(self.hf, rows), rows, mask_BU)


def _value_head(model: Any) -> nn.Linear:
    """Of zeros: what is worth something has yet to be learnt."""
    head = nn.Linear(model.config.get_text_config().hidden_size, 1, bias=False, dtype=model.dtype)
    nn.init.zeros_(head.weight)
    return head


def _values(head: nn.Linear, hidden_RSH: Tensor, rows: Rows, mask_BU: Tensor) -> Tensor:
    assert rows.valued_RS is not None
    values_N = head(hidden_RSH[rows.valued_RS])[:, 0]
    dtype = torch.promote_types(values_N.dtype, torch.float32)
    blank_BU = torch.zeros(mask_BU.shape, dtype=dtype, device=mask_BU.device)
    return blank_BU.masked_scatter(mask_BU > 0, values_N.to(dtype))


def _hidden_states(trunk: Any, rows: Rows) -> Tensor:
    """(R, S, H). Without a layout every row is one right-padded sequence, which needs no attention
    mask: no real token attends to what follows it."""
    how = {}
    if rows.layout is not None:
        how["attention_mask"] = rows.layout.attention_mask()
        how["position_ids"] = rows.layout.positions_RS
    hidden_RSH: Tensor = trunk(input_ids=rows.inputs_RS, use_cache=False, **how).last_hidden_state
    return hidden_RSH


def sharing_width(model: Policy | Critic) -> int:
    """The hidden size of a model whose rows may hold several answers to one prompt, else 0.

    It must take any attention mask and any positions: full attention in every layer, and plain
    rotary embeddings (not ALiBi, which reads the mask; not positions of several axes).
    """
    config = model.hf.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    can_share = (
        set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and getattr(config, "sliding_window", None) is None
        and "rope_type" in rope
        and "mrope_section" not in rope
        and not type(model.hf).__module__.startswith(REMOTE)
    )
    return int(config.hidden_size) if can_share else 0


def recompute_activations(model: Policy | Critic) -> None:
    """Trade time for memory. transformers does it in training mode only, so dropout goes too."""
    model.hf.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def load_policy(config: ModelConfig, *, has_value_head: bool = False) -> Policy:
    """The model of the job file, in its dtype."""
    from transformers import AutoModelForCausalLM

    model = _load(AutoModelForCausalLM, config.path, config)
    return Policy(model, has_value_head=has_value_head)


def load_critic(config: ModelConfig, path: str | None) -> Critic:
    """A critic whose trunk starts from `path`, or from the model of the job file."""
    from transformers import AutoModel

    return Critic(_load(AutoModel, path or config.path, config))


def _load(kind: Any, path: str, config: ModelConfig) -> Any:
    model = kind.from_pretrained(
        path,
        revision=config.revision if path == config.path else None,
        use_safetensors=True,  # a pickle can run code
        **config.code,
        dtype=getattr(torch, config.dtype),
        attn_implementation="sdpa",
    )
    model.config.use_cache = False
    return model
