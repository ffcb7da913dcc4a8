"""One function of ours beside one of a peer: the largest difference in value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from draws import SCALES, Draw, draw
from torch import Tensor

Side = Callable[[Draw, Tensor], Tensor]

ALL = tuple(SCALES)
FINITE = ("small", "medium", "large")  # within what no side clamps
NEAR = ("small", "medium")
SEEDS = range(5)


@dataclass(frozen=True, slots=True)
class Case:
    """Both sides take the draw and the tensor that the gradient is of."""

    ours: str
    peer: str
    mine: Side
    theirs: Side
    note: str = ""  # how settings are translated
    leaf: str | None = "logprobs_BT"  # a field of the draw; None where there is no gradient
    scales: tuple[str, ...] = ALL
    value: bool = True  # False where only gradients are the same


@dataclass(frozen=True, slots=True)
class Result:
    case: Case
    value: float | None
    gradient: float | None


def of_draw(
    ours: str,
    peer: str,
    mine: Callable[[Draw], Tensor],
    theirs: Callable[[Draw], Tensor],
    note: str = "",
    *,
    scales: tuple[str, ...] = ALL,
) -> Case:
    """A case without a gradient: what is compared is a constant of the loss."""
    return Case(ours, peer, lambda d, _: mine(d), lambda d, _: theirs(d), note, None, scales)


def measure(case: Case) -> Result:
    """The largest difference over all seeds and scales."""
    values, gradients = [], []
    for seed in SEEDS:
        for scale in case.scales:
            drawn = draw(seed, scale)
            mine, my_gradient = _evaluate(case.mine, case.leaf, drawn)
            theirs, their_gradient = _evaluate(case.theirs, case.leaf, drawn)
            values.append(distance(mine, theirs))
            if my_gradient is not None and their_gradient is not None:
                gradients.append(distance(my_gradient, their_gradient))
    return Result(
        case,
        max(values) if case.value else None,
        max(gradients) if gradients else None,
    )


def distance(mine: Tensor, theirs: Tensor) -> float:
    """Largest |a - b| / max(1, |b|): absolute, but for numbers that float32 holds no finer.
    Infinite where either is not finite, which no case is meant to be."""
    assert mine.shape == theirs.shape, (mine.shape, theirs.shape)
    if not (mine.isfinite().all() and theirs.isfinite().all()):
        return float("inf")
    return float(((mine - theirs).abs() / theirs.abs().clamp(min=1.0)).max())


def _evaluate(side: Side, leaf: str | None, drawn: Draw) -> tuple[Tensor, Tensor | None]:
    if leaf is None:
        return side(drawn, torch.empty(0)), None
    tensor = getattr(drawn, leaf).clone().requires_grad_()
    value = side(drawn, tensor)
    # Of a tensor, the gradient of a random weighing of its entries.
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((value * weights).sum() if value.dim() else value, tensor)
    return value.detach(), gradient
