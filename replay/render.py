"""From an item to the prompt's text and token ids.

    item ── prompt_field or prompt_template ──▶ string or messages ── chat template ──▶ text ──▶ ids

A string that is no chat is encoded with the special tokens that the tokenizer adds by
itself: a base model that was trained with a begin-of-sequence token needs it, and others add none.
A chat template writes its own special tokens, so nothing is added to its text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeGuard

import numpy as np

from replay.sources import DataError
from slipstream.config.job import Source
from slipstream.records import TokenIds

Message = Mapping[str, Any]  # role, content


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: Any

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def apply_chat_template(
        self, conversation: list[Message], *, add_generation_prompt: bool, tokenize: bool
    ) -> Any: ...


def renderer(
    source: Source, tokenizer: Tokenizer
) -> Callable[[Mapping[str, Any], int], tuple[str, TokenIds]]:
    """`render` for the items of one source: `(item, item_index) -> (text, token ids)`."""
    return partial(render, source=source, tokenizer=tokenizer)


def render(
    item: Mapping[str, Any], item_index: int, source: Source, tokenizer: Tokenizer
) -> tuple[str, TokenIds]:
    """The prompt's text and its (P,) token ids, P >= 1. Raises DataError."""
    where = f"item {item_index}"
    content = _content(item, source, where)
    messages = _messages(content, source, where)
    if messages is None:
        assert isinstance(content, str)
        text, ids = content, tokenizer.encode(content, add_special_tokens=True)
    else:
        text = _apply_template(messages, tokenizer, where)
        ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise DataError(f"{where}: the prompt is empty; give it at least one token")
    return text, np.array(ids, dtype=np.int32)


def _content(item: Mapping[str, Any], source: Source, where: str) -> str | list[Message]:
    if source.prompt_template is not None:
        return _format(source.prompt_template, item, where)
    if source.prompt_field not in item:
        raise DataError(
            f"{where}: no field {source.prompt_field!r} (it has {_fields(item)}); "
            "set prompt_field or prompt_template of the data"
        )
    content = item[source.prompt_field]
    if isinstance(content, str) or _is_chat(content):
        return content
    raise DataError(
        f"{where}: field {source.prompt_field!r} is neither a string nor a list of messages "
        f"with role and content: {content!r:.80}"
    )


def _is_chat(content: Any) -> TypeGuard[list[Message]]:
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(m, Mapping) and {"role", "content"} <= m.keys() for m in content)
    )


def _format(template: str, item: Mapping[str, Any], where: str) -> str:
    try:
        return template.format(**item)
    except KeyError as error:
        raise DataError(
            f"{where}: prompt_template names {error}, which is not there; "
            f"the item has {_fields(item)}"
        ) from error
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise DataError(
            f"{where}: prompt_template cannot be filled in ({error}); "
            "write {{ and }} for braces that are no field"
        ) from error


def _messages(content: str | list[Message], source: Source, where: str) -> list[Message] | None:
    """The messages of a chat, or None for a plain string."""
    if isinstance(content, str):
        if not source.chat:
            if source.system_prompt is not None:
                raise DataError(f"{where}: a system_prompt needs a chat; set chat: true")
            return None
        content = [{"role": "user", "content": content}]
    if source.system_prompt is None:
        return content
    return [{"role": "system", "content": source.system_prompt}, *content]


def _apply_template(messages: list[Message], tokenizer: Tokenizer, where: str) -> str:
    if not tokenizer.chat_template:
        raise DataError(
            f"{where}: a chat, but the tokenizer has no chat template; set model.chat_template"
        )
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # whatever the template raises, e.g. on an unknown role
        raise DataError(f"{where}: the chat template failed: {error}") from error
    return str(text)


def _fields(item: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, item))) or "none"
