"""Random inputs, the same for us and for a peer: float32, ragged masks, groups of unlike sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# How far apart two policies are, in the log of their ratio at a token.
SCALES = {"small": 0.02, "medium": 0.3, "large": 5.0, "huge": 40.0}
GROUP_SIZES = (2, 3, 4, 5, 2)
NUM_TOKENS = 12
MAX_TOKENS = 16  # longest answer allowed, for the constant denominator


@dataclass(frozen=True, slots=True)
class Draw:
    scale: str
    mask_BT: Tensor
    logprobs_BT: Tensor  # of pi
    old_BT: Tensor  # of pi_old
    mu_BT: Tensor  # of what sampled
    ref_BT: Tensor
    advantages_BT: Tensor
    advantages_B: Tensor
    scores_B: Tensor
    greedy_B: Tensor
    group_B: Tensor
    rewards_BT: Tensor
    values_BT: Tensor
    old_values_BT: Tensor
    returns_BT: Tensor

    def last_token_scores(self) -> Tensor:
        """The score on each answer's last trained token."""
        last_B = (self.mask_BT * torch.arange(1, NUM_TOKENS + 1)).argmax(-1)
        return torch.zeros_like(self.mask_BT).scatter(1, last_B[:, None], self.scores_B[:, None])


def draw(seed: int, scale: str) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    batch = sum(GROUP_SIZES)
    shape = (batch, NUM_TOKENS)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    def away() -> Tensor:
        return SCALES[scale] * (2.0 * torch.rand(shape, generator=generator) - 1.0)

    old_BT = -3.0 * torch.rand(shape, generator=generator)
    groups = torch.repeat_interleave(torch.arange(len(GROUP_SIZES)), torch.tensor(GROUP_SIZES))
    return Draw(
        scale=scale,
        mask_BT=_mask(batch, generator),
        logprobs_BT=old_BT + away(),
        old_BT=old_BT,
        mu_BT=old_BT + away(),
        ref_BT=old_BT + away(),
        advantages_BT=normal(*shape),
        advantages_B=normal(batch),
        scores_B=normal(batch),
        greedy_B=normal(batch),
        group_B=groups[torch.randperm(batch, generator=generator)],
        rewards_BT=normal(*shape),
        values_BT=normal(*shape),
        old_values_BT=normal(*shape),
        returns_BT=normal(*shape),
    )


def _mask(batch: int, generator: torch.Generator) -> Tensor:
    """Answers of 1 to all tokens, with holes as tool output leaves them; one has a single token."""
    lengths_B = torch.randint(1, NUM_TOKENS + 1, (batch,), generator=generator)
    lengths_B[0] = 1
    inside_BT = torch.arange(NUM_TOKENS) < lengths_B[:, None]
    kept_BT = torch.rand((batch, NUM_TOKENS), generator=generator) > 0.15
    kept_BT[:, 0] = True
    return (inside_BT & kept_BT).float()
