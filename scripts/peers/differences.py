"""What differs on purpose, each with a demonstration: a small input and both sides' answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from draws import Draw, draw
from torch import Tensor
from trl.trainer.utils import nanstd
from trl_side import grpo_loss
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_rejection_mask
from verl.utils.torch_functional import masked_whiten
from verl_side import MODES, discounted, policy_loss

from learner.algorithms import losses
from learner.algorithms.advantages import gae, grpo, reinforce, reinforce_plus_plus, rloo, whiten
from learner.algorithms.corrections import geometric_mask
from learner.algorithms.kl import kl_estimate

Answers = tuple[float, float | str]  # ours, theirs


@dataclass(frozen=True, slots=True)
class Difference:
    what: str
    peer: str
    why: str
    shown: str  # the input, and what the numbers are
    answers: Callable[[], Answers]


def differences() -> list[Difference]:
    return [*_of_advantages(), *_of_clamps(), *_of_losses(), *_of_corrections()]


# --- advantages -------------------------------------------------------------------


def _verl(name: str, scores: list[float], groups: list[int], **more: Any) -> float:
    """The first rollout's advantage; every answer has one token, but for `more`."""
    rewards_BT = torch.tensor(scores)[:, None]
    arguments = {"index": np.array(groups), "response_mask": torch.ones_like(rewards_BT)}
    estimator = core_algos.get_adv_estimator_fn(name)
    return float(estimator(token_level_rewards=rewards_BT, **(arguments | more))[0][0, 0])


def _ours(function: Callable[..., Tensor], scores: list[float], groups: list[int]) -> float:
    return float(function(torch.tensor(scores), torch.tensor(groups))[0])


def _opo(scores_B: Tensor, group_B: Tensor) -> Tensor:
    lengths_B = torch.ones_like(scores_B)
    return reinforce(scores_B, baseline="optimal", lengths_B=lengths_B, group_B=group_B)


def _of_advantages() -> list[Difference]:
    quarter, alone = ([1.0, 0.0, 0.0, 0.0], [0] * 4), ([5.0, 1.0, 0.0], [0, 1, 1])
    equal = ([1000.1] * 6, [0] * 6)
    return [
        Difference(
            "`grpo`: sigma with n by default, with n - 1 where `unbiased`",
            "verl and TRL: n - 1",
            "the paper's is the standard deviation of the group, which is all there is; n - 1 "
            "shrinks small groups the most",
            "A of the 1 among scores 1, 0, 0, 0",
            lambda: (_ours(grpo, *quarter), _verl("grpo", *quarter)),
        ),
        Difference(
            "`grpo`: eps 1e-6, as verl",
            "TRL: 1e-4",
            "eps is there against division by 0; 1e-4 also changes close rewards. `eps` sets it",
            "A of 0.0001 beside 0, both with n - 1",
            _eps,
        ),
        Difference(
            "`grpo`: means and sigmas in float64, so equal scores give 0",
            "verl: float32",
            "what is left of rounding is divided by a sigma of its own size",
            "A of one of six scores of 1000.1",
            lambda: (_ours(grpo, *equal), _verl("grpo", *equal)),
        ),
        Difference(
            "`grpo`: a rollout alone in its group has A = 0",
            "verl: its bare score. TRL: 0",
            "without others there is nothing to compare with; its bare score would outweigh all "
            "centred ones",
            "A of 5, alone",
            lambda: (_ours(grpo, *alone), _verl("grpo", *alone)),
        ),
        Difference(
            "`rloo`: the same",
            "verl `rloo`: its bare score. verl `rloo_vectorized`, TRL: 0",
            "as above",
            "A of 5, alone",
            lambda: (_ours(rloo, *alone), _verl("rloo", *alone)),
        ),
        Difference(
            "`reinforce` with `optimal`: the same",
            "verl `opo`: its bare score",
            "as above",
            "A of 5, alone",
            lambda: (_ours(_opo, *alone), _verl("opo", *alone)),
        ),
        Difference(
            "`reinforce_plus_plus` with the group's mean: gamma counts, rewards keep their token",
            "verl: all rewards are summed into one number a rollout, gamma is ignored",
            "one formula with and without the baseline, and KL in the reward stays on its token",
            "first A of two tokens of the better of two answers, gamma 0.5",
            _plus_plus,
        ),
        Difference(
            "`gae`: behind an answer cut by length stands the critic's value",
            "verl: 0, as behind one that ended",
            "being cut is not worth 0; the answer would have gone on",
            "return of the only token: reward 1, value behind it 2",
            _bootstrap,
        ),
        Difference(
            "`whiten`: one trained token gives 0",
            "verl: raises",
            "a batch can be filtered down to one token",
            "x = 3 alone",
            _one_token,
        ),
    ]


