"""What is added to an answer's score before advantages are taken."""

from __future__ import annotations

from torch import Tensor


def overlong_penalty(
    lengths_B: Tensor, max_tokens: int, buffer: int, factor: float = 1.0
) -> Tensor:
    """0 up to `max_tokens - buffer`, from there straight down to -factor at `max_tokens`, (B,).

    Soft over-long punishment, DAPO, arXiv 2503.14476, equation 13. `buffer` is at least 1.
    """
    over_B = (lengths_B - (max_tokens - buffer)).float() / buffer
    return -factor * over_B.clamp(0.0, 1.0)
