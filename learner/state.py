"""What an algorithm carries from step to step, beside weights and optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from learner.algorithms.advantages import MovingAverage
from learner.algorithms.kl import AdaptiveKLController
from slipstream.config.algorithm import AlgorithmConfig

# PPO's rule for its penalty (arXiv 1707.06347, section 4).
BETA_BAND, BETA_FACTOR, MAX_BETA_CHANGE = 1.5, 2.0, 1024.0
MIN_RATE_FACTOR, MAX_RATE_FACTOR = 0.1, 10.0


@dataclass(slots=True)
class AlgorithmState:
    """The same on every rank; saved with every commit. All of it is plain numbers."""

    average_score: float | None  # `moving_average` baseline, of the batches before
    kl_coefficient: float
    beta: float  # of the loss `ppo_kl`
    entropy_coefficient: float
    rate_factor: float  # of the learning rate

    @classmethod
    def of(cls, config: AlgorithmConfig) -> AlgorithmState:
        """As it is before the first step."""
        return cls(
            average_score=None,
            kl_coefficient=config.kl.coefficient,
            beta=config.loss.beta if config.loss.kind == "ppo_kl" else 0.0,
            entropy_coefficient=config.entropy.coefficient,
            rate_factor=1.0,
        )

    def snapshot(self, config: AlgorithmConfig) -> dict[str, Any]:
        """What the run itself has moved."""
        return {name: getattr(self, name) for name in _moved(config)}

    def resume(self, config: AlgorithmConfig, saved: Mapping[str, Any]) -> None:
        """Go on from a commit's snapshot, where the job file still leaves it to the run."""
        for name in _moved(config):
            if name in saved:
                setattr(self, name, saved[name])

    def update(
        self,
        config: AlgorithmConfig,
        *,
        scores_B: Tensor,
        kl_reference: float | None,
        kl_old: float,
        entropy: float,
    ) -> None:
        """After a step on rollouts of these scores. `kl_old` is what the step's last update found
        before it changed anything; all three are means per token, of all ranks. Figures that are
        not finite change nothing."""
        if not all(map(math.isfinite, (float(scores_B.sum()), kl_old, entropy, kl_reference or 0))):
            return
        advantage, loss = config.advantage, config.loss
        if advantage.kind == "reinforce":
            average = MovingAverage(advantage.decay, self.average_score)
            self.average_score = average.update(scores_B).value
        if config.kl.adaptive is not None and kl_reference is not None:
            controller = AdaptiveKLController(
                self.kl_coefficient, config.kl.adaptive.target, config.kl.adaptive.horizon
            )
            controller.update(kl_reference, len(scores_B))
            self.kl_coefficient = controller.value
        if loss.kind == "ppo_kl" and loss.target is not None:
            if kl_old > loss.target * BETA_BAND:
                self.beta = min(loss.beta * MAX_BETA_CHANGE, self.beta * BETA_FACTOR)
            elif kl_old < loss.target / BETA_BAND:
                self.beta = max(loss.beta / MAX_BETA_CHANGE, self.beta / BETA_FACTOR)
        if config.rate is not None and config.rate.kind == "kl":
            if kl_old > 2.0 * config.rate.target:
                self.rate_factor = max(MIN_RATE_FACTOR, self.rate_factor / config.rate.factor)
            elif kl_old < 0.5 * config.rate.target:
                self.rate_factor = min(MAX_RATE_FACTOR, self.rate_factor * config.rate.factor)
        if config.entropy.target is not None:
            # Gradient descent on log alpha * (H - target), the SAC temperature's objective.
            log_alpha = math.log(self.entropy_coefficient)
            log_alpha -= config.entropy.learning_rate * (entropy - config.entropy.target)
            self.entropy_coefficient = math.exp(log_alpha)


def _moved(config: AlgorithmConfig) -> list[str]:
    """The fields that a run changes; the others are what the job file says."""
    moves = {
        "average_score": config.advantage.kind == "reinforce",
        "kl_coefficient": config.kl.adaptive is not None,
        "beta": config.loss.kind == "ppo_kl" and config.loss.target is not None,
        "entropy_coefficient": config.entropy.target is not None,
        "rate_factor": config.rate is not None and config.rate.kind == "kl",
    }
    return [name for name, is_moved in moves.items() if is_moved]
