"""Advantages that have one definition."""

from __future__ import annotations

from typing import Any

import torch
from case import Case, of_draw
from draws import MAX_TOKENS, NUM_TOKENS, Draw
from torch import Tensor
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.utils import nanstd
from verl.trainer.ppo import core_algos
from verl.utils.torch_functional import masked_whiten
from verl_side import advantage, discounted

from learner.algorithms.advantages import (
    gae,
    grpo,
    n_step,
    reinforce,
    reinforce_plus_plus,
    remax,
    reward_to_go,
    rloo,
    whiten,
)
from learner.algorithms.shaping import overlong_penalty

GAMMA, LAM = 0.9, 0.8


def advantage_cases() -> list[Case]:
    return [
        *_grpo(),
        *_baselines(),
        *_reinforce_plus_plus(),
        *_with_critic(),
        *_whiten(),
        _overlong(),
    ]


def _name(estimator: str) -> str:
    return f"verl `compute_{estimator}`"


def _tokens(scores_B: Tensor, draw: Draw) -> Tensor:
    """One number a rollout on all its trained tokens, as verl gives it."""
    return scores_B[:, None] * draw.mask_BT


def _grpo() -> list[Case]:
    def mine(draw: Draw, **settings: Any) -> Tensor:
        return _tokens(grpo(draw.scores_B, draw.group_B, **settings), draw)

    return [
        of_draw(
            "`grpo`",
            _name("grpo_outcome_advantage"),
            lambda d: mine(d, unbiased=True),
            lambda d: advantage("grpo", d),
            "`unbiased: true`",
        ),
        of_draw(
            "`grpo`",
            _name("grpo_vectorized_outcome_advantage"),
            lambda d: mine(d, unbiased=True),
            lambda d: advantage("grpo_vectorized", d),
            "`unbiased: true`",
        ),
        of_draw(
            "`grpo`",
            _name("grpo_outcome_advantage"),
            lambda d: mine(d, scale="none"),
            lambda d: advantage("grpo", d, norm_adv_by_std_in_grpo=False),
            "`scale: none`, Dr.GRPO",
        ),
        of_draw(
            "`grpo`",
            "TRL `nanstd`",
            lambda d: mine(d, unbiased=True, eps=1e-4),
            lambda d: _tokens(_trl_scaled(d, batch=False), d),
            "`unbiased: true`, `eps: 1e-4`; put together as GRPOTrainer does in line",
        ),
        of_draw(
            "`grpo`",
            "TRL `nanstd`",
            lambda d: mine(d, scale="batch", unbiased=True, eps=1e-4),
            lambda d: _tokens(_trl_scaled(d, batch=True), d),
            "the same with `scale: batch`",
        ),
    ]


def _trl_scaled(draw: Draw, *, batch: bool) -> Tensor:
    result_B = torch.empty_like(draw.scores_B)
    for group in draw.group_B.unique():
        here_B = draw.group_B == group
        scores = draw.scores_B[here_B]
        sigma = nanstd(draw.scores_B if batch else scores)
        result_B[here_B] = (scores - scores.nanmean()) / (sigma + 1e-4)
    return result_B


def _baselines() -> list[Case]:
    def leave_one_out(draw: Draw) -> Tensor:
        return _tokens(rloo(draw.scores_B, draw.group_B), draw)

    def optimal(draw: Draw) -> Tensor:
        lengths_B = draw.mask_BT.sum(-1)
        advantages_B = reinforce(
            draw.scores_B, baseline="optimal", lengths_B=lengths_B, group_B=draw.group_B
        )
        return _tokens(advantages_B, draw)

    return [
        of_draw(
            "`rloo`",
            _name("rloo_outcome_advantage"),
            leave_one_out,
            lambda d: advantage("rloo", d),
        ),
        of_draw(
            "`rloo`",
            _name("rloo_vectorized_outcome_advantage"),
            leave_one_out,
            lambda d: advantage("rloo_vectorized", d),
        ),
        of_draw(
            "`remax`",
            _name("remax_outcome_advantage"),
            lambda d: _tokens(remax(d.scores_B, d.greedy_B), d),
            lambda d: advantage("remax", d, reward_baselines=d.greedy_B),
            "reward on the last token",
        ),
        of_draw(
            "`reinforce`",
            _name("opo_outcome_advantage"),
            optimal,
            lambda d: advantage("opo", d),
            "`baseline: optimal`, by group",
        ),
    ]


