"""Keeps secrets out of what a run writes. Pure.

A secret is known by the name it goes by (`HF_TOKEN`, `api_key`, `--password`), by being the value
of an environment variable of such a name, or by a form that only credentials have
(`https://user:password@host`, `Bearer ...`, the prefixes of well-known services).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, TypeVar

REDACTED = "<redacted>"
MIN_SECRET = 6  # characters; a shorter value is in too many innocent words to be replaced in text
T = TypeVar("T")

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_NOUN = r"(?:token|secret|password|passwd|passphrase|credentials?)"
_KEY = r"(?:access|api|auth|encryption|private|secret|signing|ssh)?key"  # a monkey is none
_SECRET_WORD = re.compile(rf".*{_NOUN}|{_KEY}|pat", re.IGNORECASE)
_ALONE = (["key"], ["pat"])  # mean something else without a word before
_PLACE_WORDS = ("path", "file", "dir", "mode", "type", "field")  # HF_TOKEN_PATH: where one lies
# `name=value`, and `some_name: value` or `"name": "value"`; prose has a colon behind a bare noun.
_NAME = rf"(?:[\w.-]*{_NOUN}|(?:[\w.-]*[_.-])?{_KEY})"
_ASSIGNED = re.compile(
    rf"((?<![\w.-])(?:{_NAME}=|[\w.-]*[_-](?:{_NOUN}|{_KEY})\s*:\s|['\"]{_NAME}['\"]\s*:\s*)"
    rf"['\"]?)(?!{REDACTED})[^\s'\",;&}}]+",
    re.IGNORECASE,
)
_IN_ADDRESS = re.compile(r"(\w://)[^/@\s]+@")
_HEADER = re.compile(
    r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic|token))\s+[\w.~+/=-]{6,}", re.IGNORECASE
)
# "Basic arithmetic" is none: long, with a digit, and written as in a header.
_BEARER = re.compile(r"\b(Bearer|Basic)\s+(?=[\w.~+/=-]*\d)[\w.~+/=-]{16,}")
_WELL_KNOWN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|AKIA[A-Z0-9]{16}|AIza[\w-]{30,})"
)


def is_secret_name(name: str) -> bool:
    """Whether what goes by this name is a secret: HF_TOKEN is, max_new_tokens is not."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words in _ALONE or words[-1] in _PLACE_WORDS:
        return False
    return any(_SECRET_WORD.fullmatch(word) for word in words)


def looks_secret(text: str) -> bool:
    """Whether the text has a form that only credentials have."""
    return any(form.search(text) for form in (_IN_ADDRESS, _HEADER, _BEARER, _WELL_KNOWN))


def secret_values(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment's secrets: the name of the variable by its value, longest value first."""
    found = {
        value: name
        for name, value in environ.items()
        if is_secret_name(name) and len(value) >= MIN_SECRET
    }
    return {value: found[value] for value in sorted(found, key=len, reverse=True)}


def redact(value: T, environ: Mapping[str, str] | None = None) -> T:
    """`value`, a text or JSON-like containers of them, with `<redacted>` in place of secrets.

    In a list, what follows a flag such as `--token` is one. `environ`: default os.environ.
    """
    known = secret_values(os.environ if environ is None else environ)
    return _redact(value, known)  # type: ignore[no-any-return]


def _redact(value: Any, known: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _redact_text(value, known)
    if isinstance(value, Mapping):
        return {key: _under(key, item, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        flags = [None, *value]
        return type(value)(
            REDACTED if _is_flag(before) else _redact(item, known)
            for before, item in zip(flags, value, strict=False)
        )
    return value


def _under(key: Any, item: Any, known: Mapping[str, str]) -> Any:
    empty = item is None or isinstance(item, bool) or item in ("", [], {})
    return REDACTED if is_secret_name(str(key)) and not empty else _redact(item, known)


def _is_flag(text: Any) -> bool:
    return (
        isinstance(text, str) and text.startswith("-") and "=" not in text and is_secret_name(text)
    )


def _redact_text(text: str, known: Mapping[str, str]) -> str:
    for secret in known:
        text = text.replace(secret, REDACTED)
    text = _IN_ADDRESS.sub(rf"\1{REDACTED}@", text)
    text = _HEADER.sub(rf"\1 {REDACTED}", text)
    text = _BEARER.sub(rf"\1 {REDACTED}", text)
    text = _ASSIGNED.sub(rf"\1{REDACTED}", text)
    return _WELL_KNOWN.sub(REDACTED, text)
