"""Numbers worked by hand, gradients in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from learner.algorithms.advantages import grpo, reinforce
from learner.algorithms.corrections import truncated_weights
from learner.algorithms.kl import kl_estimate
from learner.algorithms.losses import aggregate, denominator_of, ppo_clip

SCORES_B = torch.tensor([1.0, 0.0, 0.0, 1.0, 3.0, 1.0])
GROUP_B = torch.tensor([7, 7, 7, 7, 2, 2])


def test_grpo_divides_by_the_groups_population_sigma() -> None:
    # group 7: mean 0.5, sigma 0.5; group 2: mean 2, sigma 1
    expected = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0])
    torch.testing.assert_close(grpo(SCORES_B, GROUP_B, eps=1e-9), expected)


def test_grpo_unbiased_divides_by_n_minus_one() -> None:
    # group 7: sum of squares 1, over 3; group 2: sum of squares 2, over 1
    sigma = torch.tensor([math.sqrt(1 / 3)] * 4 + [math.sqrt(2.0)] * 2)
    centred = torch.tensor([0.5, -0.5, -0.5, 0.5, 1.0, -1.0])
    torch.testing.assert_close(grpo(SCORES_B, GROUP_B, unbiased=True, eps=1e-9), centred / sigma)


def test_grpo_scaled_by_the_batch() -> None:
    # the batch: mean 1, squares 0 1 1 0 4 0, sigma 1
    centred = torch.tensor([0.5, -0.5, -0.5, 0.5, 1.0, -1.0])
    torch.testing.assert_close(grpo(SCORES_B, GROUP_B, scale="batch", eps=1e-9), centred)


def test_grpo_without_scale_is_dr_grpo() -> None:
    expected = torch.tensor([0.5, -0.5, -0.5, 0.5, 1.0, -1.0])
    torch.testing.assert_close(grpo(SCORES_B, GROUP_B, scale="none"), expected)


@pytest.mark.parametrize("unbiased", [False, True])
def test_equal_rewards_and_groups_of_one_have_no_advantage(unbiased: bool) -> None:
    scores_B, group_B = torch.tensor([2.0, 2.0, 5.0]), torch.tensor([0, 0, 1])
    torch.testing.assert_close(grpo(scores_B, group_B, unbiased=unbiased), torch.zeros(3))


@pytest.mark.parametrize("reward", [0.7, 3.3, 10.1, 100.1])
@pytest.mark.parametrize("size", [3, 7, 8, 16])
def test_equal_rewards_have_no_advantage_whatever_their_rounding(reward: float, size: int) -> None:
    advantages_B = grpo(torch.full((size,), reward), torch.zeros(size, dtype=torch.long))
    assert advantages_B.abs().max() == 0


def test_reinforce_baselines() -> None:
    scores_B = torch.tensor([1.0, 3.0])
    torch.testing.assert_close(reinforce(scores_B), scores_B)
    torch.testing.assert_close(
        reinforce(scores_B, baseline="batch_mean"), torch.tensor([-1.0, 1.0])
    )


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def test_ppo_clip_by_hand() -> None:
    # ratios 1.5 and 0.5 with A = 2 and -2, bounds 0.8 and 1.2
    old_1T = row(-1.0, -1.0, -1.0, -1.0)
    new_1T = old_1T + row(1.5, 0.5, 1.5, 0.5).log()
    loss_1T, metrics = ppo_clip(new_1T, old_1T, row(2.0, 2.0, -2.0, -2.0), row(1, 1, 1, 1))
    torch.testing.assert_close(loss_1T, row(-2.4, -1.0, 3.0, 1.6))
    assert metrics["clip_share"] == 2
    torch.testing.assert_close(metrics["ratio"], torch.tensor(4.0))


def test_clip_higher_raises_only_the_upper_bound() -> None:
    old_1T = row(0.0, 0.0)
    new_1T = row(1.5, 0.5).log()
    loss_1T, _ = ppo_clip(new_1T, old_1T, row(1.0, -1.0), row(1, 1), clip_high=0.28)
    torch.testing.assert_close(loss_1T, row(-1.28, 0.8))


def test_dual_clip_bounds_the_loss_of_negative_advantages() -> None:
    new_1T = row(10.0, 10.0).log()
    loss_1T, _ = ppo_clip(new_1T, row(0.0, 0.0), row(-1.0, 1.0), row(1, 1), dual_clip=3.0)
    torch.testing.assert_close(loss_1T, row(3.0, -1.2))


def test_the_gradient_at_ratio_one_is_minus_the_advantage() -> None:
    new_1T = row(-1.0, -2.0).requires_grad_()
    loss_1T, _ = ppo_clip(new_1T, new_1T.detach(), row(3.0, -0.5), row(1, 1))
    loss_1T.sum().backward()
    torch.testing.assert_close(new_1T.grad, row(-3.0, 0.5))


@pytest.mark.parametrize("log_ratio", [-200.0, 200.0, float("nan"), float("inf")])
def test_masked_tokens_never_leak(log_ratio: float) -> None:
    new_1T = row(log_ratio, -1.0).requires_grad_()
    loss_1T, metrics = ppo_clip(new_1T, row(0.0, -1.0), row(1.0, 1.0), row(0, 1))
    aggregate(loss_1T, row(0, 1), "token_mean", denominator=1.0).backward()
    assert new_1T.grad is not None
    assert loss_1T[0, 0] == 0
    assert new_1T.grad[0, 0] == 0
    assert all(value.isfinite() for value in metrics.values())


@pytest.mark.parametrize("log_ratio", [-200.0, 200.0])
def test_extreme_ratios_stay_finite(log_ratio: float) -> None:
    new_1T = row(log_ratio).requires_grad_()
    loss_1T, metrics = ppo_clip(new_1T, row(0.0), row(-1.0), row(1))
    loss_1T.sum().backward()
    assert loss_1T.isfinite().all()
    assert new_1T.grad is not None
    assert new_1T.grad.isfinite().all()
    assert all(value.isfinite() for value in metrics.values())


LOSS_BT = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]])
MASK_BT = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_mean", 7 / 3),
        ("seq_mean_token_mean", (1.5 + 4.0) / 2),
        ("seq_mean_token_sum", 7 / 2),
        ("token_sum_norm", 7 / (2 * 10)),
    ],
)
def test_aggregations(mode: str, expected: float) -> None:
    denominator = denominator_of(mode, num_tokens=3, num_rollouts=2, max_tokens=10)  # type: ignore[arg-type]
    found = aggregate(LOSS_BT, MASK_BT, mode, denominator=denominator)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(expected)
    parts = [
        aggregate(LOSS_BT[i : i + 1], MASK_BT[i : i + 1], mode, denominator=denominator)  # type: ignore[arg-type]
        for i in range(2)
    ]
    assert sum(part.item() for part in parts) == pytest.approx(expected)


def test_kl_estimators() -> None:
    new, ref = torch.tensor([-1.0]), torch.tensor([-1.5])
    assert kl_estimate(new, ref, "k1").item() == pytest.approx(0.5)
    assert kl_estimate(new, ref, "k2").item() == pytest.approx(0.125)
    assert kl_estimate(new, ref, "k3").item() == pytest.approx(math.exp(-0.5) - 0.5)


def test_truncated_weights_per_token() -> None:
    log_ratio_1T = row(math.log(0.5), math.log(3.0), 200.0, -200.0)
    weights_1T = truncated_weights(log_ratio_1T, row(1, 1, 1, 1), cap=2.0)
    torch.testing.assert_close(weights_1T, row(0.5, 2.0, 2.0, 0.0))


def test_truncated_weights_of_the_sequence_multiply() -> None:
    log_ratio_BT = torch.tensor([[0.5, 3.0], [4.0, 2.0]]).log()
    mask_BT = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    weights_BT = truncated_weights(log_ratio_BT, mask_BT, level="sequence", cap=2.0)
    torch.testing.assert_close(weights_BT, torch.tensor([[1.5, 1.5], [2.0, 1.0]]))


def test_corrections_carry_no_gradient() -> None:
    log_ratio_1T = row(0.3).requires_grad_()
    assert not truncated_weights(log_ratio_1T, row(1)).requires_grad
