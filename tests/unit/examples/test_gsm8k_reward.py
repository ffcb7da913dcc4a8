"""The grade-school maths example's reward."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "gsm8k"))

from gsm8k_reward import final_number

ITEM = {"answer": "20 x 60 = 1200.\n#### 1,200"}


@pytest.mark.parametrize("answer", ["#### 1200", "so\n####1,200.0", "#### 7\n#### 1200"])
def test_the_last_final_number_counts(answer: str) -> None:
    assert final_number("", answer, ITEM) == 1.0


@pytest.mark.parametrize("answer", ["", "1200", "#### 120", "#### -1200", "#### 1200\n#### 3"])
def test_anything_else_is_wrong(answer: str) -> None:
    assert final_number("", answer, ITEM) == 0.0


def test_an_item_without_an_answer_is_a_failure() -> None:
    with pytest.raises(ValueError, match="NUMBER"):
        final_number("", "#### 3", {"answer": "three"})
