"""A reward that differs between random answers, the same on both sides of the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def even_share(prompt: str, answer: str, item: Mapping[str, Any]) -> float:
    """The share of characters with an even code."""
    return sum(ord(char) % 2 == 0 for char in answer) / max(1, len(answer))
