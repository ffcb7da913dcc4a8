"""HTML in which text is escaped unless it is said to be HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable

_ALONE = frozenset({"meta", "img", "br", "hr"})


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: str | bool) -> Html:
    """An element. `class_` is the attribute `class`, other `_` stand for `-`."""
    shown = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _ALONE:
        return Html(f"<{name}{shown}>")
    return Html(f"<{name}{shown}>{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Html:
    return Html("".join(map(_child, children)))


def _child(child: object) -> str:
    match child:
        case Html():
            return child
        case None:
            return ""
        case str():
            return html.escape(_visible(child))
        case int() | float():
            return str(child)
        case Iterable():
            return joined(child)
    raise TypeError(f"{type(child).__name__} is neither text nor HTML")


def _attribute(key: str, value: str | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    if isinstance(value, bool):
        return f" {name}" if value else ""
    return f' {name}="{html.escape(_visible(value))}"'


def _visible(text: str) -> str:
    """With what would not show, or would turn the text around, made visible."""
    return "".join(c if _shows(c) else f"\\u{ord(c):04x}" for c in text)


def _shows(character: str) -> bool:
    code = ord(character)
    if character in "\n\t" or 0x20 <= code < 0x7F:
        return True
    hidden = code < 0xA0 or 0xD800 <= code < 0xE000
    turns = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    return not (hidden or turns)
