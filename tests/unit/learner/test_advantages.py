"""Numbers worked by hand, plain loops over lists as a second opinion, and properties."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from learner.algorithms.advantages import (
    MovingAverage,
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

fast = settings(max_examples=50, deadline=None)
numbers = st.integers(-40, 40).map(lambda quarter: quarter / 4)
NAN, INF = float("nan"), float("inf")


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


# --- GRPO, REINFORCE, RLOO, ReMax ---------------------------------------------------

SCORES_B = torch.tensor([1.0, 0.0, 0.0, 1.0, 3.0, 1.0])
GROUP_B = torch.tensor([7, 7, 7, 7, 2, 2])


def test_grpo_divides_by_the_groups_population_sigma() -> None:
    # group 7: mean 0.5, sigma 0.5; group 2: mean 2, sigma 1
    expected = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0])
    assert_close(grpo(SCORES_B, GROUP_B, eps=1e-9), expected)


def test_grpo_unbiased_divides_by_n_minus_one() -> None:
    # group 7: sum of squares 1, over 3; group 2: sum of squares 2, over 1
    sigma = torch.tensor([math.sqrt(1 / 3)] * 4 + [math.sqrt(2.0)] * 2)
    centred = torch.tensor([0.5, -0.5, -0.5, 0.5, 1.0, -1.0])
    assert_close(grpo(SCORES_B, GROUP_B, unbiased=True, eps=1e-9), centred / sigma)


def test_grpo_scaled_by_the_batch() -> None:
    # the batch: mean 1, squares 0 1 1 0 4 0, sigma 1
    centred = torch.tensor([0.5, -0.5, -0.5, 0.5, 1.0, -1.0])
    assert_close(grpo(SCORES_B, GROUP_B, scale="batch", eps=1e-9), centred)


def test_grpo_without_scale_is_dr_grpo() -> None:
    expected = torch.tensor([0.5, -0.5, -0.5, 0.5, 1.0, -1.0])
    assert_close(grpo(SCORES_B, GROUP_B, scale="none"), expected)


def test_grpo_adds_eps_to_sigma() -> None:
    # mean 1, sigma 1; +-1 / (1 + 1)
    advantages_B = grpo(torch.tensor([0.0, 2.0]), torch.tensor([0, 0]), eps=1.0)
    assert_close(advantages_B, torch.tensor([-0.5, 0.5]))


@pytest.mark.parametrize("unbiased", [False, True])
def test_equal_rewards_and_groups_of_one_have_no_advantage(unbiased: bool) -> None:
    scores_B, group_B = torch.tensor([2.0, 2.0, 5.0]), torch.tensor([0, 0, 1])
    assert_close(grpo(scores_B, group_B, unbiased=unbiased), torch.zeros(3))


@pytest.mark.parametrize("reward", [0.7, 3.3, 10.1, 100.1])
@pytest.mark.parametrize("size", [3, 7, 8, 16])
def test_equal_rewards_have_no_advantage_whatever_their_rounding(reward: float, size: int) -> None:
    scores_B, group_B = torch.full((size,), reward), torch.zeros(size, dtype=torch.long)
    assert grpo(scores_B, group_B).abs().max() == 0
    assert rloo(scores_B, group_B).abs().max() == 0
    assert reinforce(scores_B, baseline="batch_mean").abs().max() == 0
    rewards_BT = scores_B[:, None]
    assert whiten(rewards_BT, torch.ones_like(rewards_BT)).abs().max() == 0


def test_reinforce_baselines() -> None:
    scores_B = torch.tensor([1.0, 3.0])
    assert_close(reinforce(scores_B), scores_B)
    assert reinforce(scores_B).data_ptr() != scores_B.data_ptr()
    assert_close(reinforce(scores_B, baseline="batch_mean"), torch.tensor([-1.0, 1.0]))
    # 1 - 0.25 and 3 - 0.25
    found_B = reinforce(scores_B, baseline="moving_average", average=0.25)
    assert_close(found_B, torch.tensor([0.75, 2.75]))
    # nothing was seen yet: the batch's own mean, 2
    found_B = reinforce(scores_B, baseline="moving_average", average=None)
    assert_close(found_B, torch.tensor([-1.0, 1.0]))


def test_the_optimal_baseline_weighs_scores_by_length() -> None:
    # (1 * 10 + 0 * 30) / 40 = 0.25
    scores_B, lengths_B = torch.tensor([1.0, 0.0]), torch.tensor([10, 30])
    found_B = reinforce(scores_B, baseline="optimal", lengths_B=lengths_B)
    assert_close(found_B, torch.tensor([0.75, -0.25]))


def test_the_optimal_baseline_of_each_group() -> None:
    # group 5: (1 * 10 + 0 * 30) / 40 = 0.25; group 3: (4 * 1) / 1 = 4
    found_B = reinforce(
        torch.tensor([1.0, 4.0, 0.0]),
        baseline="optimal",
        lengths_B=torch.tensor([10, 1, 30]),
        group_B=torch.tensor([5, 3, 5]),
    )
    assert_close(found_B, torch.tensor([0.75, 0.0, -0.25]))


def test_the_optimal_baseline_of_empty_answers_is_zero() -> None:
    scores_B = torch.tensor([1.0, 0.5])
    found_B = reinforce(scores_B, baseline="optimal", lengths_B=torch.tensor([0, 0]))
    assert_close(found_B, scores_B)


def test_the_optimal_baseline_needs_lengths() -> None:
    with pytest.raises(ValueError, match="lengths_B"):
        reinforce(torch.tensor([1.0]), baseline="optimal")


@fast
@given(st.lists(st.tuples(numbers, st.integers(1, 50)), min_size=1, max_size=8))
def test_the_optimal_baseline_minimises_the_weighted_square(
    answers: list[tuple[float, int]],
) -> None:
    # d/db sum(l (r - b)^2) = -2 sum(l (r - b)) = 0
    scores_B = torch.tensor([score for score, _ in answers], dtype=torch.double)
    lengths_B = torch.tensor([length for _, length in answers])
    found_B = reinforce(scores_B, baseline="optimal", lengths_B=lengths_B)
    assert (lengths_B * found_B).sum().item() == pytest.approx(0.0, abs=1e-9)


def test_the_moving_average_by_hand_and_through_json() -> None:
    average = MovingAverage(decay=0.75)
    assert average.value is None
    first = average.update(torch.tensor([1.0, 3.0]))
    assert first.value == 2.0
    assert average.value is None  # the state before is untouched
    restored = MovingAverage(**json.loads(json.dumps(asdict(first))))
    # 0.75 * 2 + 0.25 * 6 = 3
    assert restored.update(torch.tensor([6.0])).value == 3.0


def test_rloo_by_hand() -> None:
    # group 0: 6 - (0 + 3) / 2, 0 - (6 + 3) / 2, 3 - (6 + 0) / 2; group 1: 1 - 2, 2 - 1
    scores_B = torch.tensor([6.0, 1.0, 0.0, 3.0, 2.0])
    found_B = rloo(scores_B, torch.tensor([0, 1, 0, 0, 1]))
    assert_close(found_B, torch.tensor([4.5, -1.0, -4.5, 0.0, 1.0]))


def test_rloo_of_a_group_of_one_is_zero() -> None:
    assert_close(rloo(torch.tensor([5.0, 1.0, 3.0]), torch.tensor([0, 1, 1]))[0], torch.tensor(0.0))


def test_remax_by_hand() -> None:
    found_B = remax(torch.tensor([1.0, 0.0]), torch.tensor([0.25, 1.0]))
    assert_close(found_B, torch.tensor([0.75, -1.0]))


groups = st.lists(st.tuples(numbers, st.integers(0, 3)), min_size=1, max_size=10)


@fast
@given(groups)
def test_group_advantages_agree_with_plain_loops(answers: list[tuple[float, int]]) -> None:
    scores_B = torch.tensor([score for score, _ in answers])
    group_B = torch.tensor([group for _, group in answers])
    for index, (score, group) in enumerate(answers):
        members = [other for other, number in answers if number == group]
        others = [s for place, (s, g) in enumerate(answers) if g == group and place != index]
        mean = sum(members) / len(members)
        sigma = math.sqrt(sum((member - mean) ** 2 for member in members) / len(members))
        left_out = score - sum(others) / len(others) if others else 0.0
        assert rloo(scores_B, group_B)[index].item() == pytest.approx(left_out, abs=1e-5)
        expected = (score - mean) / (sigma + 1e-2)
        assert grpo(scores_B, group_B, eps=1e-2)[index].item() == pytest.approx(expected, abs=1e-4)


@fast
@given(groups, numbers, st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_shift_and_scale(answers: list[tuple[float, int]], shift: float, scale: float) -> None:
    scores_B = torch.tensor([score for score, _ in answers])
    group_B = torch.tensor([group for _, group in answers])
    lengths_B = torch.arange(1, len(answers) + 1)
    moved_B = scale * scores_B + shift
    close = {"rtol": 1e-4, "atol": 1e-5}
    for scaling in ("group", "batch"):
        expected_B = grpo(scores_B, group_B, scale=scaling, eps=1e-12)
        assert_close(grpo(moved_B, group_B, scale=scaling, eps=1e-12), expected_B, **close)
    assert_close(
        grpo(moved_B, group_B, scale="none"), scale * grpo(scores_B, group_B, scale="none"), **close
    )
    assert_close(rloo(moved_B, group_B), scale * rloo(scores_B, group_B), **close)
    assert_close(
        remax(moved_B, moved_B.flip(0)), scale * remax(scores_B, scores_B.flip(0)), **close
    )
    assert_close(
        reinforce(moved_B, baseline="batch_mean"),
        scale * reinforce(scores_B, baseline="batch_mean"),
        **close,
    )
    assert_close(
        reinforce(moved_B, baseline="optimal", lengths_B=lengths_B),
        scale * reinforce(scores_B, baseline="optimal", lengths_B=lengths_B),
        **close,
    )


@fast
@given(groups)
def test_the_order_of_rollouts_and_the_names_of_groups_do_not_matter(
    answers: list[tuple[float, int]],
) -> None:
    scores_B = torch.tensor([score for score, _ in answers])
    group_B = torch.tensor([group for _, group in answers])
    for function in (grpo, rloo):
        found_B = function(scores_B.flip(0), 17 - 5 * group_B.flip(0))
        assert_close(found_B.flip(0), function(scores_B, group_B))


# --- per token, by hand -------------------------------------------------------------

# Rewards 1, 2, 4 and values 10, 20, 40 at unmasked tokens; a tool's output between them.
MASK_1T = row(1, 0, 1, 1, 0)
REWARDS_1T = row(1, NAN, 2, 4, INF)
VALUES_1T = row(10, INF, 20, 40, NAN)


def test_reward_to_go_by_hand() -> None:
    # 4; 2 + 0.5 * 4 = 4; 1 + 0.5 * 4 = 3
    assert_close(reward_to_go(REWARDS_1T, MASK_1T, 0.5), row(3, 0, 4, 4, 0))
    # undiscounted: 4; 2 + 4; 1 + 6
    assert_close(reward_to_go(REWARDS_1T, MASK_1T), row(7, 0, 6, 4, 0))


def test_gae_by_hand() -> None:
    # gamma 0.5: deltas 4 - 40 = -36; 2 + 20 - 20 = 2; 1 + 10 - 10 = 1
    # gamma lam 0.25: -36; 2 - 9 = -7; 1 - 1.75 = -0.75
    advantages_1T, returns_1T = gae(REWARDS_1T, VALUES_1T, MASK_1T, 0.5, 0.5)
    assert_close(advantages_1T, row(-0.75, 0, -7, -36, 0))
    assert_close(returns_1T, row(9.25, 0, 13, 4, 0))


def test_gae_bootstraps_answers_that_were_cut() -> None:
    # the last delta becomes 4 + 0.5 * 8 - 40 = -32; 2 - 8 = -6; 1 - 1.5 = -0.5
    found_1T, _ = gae(REWARDS_1T, VALUES_1T, MASK_1T, 0.5, 0.5, bootstrap_B=torch.tensor([8.0]))
    assert_close(found_1T, row(-0.5, 0, -6, -32, 0))


def test_n_step_by_hand() -> None:
    # n 2, gamma 0.5: 1 + 1 + 0.25 * 40 - 10 = 2; 2 + 2 + 0 - 20 = -16; 4 - 40 = -36
    assert_close(n_step(REWARDS_1T, VALUES_1T, MASK_1T, 0.5, 2), row(2, 0, -16, -36, 0))
    # behind the end 8: 2; 2 + 2 + 0.25 * 8 - 20 = -14; 4 + 0.5 * 8 - 40 = -32
    found_1T = n_step(REWARDS_1T, VALUES_1T, MASK_1T, 0.5, 2, bootstrap_B=torch.tensor([8.0]))
    assert_close(found_1T, row(2, 0, -14, -32, 0))


def test_whiten_by_hand() -> None:
    # 1, 3, 5: mean 3, squares 4 0 4 over 2 is 4, sigma 2
    x_BT = torch.tensor([[1.0, NAN], [5.0, 3.0]])
    mask_BT = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert_close(whiten(x_BT, mask_BT), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    kept_BT = whiten(x_BT, mask_BT, shift_mean=False)
    assert_close(kept_BT, torch.tensor([[2.0, 0.0], [4.0, 3.0]]))


def test_whiten_keeps_its_epsilon() -> None:
    # 0 and 2e-4: mean 1e-4, var 2e-8 over 1; 1e-4 / sqrt(2e-8 + 1e-8) = 1 / sqrt(3)
    found_1T = whiten(row(0.0, 2e-4), row(1, 1))
    assert_close(found_1T, row(-1 / math.sqrt(3), 1 / math.sqrt(3)))


def test_one_token_or_none_is_whitened_to_zero() -> None:
    assert_close(whiten(row(5.0, NAN), row(1, 0)), row(0, 0))
    assert_close(whiten(row(5.0, NAN), row(1, 0), shift_mean=False), row(5, 0))
    assert_close(whiten(row(5.0, NAN), row(0, 0)), row(0, 0))


def test_reinforce_plus_plus_by_hand() -> None:
    # returns at gamma 0.5: 2 * 0.5 = 1 and 2; 3; mean 2, sigma 1
    rewards_BT = torch.tensor([[0.0, NAN, 2.0], [3.0, INF, NAN]])
    mask_BT = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    found_BT = reinforce_plus_plus(rewards_BT, mask_BT, 0.5)
    assert_close(found_BT, torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))


def test_reinforce_plus_plus_with_the_groups_mean() -> None:
    # totals 2 and 4, mean 3: last rewards -1 and 1; returns at gamma 0.5: -0.5, -1 and 1
    # mean -1/6, deviations -2/6 -5/6 7/6, squares (4 + 25 + 49) / 36 / 2 = 13/12
    rewards_BT = torch.tensor([[0.0, NAN, 2.0], [4.0, INF, NAN]])
    mask_BT = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    found_BT = reinforce_plus_plus(rewards_BT, mask_BT, 0.5, group_B=torch.tensor([3, 3]))
    sigma = math.sqrt(13 / 12)
    expected_BT = torch.tensor([[-2 / 6 / sigma, 0.0, -5 / 6 / sigma], [7 / 6 / sigma, 0.0, 0.0]])
    assert_close(found_BT, expected_BT)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_groups_of_equal_scores_have_no_advantage_under_reinforce_plus_plus(gamma: float) -> None:
    # group 0 agrees on 0.7, whatever the lengths; group 1 is one rollout
    rewards_BT = torch.tensor([[0.0, 0.7, NAN], [0.7, NAN, NAN], [0.0, 0.0, 0.7], [0.0, 5.0, NAN]])
    mask_BT = (rewards_BT == rewards_BT).float()
    group_B = torch.tensor([0, 0, 0, 1])
    found_BT = reinforce_plus_plus(rewards_BT, mask_BT, gamma, group_B=group_B)
    assert_close(found_BT, torch.zeros(4, 3))


# --- per token, against plain loops over lists ----------------------------------------

JUNK = [NAN, INF, -INF, 1e30, -7.0]


@st.composite
def ragged(draw: st.DrawFn) -> tuple[list[list[tuple[float, float]]], Tensor, Tensor, Tensor]:
    """Rollouts as lists of (reward, value), and the same spread over (B, T) among junk."""
    tokens = st.one_of(st.none(), st.tuples(numbers, numbers))  # None: masked
    rows = draw(st.lists(st.lists(tokens, min_size=1, max_size=7), min_size=1, max_size=3))
    width = max(map(len, rows)) + draw(st.integers(0, 2))
    rewards_BT, values_BT = (
        torch.tensor([[draw(st.sampled_from(JUNK)) for _ in range(width)] for _ in rows])
        for _ in range(2)
    )
    mask_BT = torch.zeros(len(rows), width)
    for b, tokens_T in enumerate(rows):
        for t, token in enumerate(tokens_T):
            if token is not None:
                rewards_BT[b, t], values_BT[b, t] = token
                mask_BT[b, t] = 1.0
    lists = [[token for token in tokens_T if token is not None] for tokens_T in rows]
    return lists, rewards_BT, values_BT, mask_BT


def compare(found_BT: Tensor, mask_BT: Tensor, expected: list[list[float]]) -> None:
    assert (found_BT[mask_BT == 0] == 0).all()
    assert found_BT.dtype == torch.float32
    flat = torch.tensor([value for values in expected for value in values])
    assert_close(found_BT[mask_BT > 0], flat, rtol=1e-4, atol=1e-4)


Ragged = tuple[list[list[tuple[float, float]]], Tensor, Tensor, Tensor]


@fast
@given(ragged(), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_reward_to_go_agrees_with_its_definition(case: Ragged, gamma: float) -> None:
    lists, rewards_BT, _, mask_BT = case
    expected = [
        [
            sum(gamma**k * reward for k, (reward, _) in enumerate(tokens[t:]))
            for t in range(len(tokens))
        ]
        for tokens in lists
    ]
    compare(reward_to_go(rewards_BT, mask_BT, gamma), mask_BT, expected)


def steps_ahead(
    tokens: list[tuple[float, float]], t: int, n: int, gamma: float, end: float
) -> float:
    """The n-step advantage of token t."""
    n = min(n, len(tokens) - t)
    rewards = sum(gamma**k * tokens[t + k][0] for k in range(n))
    value = tokens[t + n][1] if t + n < len(tokens) else end
    return rewards + gamma**n * value - tokens[t][1]


@fast
@given(ragged(), st.sampled_from([0.5, 1.0]), st.integers(1, 9), st.none() | numbers)
def test_n_step_agrees_with_its_definition(
    case: Ragged, gamma: float, n: int, end: float | None
) -> None:
    lists, rewards_BT, values_BT, mask_BT = case
    expected = [
        [steps_ahead(tokens, t, n, gamma, end or 0.0) for t in range(len(tokens))]
        for tokens in lists
    ]
    bootstrap_B = None if end is None else torch.full((len(lists),), end)
    found_BT = n_step(rewards_BT, values_BT, mask_BT, gamma, n, bootstrap_B=bootstrap_B)
    compare(found_BT, mask_BT, expected)


@fast
@given(ragged(), st.sampled_from([0.5, 1.0]), st.sampled_from([0.0, 0.5, 0.95, 1.0]), numbers)
def test_gae_is_the_weighted_sum_of_n_step_advantages(
    case: Ragged, gamma: float, lam: float, end: float
) -> None:
    # A = (1 - lam) sum_n lam^(n-1) A(n), what lies behind the end counting as the last A(n)
    lists, rewards_BT, values_BT, mask_BT = case
    expected = []
    for tokens in lists:
        advantages = []
        for t in range(len(tokens)):
            left = len(tokens) - t
            terms = [steps_ahead(tokens, t, n, gamma, end) for n in range(1, left + 1)]
            weights = [(1 - lam) * lam**n for n in range(left - 1)] + [lam ** (left - 1)]
            advantages.append(sum(w * a for w, a in zip(weights, terms, strict=True)))
        expected.append(advantages)
    bootstrap_B = torch.full((len(lists),), end)
    advantages_BT, returns_BT = gae(
        rewards_BT, values_BT, mask_BT, gamma, lam, bootstrap_B=bootstrap_B
    )
    compare(advantages_BT, mask_BT, expected)
    returns = [
        [a + value for a, (_, value) in zip(row_T, tokens, strict=True)]
        for row_T, tokens in zip(expected, lists, strict=True)
    ]
    compare(returns_BT, mask_BT, returns)


@fast
@given(ragged(), st.sampled_from([0.5, 1.0]))
def test_the_ends_of_gae(case: Ragged, gamma: float) -> None:
    _, rewards_BT, values_BT, mask_BT = case
    one_step_BT, _ = gae(rewards_BT, values_BT, mask_BT, gamma, 0.0)
    assert_close(one_step_BT, n_step(rewards_BT, values_BT, mask_BT, gamma, 1))
    _, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma, 1.0)
    assert_close(returns_BT, reward_to_go(rewards_BT, mask_BT, gamma), rtol=1e-4, atol=1e-4)


@fast
@given(ragged(), st.booleans())
def test_whitened_tokens_have_mean_zero_and_variance_one(case: Ragged, shift: bool) -> None:
    lists, rewards_BT, _, mask_BT = case
    rewards = torch.tensor([reward for tokens in lists for reward, _ in tokens])
    white_BT = whiten(rewards_BT, mask_BT, shift_mean=shift)
    assert (white_BT[mask_BT == 0] == 0).all()
    white = white_BT[mask_BT > 0]
    assert white.isfinite().all()
    if len(set(rewards.tolist())) > 1:
        mean = 0.0 if shift else rewards.mean().item()
        assert white.mean().item() == pytest.approx(mean, abs=1e-4)
        assert white.std().item() == pytest.approx(1.0, abs=1e-4)
    elif len(rewards):
        assert_close(white, torch.zeros_like(white) if shift else rewards)


@fast
@given(ragged(), numbers, st.sampled_from([0.5, 2.0]))
def test_whitening_forgets_shift_and_scale(case: Ragged, shift: float, scale: float) -> None:
    _, rewards_BT, _, mask_BT = case
    moved_BT = whiten(scale * rewards_BT + shift, mask_BT)
    assert_close(moved_BT, whiten(rewards_BT, mask_BT), rtol=1e-4, atol=1e-5)


@fast
@given(ragged(), st.sampled_from([0.5, 1.0]), st.data())
def test_reinforce_plus_plus_agrees_with_plain_loops(
    case: Ragged, gamma: float, data: st.DataObject
) -> None:
    lists, rewards_BT, _, mask_BT = case
    group_B = data.draw(st.lists(st.integers(0, 1), min_size=len(lists), max_size=len(lists)))
    totals = [sum(reward for reward, _ in tokens) for tokens in lists]
    for grouped in (False, True):
        returns = []
        for tokens, group in zip(lists, group_B, strict=True):
            members = [total for total, g in zip(totals, group_B, strict=True) if g == group]
            mean = sum(members) / len(members) if grouped else 0.0
            rewards = [reward for reward, _ in tokens[:-1]]
            rewards += [reward - mean for reward, _ in tokens[-1:]]
            returns += [
                sum(gamma**k * reward for k, reward in enumerate(rewards[t:]))
                for t in range(len(rewards))
            ]
        flat = torch.tensor(returns, dtype=torch.double)
        variance = flat.var().item() if len(flat) > 1 else 0.0
        expected = (flat - flat.mean()) / math.sqrt(variance + 1e-8)
        found_BT = reinforce_plus_plus(
            rewards_BT, mask_BT, gamma, group_B=torch.tensor(group_B) if grouped else None
        )
        compare(found_BT, mask_BT, [expected.tolist()])


def on_ranks(
    parts: list[tuple[Tensor, Tensor]], function: Callable[[Tensor, Tensor, Callable], Tensor]
) -> Tensor:
    """`function` on every part at once, with a sum that waits for all of them."""
    barrier = threading.Barrier(len(parts), timeout=30)
    given_by: list[Tensor] = [torch.zeros(())] * len(parts)

    def run(rank: int) -> Tensor:
        def all_sum(values: Tensor) -> Tensor:
            given_by[rank] = values.clone()
            barrier.wait()
            total = torch.stack(given_by).sum(0)
            barrier.wait()
            return values.copy_(total)  # in place, as a collective is

        return function(*parts[rank], all_sum)

    with ThreadPoolExecutor(len(parts)) as pool:
        return torch.cat(list(pool.map(run, range(len(parts)))))


def test_ranks_share_mean_and_variance() -> None:
    # 1, 3 on one rank, 5 on the next, nothing on the last: mean 3, squares 4 0 4 over 2, sigma 2
    parts = [(row(1, 3), row(1, 1)), (row(NAN, 5), row(0, 1)), (row(NAN, NAN), row(0, 0))]
    expected_BT = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    found_BT = on_ranks(parts, lambda x, mask, total: whiten(x, mask, all_sum=total))
    assert_close(found_BT, expected_BT)
    # the same as returns: 1 = -2 + 3
    parts[0] = row(-2, 3), row(1, 1)
    found_BT = on_ranks(parts, lambda x, mask, total: reinforce_plus_plus(x, mask, all_sum=total))
    assert_close(found_BT, expected_BT)


@settings(max_examples=20, deadline=None)
@given(ragged(), st.integers(0, 3))
def test_two_ranks_whiten_to_the_same_numbers_as_one(case: Ragged, cut: int) -> None:
    _, rewards_BT, _, mask_BT = case
    parts = [
        (rewards_BT[:cut], mask_BT[:cut]),
        (rewards_BT[cut:], mask_BT[cut:]),
    ]  # one may be empty
    before_BT = rewards_BT.clone()
    found_BT = on_ranks(parts, lambda x, mask, total: whiten(x, mask, all_sum=total))
    assert_close(found_BT, whiten(rewards_BT, mask_BT), rtol=0, atol=0)
    found_BT = on_ranks(
        parts, lambda x, mask, total: reinforce_plus_plus(x, mask, 0.5, all_sum=total)
    )
    assert_close(found_BT, reinforce_plus_plus(rewards_BT, mask_BT, 0.5), rtol=1e-6, atol=1e-6)
    assert_close(rewards_BT, before_BT, equal_nan=True)


# --- gradients, types, inputs ----------------------------------------------------------

DOUBLE_MASK_BT = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]])


def double(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, generator=generator, dtype=torch.double).requires_grad_()


def test_gradients() -> None:
    rewards_BT, values_BT, mask_BT = double(0), double(1), DOUBLE_MASK_BT
    end_B = torch.tensor([0.3, -0.2], dtype=torch.double, requires_grad=True)
    check = torch.autograd.gradcheck
    assert check(lambda r: reward_to_go(r, mask_BT, 0.9), rewards_BT)
    assert check(
        lambda r, v, e: gae(r, v, mask_BT, 0.9, 0.8, bootstrap_B=e), (rewards_BT, values_BT, end_B)
    )
    assert check(
        lambda r, v, e: n_step(r, v, mask_BT, 0.9, 2, bootstrap_B=e), (rewards_BT, values_BT, end_B)
    )
    assert check(lambda r: whiten(r, mask_BT), rewards_BT)
    assert check(lambda r: whiten(r, mask_BT, shift_mean=False), rewards_BT)
    assert check(lambda r: reinforce_plus_plus(r, mask_BT, 0.9), rewards_BT)
    group_B = torch.tensor([0, 0])
    assert check(lambda r: reinforce_plus_plus(r, mask_BT, 0.9, group_B=group_B), rewards_BT)
    scores_B = torch.tensor([1.0, 0.5, -2.0, 0.0], dtype=torch.double, requires_grad=True)
    group_B = torch.tensor([0, 0, 0, 1])
    assert check(lambda s: rloo(s, group_B), scores_B)
    assert check(lambda s: grpo(s, group_B, scale="batch"), scores_B)
    assert check(remax, (scores_B, scores_B.detach().flip(0).requires_grad_()))
    lengths_B = torch.tensor([1, 2, 3, 4])
    assert check(lambda s: reinforce(s, baseline="optimal", lengths_B=lengths_B), scores_B)


TOKEN_FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "reward_to_go": lambda r, v, m: reward_to_go(r, m, 0.9),
    "gae": lambda r, v, m: gae(r, v, m, 0.9, 0.8)[0],
    "returns": lambda r, v, m: gae(r, v, m, 0.9, 0.8)[1],
    "n_step": lambda r, v, m: n_step(r, v, m, 0.9, 2),
    "whiten": lambda r, v, m: whiten(r, m),
    "reinforce_plus_plus": lambda r, v, m: reinforce_plus_plus(r, m, 0.9),
    "with baseline": lambda r, v, m: reinforce_plus_plus(r, m, 0.9, group_B=torch.zeros(len(r))),
}


@pytest.mark.parametrize("name", TOKEN_FUNCTIONS)
@pytest.mark.parametrize("junk", [NAN, INF, 1e30])
def test_masked_entries_have_no_gradient_and_spoil_none(name: str, junk: float) -> None:
    function, mask_BT = TOKEN_FUNCTIONS[name], DOUBLE_MASK_BT
    gradients = []
    for filling in (0.0, junk):
        rewards_BT, values_BT = (
            torch.where(mask_BT > 0, double(seed).detach(), filling).requires_grad_()
            for seed in range(2)
        )
        found_BT = function(rewards_BT, values_BT, mask_BT)
        weights_BT = torch.arange(8.0).view(2, 4) ** 2
        (found_BT * weights_BT).sum().backward()
        gradients.append((found_BT.detach(), rewards_BT.grad, values_BT.grad))
    assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    found_BT, rewards_grad_BT, _ = gradients[1]
    assert rewards_grad_BT is not None
    assert (rewards_grad_BT[mask_BT == 0] == 0).all()
    assert rewards_grad_BT.isfinite().all()
    assert found_BT.abs().sum() > 0


@pytest.mark.parametrize("name", TOKEN_FUNCTIONS)
def test_inputs_are_never_changed_and_masks_of_any_type_do(name: str) -> None:
    rewards_BT, values_BT = (double(seed).detach().float() for seed in range(2))
    before = rewards_BT.clone(), values_BT.clone(), DOUBLE_MASK_BT.clone()
    found_BT = TOKEN_FUNCTIONS[name](rewards_BT, values_BT, DOUBLE_MASK_BT)
    assert found_BT.dtype == torch.float32
    assert_close((rewards_BT, values_BT, DOUBLE_MASK_BT), before, rtol=0, atol=0)
    for mask_BT in (DOUBLE_MASK_BT.bool(), DOUBLE_MASK_BT.long()):
        assert_close(TOKEN_FUNCTIONS[name](rewards_BT, values_BT, mask_BT), found_BT)


def test_scores_are_never_changed() -> None:
    scores_B, group_B = SCORES_B.clone(), GROUP_B.clone()
    lengths_B = torch.arange(1, 7)
    for found_B in (
        grpo(scores_B, group_B),
        rloo(scores_B, group_B),
        remax(scores_B, scores_B),
        reinforce(scores_B, baseline="optimal", lengths_B=lengths_B, group_B=group_B),
        reinforce(scores_B, baseline="moving_average", average=0.5),
    ):
        assert found_B.dtype == torch.float32
        assert found_B.shape == scores_B.shape
    assert_close((scores_B, group_B, lengths_B), (SCORES_B, GROUP_B, torch.arange(1, 7)))


# --- shaping ------------------------------------------------------------------------


def test_the_overlong_penalty_by_hand() -> None:
    # free up to 80; 90 is half of the buffer of 20; full from 100 on
    lengths_B = torch.tensor([0, 80, 90, 95, 100, 120])
    expected_B = torch.tensor([0.0, 0.0, -0.5, -0.75, -1.0, -1.0])
    assert_close(overlong_penalty(lengths_B, 100, 20), expected_B)
    assert_close(overlong_penalty(lengths_B, 100, 20, factor=3.0), 3.0 * expected_B)


@fast
@given(st.integers(1, 200), st.data())
def test_the_overlong_penalty_only_grows(max_tokens: int, data: st.DataObject) -> None:
    buffer = data.draw(st.integers(1, max_tokens))
    penalty_B = overlong_penalty(torch.arange(max_tokens + 1), max_tokens, buffer)
    assert (penalty_B.diff() <= 0).all()
    assert (penalty_B < 0).sum() == buffer
    assert penalty_B[-1] == -1
