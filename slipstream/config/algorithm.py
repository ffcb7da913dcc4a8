"""`algorithm`: what is optimised. Formulas and sources are in docs/algorithms.md.

The `kind` of a loss is the name of its function in `learner/algorithms/losses.py`, and its other
fields are that function's keyword arguments.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from slipstream.config.section import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
)

Aggregation = Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "token_sum_norm"]

# --- advantages: one number a rollout ---------------------------------------------------


class GrpoAdvantage(Section):
    """(r - mean of the group) / (sigma + eps). DeepSeekMath, arXiv 2402.03300."""

    kind: Literal["grpo"] = "grpo"
    scale: Literal["group", "batch", "none"] = "group"  # none: Dr.GRPO, arXiv 2503.20783
    unbiased: bool = False  # sigma with n - 1
    eps: PositiveFloat = 1e-6


class RlooAdvantage(Section):
    """Score minus the mean of the others of its group. arXiv 2402.14740."""

    kind: Literal["rloo"]


class RemaxAdvantage(Section):
    """Score minus that of the greedy answer, which is generated beside each group. arXiv
    2310.10505."""

    kind: Literal["remax"]


class ReinforceAdvantage(Section):
    """Score minus a baseline. Williams 1992; `optimal` is OPO's, arXiv 2505.23585."""

    kind: Literal["reinforce"]
    baseline: Literal["none", "batch_mean", "moving_average", "optimal"] = "batch_mean"
    decay: Share = 0.9  # of the moving average, per step


# --- advantages: one number a token -----------------------------------------------------


class ReinforcePlusPlusAdvantage(Section):
    """Reward to go, whitened over the tokens of the whole batch. arXiv 2501.03262."""

    kind: Literal["reinforce_plus_plus"]
    gamma: Share = 1.0
    baseline: Literal["none", "group_mean"] = "none"  # taken from the scores before


class GaeAdvantage(Section):
    """Generalized advantage estimation, with a critic. arXiv 1506.02438."""

    kind: Literal["gae"]
    gamma: Share = 1.0
    lam: Share = 0.95
    whiten: bool = True  # over the tokens of the whole batch


class NStepAdvantage(Section):
    """The next n rewards and the value behind them, with a critic. A3C, arXiv 1602.01783."""

    kind: Literal["n_step"]
    gamma: Share = 1.0
    n: PositiveInt = 4
    whiten: bool = True  # over the tokens of the whole batch


AdvantageConfig = Annotated[
    GrpoAdvantage
    | RlooAdvantage
    | RemaxAdvantage
    | ReinforceAdvantage
    | ReinforcePlusPlusAdvantage
    | GaeAdvantage
    | NStepAdvantage,
    Field(discriminator="kind"),
]

# --- losses -----------------------------------------------------------------------------


class Loss(Section):
    """Base of the policy losses."""

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the function that `kind` names."""
        return self.model_dump(exclude={"kind"})


class PpoClipLoss(Loss):
    """Clipped surrogate. PPO, arXiv 1707.06347; clip-higher: DAPO, arXiv 2503.14476."""

    kind: Literal["ppo_clip"] = "ppo_clip"
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    dual_clip: Annotated[float, Field(gt=1)] | None = None


class PolicyGradientLoss(Loss):
    """-A log pi, without a ratio. REINFORCE, Williams 1992."""

    kind: Literal["policy_gradient"]


class PpoKlLoss(Loss):
    """-(r A - beta KL(old, new)). PPO's other form, arXiv 1707.06347."""

    kind: Literal["ppo_kl"]
    beta: PositiveFloat = 1.0
    # Of the KL, in nats a token: beta is doubled above 1.5 times it, and halved below 2/3 of it.
    target: PositiveFloat | None = None

    def arguments(self) -> dict[str, Any]:
        return self.model_dump(exclude={"kind", "target"})


class GspoLoss(Loss):
    """The ratio of whole answers, length-normalised and clipped. arXiv 2507.18071."""

    kind: Literal["gspo"]
    clip_low: PositiveFloat = 3e-4
    clip_high: PositiveFloat = 4e-4


class CispoLoss(Loss):
    """-sg(clip(r)) A log pi. MiniMax-M1, arXiv 2506.13585."""

    kind: Literal["cispo"]
    clip_low: PositiveFloat = 1.0
    clip_high: PositiveFloat = 4.0


class SapoLoss(Loss):
    """A soft gate in place of the clip. arXiv 2511.20347."""

    kind: Literal["sapo"]
    tau_pos: PositiveFloat = 1.0
    tau_neg: PositiveFloat = 1.05


LossConfig = Annotated[
    PpoClipLoss | PolicyGradientLoss | PpoKlLoss | GspoLoss | CispoLoss | SapoLoss,
    Field(discriminator="kind"),
]

# --- correction of pi_old / mu ----------------------------------------------------------


class NoCorrection(Section):
    kind: Literal["none"] = "none"


class TruncatedCorrection(Section):
    """min(pi_old / mu, cap) held constant, per token or per sequence. Yao et al. 2025."""

    kind: Literal["truncated"] = "truncated"
    level: Literal["token", "sequence"] = "token"
    cap: PositiveFloat = 2.0
    lag_decay: Share = 1.0  # the cap's distance from 1 shrinks by this for every version of lag


class IcepopCorrection(Section):
    """pi_old / mu inside [low, high], else 0, per token."""

    kind: Literal["icepop"]
    low: PositiveFloat = 0.5
    high: PositiveFloat = 5.0