def _reinforce_plus_plus() -> list[Case]:
    config = discounted(GAMMA)

    def returns(draw: Draw) -> Tensor:
        return core_algos.compute_reinforce_plus_plus_outcome_advantage(
            draw.rewards_BT, draw.mask_BT, config
        )[1]

    return [
        of_draw(
            "`reinforce_plus_plus`",
            _name("reinforce_plus_plus_outcome_advantage"),
            lambda d: reinforce_plus_plus(d.rewards_BT, d.mask_BT, GAMMA),
            lambda d: advantage("reinforce_plus_plus", d, rewards_BT=d.rewards_BT, config=config),
            f"a reward on every token, gamma {GAMMA}",
        ),
        of_draw(
            "`reward_to_go`",
            _name("reinforce_plus_plus_outcome_advantage"),
            lambda d: reward_to_go(d.rewards_BT, d.mask_BT, GAMMA),
            returns,
            "its second result",
        ),
        of_draw(
            "`reinforce_plus_plus`",
            _name("reinforce_plus_plus_baseline_outcome_advantage"),
            lambda d: reinforce_plus_plus(d.last_token_scores(), d.mask_BT, group_B=d.group_B),
            lambda d: advantage("reinforce_plus_plus_baseline", d),
            "`baseline: group_mean`, reward on the last token",
        ),
    ]


def _with_critic() -> list[Case]:
    def mine(draw: Draw) -> tuple[Tensor, Tensor]:
        return gae(draw.rewards_BT, draw.values_BT, draw.mask_BT, GAMMA, LAM)

    def theirs(draw: Draw, lam: float = LAM) -> tuple[Tensor, Tensor]:
        # Its second result keeps what it has no mask for; its first is whitened.
        white_BT, returns_BT = core_algos.compute_gae_advantage_return(
            draw.rewards_BT, draw.values_BT, draw.mask_BT, GAMMA, lam
        )
        return white_BT * draw.mask_BT, returns_BT * draw.mask_BT

    def ahead(draw: Draw, n: int) -> Tensor:
        return n_step(draw.rewards_BT, draw.values_BT, draw.mask_BT, GAMMA, n)

    def difference(draw: Draw, lam: float) -> Tensor:
        return theirs(draw, lam)[1] - draw.values_BT * draw.mask_BT

    name = _name("gae_advantage_return")
    return [
        of_draw("`gae`", name, lambda d: mine(d)[1], lambda d: theirs(d)[1], "returns"),
        of_draw(
            "`gae`, `whiten`",
            name,
            lambda d: whiten(mine(d)[0], d.mask_BT),
            lambda d: theirs(d)[0],
            "advantages, which verl whitens in the same function",
        ),
        of_draw(
            "`n_step`",
            name,
            lambda d: ahead(d, 1),
            lambda d: difference(d, 0.0),
            "`n: 1` beside lambda 0; returns less values",
        ),
        of_draw(
            "`n_step`",
            name,
            lambda d: ahead(d, NUM_TOKENS),
            lambda d: difference(d, 1.0),
            "n of the whole answer beside lambda 1",
        ),
    ]


def _whiten() -> list[Case]:
    def case(shift: bool) -> Case:
        return Case(
            "`whiten`",
            "verl `masked_whiten`",
            lambda d, x: whiten(x, d.mask_BT, shift_mean=shift),
            lambda d, x: masked_whiten(x, d.mask_BT, shift_mean=shift) * d.mask_BT,
            f"`shift_mean={shift}`",
            leaf="returns_BT",
        )

    return [case(True), case(False)]


def _overlong() -> Case:
    lengths_B = torch.arange(1, MAX_TOKENS + 1)
    answers = [[0] * length for length in lengths_B.tolist()]
    return of_draw(
        "`overlong_penalty`",
        "TRL `get_soft_overlong_punishment`",
        lambda _: overlong_penalty(lengths_B, MAX_TOKENS, 5),
        lambda _: torch.tensor(get_soft_overlong_punishment(MAX_TOKENS, 5)(answers)),
    )