def _eps() -> Answers:
    scores_B = torch.tensor([1e-4, 0.0])
    mine_B = grpo(scores_B, torch.zeros(2), unbiased=True)
    theirs_B = (scores_B - scores_B.nanmean()) / (nanstd(scores_B) + 1e-4)
    return float(mine_B[0]), float(theirs_B[0])


def _plus_plus() -> Answers:
    rewards_BT, mask_BT = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.ones(2, 2)
    groups = torch.zeros(2, dtype=torch.long)
    mine_BT = reinforce_plus_plus(rewards_BT, mask_BT, 0.5, group_B=groups)
    theirs_BT, _ = core_algos.compute_reinforce_plus_plus_baseline_outcome_advantage(
        rewards_BT, mask_BT, groups.numpy(), config=discounted(0.5)
    )
    return float(mine_BT[0, 0]), float(theirs_BT[0, 0])


def _bootstrap() -> Answers:
    one, value = torch.ones(1, 1), torch.zeros(1, 1)
    _, mine_BT = gae(one, value, one, 1.0, 1.0, bootstrap_B=torch.tensor([2.0]))
    both = (one.repeat(2, 1), value.repeat(2, 1), one.repeat(2, 1))  # of one it cannot take sigma
    _, theirs_BT = core_algos.compute_gae_advantage_return(*both, 1.0, 1.0)
    return float(mine_BT[0, 0]), float(theirs_BT[0, 0])


def _one_token() -> Answers:
    x, mask = torch.tensor([[3.0]]), torch.ones(1, 1)
    try:
        return float(whiten(x, mask)), float(masked_whiten(x, mask))
    except ValueError:
        return float(whiten(x, mask)), "raises"


# --- clamps and masks -------------------------------------------------------------


def _far(log_ratio: float) -> Draw:
    """A draw with pi away from pi_old and the reference by this much, and A = 1 everywhere."""
    drawn = draw(0, "small")
    ones = torch.ones_like(drawn.old_BT)
    names = {name: getattr(drawn, name) for name in drawn.__dataclass_fields__}
    moved = {"logprobs_BT": drawn.old_BT + log_ratio, "ref_BT": drawn.old_BT}
    return Draw(**(names | moved | {"advantages_BT": ones, "advantages_B": ones[:, 0]}))


def _mine(drawn: Draw, function: Callable[..., Any], **settings: Any) -> Tensor:
    mask_BT = drawn.mask_BT
    arguments = (drawn.logprobs_BT, drawn.old_BT, drawn.advantages_BT, mask_BT)
    loss_BT, _ = function(*arguments, **settings)
    return losses.aggregate(loss_BT, mask_BT, "token_mean", denominator=float(mask_BT.sum()))


def _of_clamps() -> list[Difference]:
    return [
        Difference(
            "log-ratios are clamped to ±20 before `exp`",
            "TRL: not",
            "one token of a collapsed policy must not make every weight NaN; verl clamps as we do",
            "`cispo` without an upper bound at log r = 200: largest gradient",
            lambda: (_slope(_collapsed), _slope(_trl_collapsed)),
        ),
        Difference(
            "`gspo`: the same ±20",
            "verl: 10 above, no bound below",
            "one bound for all losses; both are far outside any clip range",
            "A = -1, mean of log r 12: loss",
            lambda: _with_sign(_gspo_far),
        ),
        Difference(
            "k3 is not cut off",
            "verl: at 10, and without a gradient above",
            "KL loses its pull just where the policy has run away",
            "k3 at d = -5",
            lambda: _estimates(-5.0, "k3"),
        ),
        Difference(
            "k1 and k2 take d within ±20",
            "verl: all of d",
            "as for log-ratios: one token must not rule the batch",
            "k1 at d = 30",
            lambda: _estimates(30.0, "k1"),
        ),
        Difference(
            "what is masked never enters a sum",
            "verl's answer means and TRL multiply by the mask",
            "0 times NaN is NaN, and padding may hold anything",
            "`ppo_clip`, NaN in one masked token: loss",
            _masked_nan,
        ),
    ]


def _slope(loss_of: Callable[[Tensor], Tensor]) -> float:
    x = draw(0, "small").old_BT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(x), x)
    return float(gradient.abs().max())


