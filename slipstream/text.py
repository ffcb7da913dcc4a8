"""The tokenizer of a job, for every role that turns text into tokens or back.

transformers is imported only when asked: its tokenizers need no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slipstream.config.job import ModelConfig
from slipstream.errors import SlipstreamError
from slipstream.records import TokenIds

Decode = Callable[[TokenIds], str]


def load_tokenizer(model: ModelConfig) -> Any:
    """The Hugging Face tokenizer that the job file names, with its chat template.

    Raises SlipstreamError.
    """
    from transformers import AutoTokenizer

    name = model.tokenizer or model.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=None if model.tokenizer else model.revision,
            **model.code,
        )
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise SlipstreamError(f"the tokenizer {name!r} cannot be loaded: {said}") from error
    if model.chat_template is not None:
        tokenizer.chat_template = model.chat_template.read_text(encoding="utf-8")
    return tokenizer


def decoder(tokenizer: Any) -> Decode:
    """Token ids to the text that a reward sees: special tokens are left out."""

    def decode(token_ids: TokenIds) -> str:
        return str(tokenizer.decode(token_ids.tolist(), skip_special_tokens=True))

    return decode


def eos_token_ids(model: ModelConfig, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: the generation config's, the tokenizer's."""
    from transformers import GenerationConfig

    ids: list[int] = []
    try:
        found = GenerationConfig.from_pretrained(model.path, revision=model.revision).eos_token_id
        ids = list(found) if isinstance(found, list) else [found]
    except OSError:
        pass  # a model without a generation_config.json
    unique = {token for token in [*ids, tokenizer.eos_token_id] if token is not None}
    if not unique:
        raise ValueError(f"neither {model.path} nor its tokenizer names an end-of-sequence token")
    return sorted(unique)
