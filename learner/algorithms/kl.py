"""Estimates of KL(pi || reference) from the sampled tokens' log-probs."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from learner.algorithms.losses import MAX_LOG_RATIO


def kl_estimate(
    logprobs: Tensor, ref_logprobs: Tensor, estimator: Literal["k1", "k2", "k3"]
) -> Tensor:
    """Per token, any shape. Schulman, "Approximating KL divergence" (2020), with
    d = log pi - log ref: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d."""
    difference = (logprobs - ref_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    match estimator:
        case "k1":
            return difference
        case "k2":
            return 0.5 * difference**2
        case "k3":
            return (-difference).exp() - 1.0 + difference