def _collapsed(x: Tensor) -> Tensor:
    drawn = _far(0.0)
    arguments = (x + 200.0, drawn.old_BT, drawn.advantages_BT, drawn.mask_BT)
    return losses.cispo(*arguments, clip_high=float("inf"))[0].sum()


def _trl_collapsed(x: Tensor) -> Tensor:
    return grpo_loss(_far(0.0), x + 200.0, loss_type="cispo", epsilon_high=float("inf"))


def _with_sign(answers: Callable[[Draw], Answers]) -> Answers:
    drawn = _far(12.0)
    drawn.advantages_BT.neg_()
    return answers(drawn)


def _gspo_far(drawn: Draw) -> Answers:
    return float(_mine(drawn, losses.gspo)), float(policy_loss("gspo", drawn, drawn.logprobs_BT))


def _estimates(difference: float, estimator: str) -> Answers:
    pair = (torch.tensor(difference), torch.tensor(0.0))
    return float(kl_estimate(*pair, estimator)), float(core_algos.kl_penalty(*pair, estimator))


def _masked_nan() -> Answers:
    drawn = _far(0.1)
    row, place = (drawn.mask_BT == 0).nonzero()[0].tolist()
    drawn.logprobs_BT[row, place] = float("nan")
    theirs = grpo_loss(drawn, drawn.logprobs_BT, loss_type="grpo")
    return float(_mine(drawn, losses.ppo_clip)), float(theirs)


# --- losses -----------------------------------------------------------------------


def _of_losses() -> list[Difference]:
    return [
        Difference(
            "`ppo_clip`: dual clip only where it is set",
            "verl: always, c = 3. TRL: only with `delta`",
            "the default is the paper's PPO",
            "loss at A = -1, r = 10",
            _dual_clip,
        ),
        Difference(
            "`sapo` is aggregated as the job file says",
            "verl: always the mean of answers' means",
            "loss and aggregation are chosen apart",
            "`token_mean`: loss",
            _sapo_mode,
        ),
        Difference(
            "`cispo`: no lower bound, upper bound 5",
            "verl: 0.8 to 1.2, its PPO's defaults. TRL: none below",
            "the paper bounds the weight from above alone",
            "loss at A = 1, r = 0.1",
            _cispo_bounds,
        ),
    ]


def _dual_clip() -> Answers:
    drawn = _far(float(np.log(10.0)))
    drawn.advantages_BT.neg_()
    mine = _mine(drawn, losses.ppo_clip)
    return float(mine), float(policy_loss("vanilla", drawn, drawn.logprobs_BT))


def _sapo_mode() -> Answers:
    drawn = draw(0, "medium")
    theirs = policy_loss("sapo", drawn, drawn.logprobs_BT, mode="token_mean")
    return float(_mine(drawn, losses.sapo)), float(theirs)


def _cispo_bounds() -> Answers:
    drawn = _far(float(np.log(0.1)))
    theirs = policy_loss("cispo", drawn, drawn.logprobs_BT)
    return float(_mine(drawn, losses.cispo)), float(theirs)


# --- corrections ------------------------------------------------------------------


def _of_corrections() -> list[Difference]:
    return [
        Difference(
            "what a mask drops stays in the denominator",
            "verl: rejected tokens leave the response mask, and with it the denominator",
            "what is left gains no weight: the more is dropped, the smaller the step",
            "`token_mean` of ones, half of the tokens dropped",
            _denominator,
        ),
        Difference(
            "`geometric_mask`: bounds of pi_old / mu",
            "verl `seq_mean_k1`: of mu / pi_old",
            "the weights have bounds of pi_old / mu, and one ratio is enough",
            "kept at log(pi_old / mu) = -0.3, bounds 0.5 and 1.1",
            _geometric,
        ),
    ]


def _denominator() -> Answers:
    loss_BT, mask_BT = torch.ones(2, 4), torch.ones(2, 4)
    kept_BT = torch.tensor([[1.0], [0.0]]).expand(2, 4)
    mine = losses.aggregate(loss_BT * kept_BT, mask_BT, "token_mean", denominator=8.0)
    return float(mine), float(core_algos.agg_loss(loss_BT, kept_BT, MODES["token_mean"]))


def _geometric() -> Answers:
    log_ratio_BT, mask_BT = torch.full((1, 4), -0.3), torch.ones(1, 4)
    mine_BT = geometric_mask(log_ratio_BT, mask_BT, 0.5, 1.1)
    theirs_BT, _ = compute_rollout_rejection_mask(log_ratio_BT, mask_BT, "seq_mean_k1", "0.5_1.1")
    return float(mine_BT[0, 0]), float(theirs_BT[0, 0])
