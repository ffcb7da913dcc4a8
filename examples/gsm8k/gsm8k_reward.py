"""The reward of grade-school maths: is the number after the last `####` the right one?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

FINAL_NUMBER = re.compile(r"####\s*(-?[\d,]*\.?\d+)")


def final_number(prompt: str, answer: str, item: Mapping[str, Any]) -> float:
    """1.0 where the answer's final number equals that of the item's `answer`, else 0.0.

    Raises ValueError for an item without a final number: such an item can be answered by nobody.
    """
    expected = _number(item["answer"])
    if expected is None:
        raise ValueError(f"the item's answer has no '#### NUMBER': {item['answer']!r:.80}")
    return float(_number(answer) == expected)


def _number(text: str) -> float | None:
    found = FINAL_NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