CorrectionConfig = Annotated[
    NoCorrection | TruncatedCorrection | IcepopCorrection, Field(discriminator="kind")
]


class GeometricMask(Section):
    """Only answers whose geometric mean of pi_old / mu is inside [low, high]."""

    kind: Literal["geometric"]
    low: PositiveFloat = 0.99
    high: PositiveFloat = 1.01


class OppositeSignMask(Section):
    """No answer with A < 0 that has become less likely by more than `threshold` nats a token."""

    kind: Literal["opposite_sign"]
    threshold: PositiveFloat = 1e-4


MaskConfig = Annotated[GeometricMask | OppositeSignMask, Field(discriminator="kind")]

# --- the rest ---------------------------------------------------------------------------


class AdaptiveKl(Section):
    """Moves the coefficient until KL is at the target. Ziegler et al., arXiv 1909.08593."""

    target: PositiveFloat  # nats a token
    horizon: PositiveInt = 10_000  # rollouts


class KlConfig(Section):
    """KL to a reference model, which is loaded only with a coefficient above 0."""

    coefficient: NonNegativeFloat = 0.0
    # The reference is the start model; after every step it moves to the policy by this share, as
    # a target network does (DDPG, arXiv 1509.02971).
    reference_step: Share = 0.0
    estimator: Literal["k1", "k2", "k3"] = "k3"
    place: Literal["loss", "reward"] = "loss"
    adaptive: AdaptiveKl | None = None


class RateByLag(Section):
    """The learning rate over (1 + mean lag) ** power."""

    kind: Literal["lag"]
    power: PositiveFloat = 0.5


class RateByKl(Section):
    """The learning rate goes down by `factor` after a step with KL to pi_old above twice the
    target, up after one with less than half of it; within a tenth and ten times the schedule's."""

    kind: Literal["kl"]
    target: PositiveFloat  # nats a token
    factor: Annotated[float, Field(gt=1)] = 1.5


RateConfig = Annotated[RateByLag | RateByKl, Field(discriminator="kind")]


class TrustRegionConfig(Section):
    """After an update with KL to pi_old above `max_kl` half of it is taken back, and so on; after
    `max_halvings` times all of it is. The line search of TRPO, arXiv 1502.05477."""

    max_kl: PositiveFloat  # nats a token
    max_halvings: PositiveInt = 4


class EntropyConfig(Section):
    """A bonus for the policy's entropy."""

    coefficient: NonNegativeFloat = 0.0
    # The coefficient is then learned, so that entropy goes to this many nats a token. SAC's
    # temperature, arXiv 1812.05905.
    target: PositiveFloat | None = None
    learning_rate: PositiveFloat = 0.01


class OverlongConfig(Section):
    """Answers near or at `rollout.max_new_tokens`. DAPO, arXiv 2503.14476."""

    buffer_tokens: Annotated[int, Field(ge=0)] = 0  # the penalty grows over the last so many
    penalty: NonNegativeFloat = 1.0  # at its largest
    filter: bool = False  # what was cut by length does not train


class CriticConfig(Section):
    """Says what an unfinished answer is worth. Only `gae` and `n_step` have one.

    A model of its own, or with `shared` a value head on the policy's.
    """

    shared: bool = False
    coefficient: PositiveFloat = 0.5  # of its loss, where shared
    path: str | None = None  # what its own model starts from; default: model.path
    learning_rate: PositiveFloat = 1e-5  # changes as the policy's does
    warmup_steps: NonNegativeInt = 0  # in which the policy does not move
    clip: PositiveFloat | None = 0.2  # of a value's change in one learner step


class AlgorithmConfig(Section):
    advantage: AdvantageConfig = GrpoAdvantage()
    loss: LossConfig = PpoClipLoss()
    aggregate: Aggregation = "token_mean"  # see learner/algorithms/losses.py
    old_logprobs: Literal["learner", "behaviour"] = "learner"  # behaviour: pi_old = mu
    correction: CorrectionConfig = TruncatedCorrection()
    mask: MaskConfig | None = None
    kl: KlConfig = KlConfig()
    entropy: EntropyConfig = EntropyConfig()
    overlong: OverlongConfig = OverlongConfig()
    critic: CriticConfig = CriticConfig()
    trust_region: TrustRegionConfig | None = None
    rate: RateConfig | None = None  # what else the learning rate depends on
    epochs: PositiveInt = 1  # passes over a batch
    minibatches: PositiveInt = 1  # optimizer steps in one pass
    # The passes over a batch end with the update at whose start KL to pi_old was above this.
    max_kl: PositiveFloat | None = None

    @property
    def needs_greedy(self) -> bool:
        return self.advantage.kind == "remax"

    @property
    def has_critic(self) -> bool:
        return self.advantage.kind in ("gae", "n_step")

    @property
    def has_own_critic(self) -> bool:
        return self.has_critic and not self.critic.shared

    @property
    def has_value_head(self) -> bool:
        return self.has_critic and self.critic.shared

    @property
    def has_reference(self) -> bool:
        return self.kl.coefficient > 0

    @property
    def reference_moves(self) -> bool:
        return self.has_reference and self.kl.reference_step > 0

    @property
    def kl_in_reward(self) -> bool:
        return self.has_reference and self.kl.place == "reward"

    @property
    def pi_leaves_pi_old(self) -> bool:
        """Whether an update of a step can start from another policy than the step did."""
        return self.epochs * self.minibatches > 1
