"""Estimates of KL(pi || reference) from the sampled tokens' log-probs, and its control."""

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


class AdaptiveKLController:
    """A KL coefficient that steers the KL to `target`. Ziegler et al. 2019, arXiv 1909.08593.

    `value` is the coefficient, and all of the state: a controller that starts from it goes on as
    this one would have. `horizon` is the number of steps in which a KL that stays 1/5 or more above
    the target multiplies the coefficient by about e^(1/5).
    """

    def __init__(self, init: float, target: float, horizon: float) -> None:
        self.value = init
        self._target = target
        self._horizon = horizon

    def update(self, current_kl: float, n_steps: int) -> None:
        """value *= 1 + clip(current_kl / target - 1, -0.2, 0.2) * n_steps / horizon.

        In the paper a step is a rollout, and KL the sum over its tokens.
        """
        error = min(max(current_kl / self._target - 1.0, -0.2), 0.2)
        self.value *= 1.0 + error * n_steps / self._horizon
