"""Numbers worked by hand, and properties of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from learner.algorithms.corrections import (
    cap_by_lag,
    geometric_mask,
    icepop,
    opposite_sign_mask,
    truncated_weights,
)
from learner.algorithms.losses import aggregate

fast = settings(max_examples=50, deadline=None)
NAN, INF = float("nan"), float("inf")


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def opposite_sign(log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return opposite_sign_mask(log_ratio_BT, mask_BT, -torch.ones_like(log_ratio_BT), 0.1)


CORRECTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "token": truncated_weights,
    "sequence": partial(truncated_weights, level="sequence"),
    "icepop": partial(icepop, low=0.5, high=2.0),
    "geometric": partial(geometric_mask, low=0.5, high=2.0),
    "opposite_sign": opposite_sign,
}


def test_truncated_weights_per_token() -> None:
    log_ratio_1T = row(math.log(0.5), math.log(3.0), 200.0, -200.0)
    weights_1T = truncated_weights(log_ratio_1T, row(1, 1, 1, 1), cap=2.0)
    assert_close(weights_1T, row(0.5, 2.0, 2.0, 0.0))


def test_truncated_weights_of_the_sequence_multiply() -> None:
    # 0.5 * 3 = 1.5; 4 over the cap
    log_ratio_BT = torch.tensor([[0.5, 3.0], [4.0, 2.0]]).log()
    mask_BT = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    weights_BT = truncated_weights(log_ratio_BT, mask_BT, level="sequence", cap=2.0)
    assert_close(weights_BT, torch.tensor([[1.5, 1.5], [2.0, 1.0]]))


def test_the_cap_may_differ_by_token() -> None:
    log_ratio_1T = row(8.0, 8.0, 0.5).log()
    weights_1T = truncated_weights(log_ratio_1T, row(1, 1, 1), cap=row(2.0, 4.0, 2.0))
    assert_close(weights_1T, row(2.0, 4.0, 0.5))
    # the product is 32
    weights_1T = truncated_weights(
        log_ratio_1T, row(1, 1, 1), level="sequence", cap=row(2.0, 64.0, 16.0)
    )
    assert_close(weights_1T, row(2.0, 32.0, 16.0))


def test_the_cap_nears_one_with_lag() -> None:
    # 1 + 2 * 0.5^lag
    lags_1T = torch.tensor([[0, 1, 2, 50]])
    caps_1T = cap_by_lag(lags_1T, 3.0, decay=0.5)
    assert_close(caps_1T, row(3.0, 2.0, 1.5, 1.0))
    log_ratio_1T = row(9.0, 9.0, 9.0, 0.25).log()
    assert_close(
        truncated_weights(log_ratio_1T, row(1, 1, 1, 1), cap=caps_1T), row(3.0, 2.0, 1.5, 0.25)
    )
    # by default 1 + 0.9^lag
    assert_close(cap_by_lag(torch.tensor([0, 1])), torch.tensor([2.0, 1.9]))


def test_icepop_by_hand() -> None:
    log_ratio_1T = row(0.4, 0.6, 1.0, 1.9, 2.1, 3.0).log()
    weights_1T = icepop(log_ratio_1T, row(1, 1, 1, 1, 1, 0), 0.5, 2.0)
    assert_close(weights_1T, row(0.0, 0.6, 1.0, 1.9, 0.0, 1.0))
    assert_close(icepop(row(-200.0), row(1), 0.0, 2.0), row(0.0))
    # 1 where masked, also where 1 is outside
    assert_close(icepop(row(0.0, 0.0), row(1, 0), 1.5, 2.0), row(0.0, 1.0))


def test_the_geometric_mask_by_hand() -> None:
    # means of log: (ln 4 + ln 1) / 2 = ln 2; ln 0.3; (ln 8 + ln 1/8) / 2 = ln 1
    log_ratio_BT = torch.tensor([[4.0, 9.0, 1.0], [0.3, 9.0, 9.0], [8.0, 0.125, 9.0]]).log()
    mask_BT = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    kept_BT = geometric_mask(log_ratio_BT, mask_BT, 0.5, 1.9)
    assert_close(kept_BT, torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]))
    kept_BT = geometric_mask(log_ratio_BT, mask_BT, 0.25, 2.1)
    assert_close(kept_BT, torch.ones(3, 3))


def test_the_geometric_mask_does_not_mind_length() -> None:
    # 200 tokens of ratio 1.01: the product is 7.3, the mean 1.01
    log_ratio_BT = torch.full((1, 200), 1.01).log()
    ones_BT = torch.ones(1, 200)
    assert_close(geometric_mask(log_ratio_BT, ones_BT, 0.98, 1.02), ones_BT)


def test_the_opposite_sign_mask_by_hand() -> None:
    # KL(mu || pi_old), the mean of -log ratio: 0.3, 0.3, -0.3, and 0.1
    log_ratio_BT = torch.tensor([[-0.6, 0.0], [-0.3, 9.0], [0.0, 0.6], [-0.1, -0.1]])
    mask_BT = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    advantages_BT = torch.tensor([[-1.0, -1.0], [2.0, -2.0], [-1.0, -1.0], [-1.0, -1.0]])
    weights_BT = opposite_sign_mask(log_ratio_BT, mask_BT, advantages_BT, 0.2)
    # far and bad; far and good, one token masked; nearer now than then; near
    expected_BT = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    assert_close(weights_BT, expected_BT)
    # each token goes by its own advantage
    mixed_BT = torch.tensor([[-1.0, 1.0]])
    assert_close(opposite_sign_mask(log_ratio_BT[:1], mask_BT[:1], mixed_BT, 0.2), row(0.0, 1.0))


def test_a_dropped_rollout_leaves_the_weight_of_the_others() -> None:
    log_ratio_BT = torch.tensor([[3.0], [0.0]])
    mask_BT = torch.ones(2, 1)
    weights_BT = geometric_mask(log_ratio_BT, mask_BT, 0.5, 2.0)
    loss_BT = torch.tensor([[100.0], [4.0]]) * weights_BT
    assert aggregate(loss_BT, mask_BT, "seq_mean_token_mean", denominator=2.0).item() == 2.0


@pytest.mark.parametrize("name", CORRECTIONS)
def test_weights_carry_no_gradient_and_leave_inputs_alone(name: str) -> None:
    log_ratio_1T = row(0.3, -0.2).requires_grad_()
    weights_1T = CORRECTIONS[name](log_ratio_1T, row(1, 0))
    assert not weights_1T.requires_grad
    assert weights_1T.dtype == torch.float32
    assert_close(log_ratio_1T.detach(), row(0.3, -0.2), rtol=0, atol=0)


@pytest.mark.parametrize("name", CORRECTIONS)
@pytest.mark.parametrize("log_ratio", [-200.0, 200.0])
def test_extreme_ratios_stay_finite(name: str, log_ratio: float) -> None:
    weights_1T = CORRECTIONS[name](row(log_ratio, log_ratio, 0.0), row(1, 1, 1))
    assert weights_1T.isfinite().all()
    assert weights_1T.max() <= 2.0


@st.composite
def ratios(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    num_rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    cells = st.lists(st.integers(-9, 9), min_size=width, max_size=width)
    flags = st.lists(st.booleans(), min_size=width, max_size=width)
    log_ratio_BT = torch.tensor([draw(cells) for _ in range(num_rows)]) / 8.0
    return log_ratio_BT, torch.tensor([draw(flags) for _ in range(num_rows)]).float()


@pytest.mark.parametrize("name", CORRECTIONS)
@fast
@given(ratios(), st.sampled_from([NAN, INF, -INF, 1e30, -200.0]), st.integers(0, 3))
def test_masked_entries_and_padding_change_nothing(
    name: str, case: tuple[Tensor, Tensor], junk: float, padding: int
) -> None:
    log_ratio_BT, mask_BT = case
    dirty_BT = torch.nn.functional.pad(
        torch.where(mask_BT > 0, log_ratio_BT, junk), (0, padding), value=junk
    )
    clean_BT = torch.where(mask_BT > 0, log_ratio_BT, 0.0)
    found_BT = CORRECTIONS[name](dirty_BT, torch.nn.functional.pad(mask_BT, (0, padding)))
    expected_BT = CORRECTIONS[name](clean_BT, mask_BT)
    assert_close(found_BT, torch.nn.functional.pad(expected_BT, (0, padding), value=1.0))
    assert (expected_BT[mask_BT == 0] == 1).all()


@pytest.mark.parametrize("name", CORRECTIONS)
@fast
@given(ratios())
def test_on_policy_every_weight_is_one(name: str, case: tuple[Tensor, Tensor]) -> None:
    log_ratio_BT, mask_BT = case
    assert_close(
        CORRECTIONS[name](torch.zeros_like(log_ratio_BT), mask_BT), torch.ones_like(mask_BT)
    )


@fast
@given(ratios())
def test_what_icepop_keeps_truncation_keeps_unchanged(case: tuple[Tensor, Tensor]) -> None:
    log_ratio_BT, mask_BT = case
    popped_BT = icepop(log_ratio_BT, mask_BT, 0.0, 2.0)
    truncated_BT = truncated_weights(log_ratio_BT, mask_BT, cap=2.0)
    kept_BT = (log_ratio_BT < math.log(2.0)) | (mask_BT == 0)
    assert_close(popped_BT, torch.where(kept_BT, truncated_BT, 0.0))
