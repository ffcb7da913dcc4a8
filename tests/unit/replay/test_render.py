"""From an item to text and token ids, with a tokenizer of one token a character."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from replay.render import Message, render, renderer
from replay.sources import DataError
from slipstream.config.job import JsonlSource

BOS = 1


class CharTokenizer:
    """Adds a begin-of-sequence token to plain text, as a base model's tokenizer may."""

    def __init__(self, chat_template: str | None = "any") -> None:
        self.chat_template = chat_template

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [BOS] * (add_special_tokens and bool(text)) + [ord(c) for c in text]

    def apply_chat_template(
        self, conversation: list[Message], *, add_generation_prompt: bool, tokenize: bool
    ) -> str:
        assert add_generation_prompt
        assert not tokenize
        if any(m["role"] == "unknown" for m in conversation):
            raise ValueError("no such role")
        return "".join(f"<{m['role']}>{m['content']}" for m in conversation) + "<assistant>"


def text_of(item: Mapping[str, Any], **source: Any) -> str:
    data = JsonlSource.model_validate({"kind": "jsonl", "path": "x", **source})
    return render(item, 3, data, CharTokenizer())[0]


MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("item", "source", "expected"),
    [
        ({"prompt": "1+1="}, {}, "1+1="),
        ({"q": "1+1="}, {"prompt_field": "q"}, "1+1="),
        ({"prompt": "hi"}, {"chat": True}, "<user>hi<assistant>"),
        ({"prompt": MESSAGES}, {}, "<user>hi<assistant>"),
        ({"prompt": MESSAGES}, {"system_prompt": "S"}, "<system>S<user>hi<assistant>"),
        (
            {"prompt": "hi"},
            {"chat": True, "system_prompt": "S"},
            "<system>S<user>hi<assistant>",
        ),
        ({"a": 1, "b": 2}, {"prompt_template": "{a}+{b}="}, "1+2="),
        (
            {"metadata": {"expression": "4 - 1"}},
            {"prompt_template": "{metadata[expression]} ="},
            "4 - 1 =",
        ),
        ({"a": "x"}, {"prompt_template": "{{{a}}}", "chat": True}, "<user>{x}<assistant>"),
    ],
)
def test_text(item: Mapping[str, Any], source: Mapping[str, Any], expected: str) -> None:
    assert text_of(item, **source) == expected


def test_plain_text_gets_the_tokenizers_special_tokens_and_a_chat_does_not() -> None:
    plain = JsonlSource.model_validate({"kind": "jsonl", "path": "x"})
    _, ids = render({"prompt": "a"}, 0, plain, CharTokenizer())
    assert ids.dtype == np.int32
    assert ids.tolist() == [BOS, ord("a")]
    chat = plain.model_copy(update={"chat": True})
    text, ids = renderer(chat, CharTokenizer())({"prompt": "a"}, 0)
    assert ids.tolist() == [ord(c) for c in text]


@pytest.mark.parametrize(
    ("item", "source", "message"),
    [
        ({"b": 1, "a": 2}, {}, r"item 3: no field 'prompt' \(it has a, b\)"),
        ({"a": 2}, {"prompt_template": "{b}"}, "names 'b', which is not there; the item has a"),
        ({"m": {}}, {"prompt_template": "{m[x]}"}, "names 'x', which is not there"),
        ({"a": 2}, {"prompt_template": "\\boxed{}"}, "write {{ and }} for braces"),
        ({"a": 2}, {"prompt_template": "{a"}, "write {{ and }} for braces"),
        ({"prompt": 5}, {}, "neither a string nor a list of messages .*: 5"),
        ({"prompt": []}, {}, "neither a string nor a list of messages"),
        ({"prompt": [{"content": "x"}]}, {}, "neither a string nor a list of messages"),
        ({"prompt": "x"}, {"system_prompt": "S"}, "needs a chat; set chat: true"),
        ({"prompt": ""}, {}, "the prompt is empty"),
        (
            {"prompt": [{"role": "unknown", "content": "x"}]},
            {},
            "the chat template failed: no such role",
        ),
    ],
)
def test_what_cannot_be_rendered(
    item: Mapping[str, Any], source: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        text_of(item, **source)


def test_a_chat_needs_a_template() -> None:
    source = JsonlSource.model_validate({"kind": "jsonl", "path": "x"})
    with pytest.raises(DataError, match=r"set model\.chat_template"):
        render({"prompt": MESSAGES}, 0, source, CharTokenizer(chat_template=None))
