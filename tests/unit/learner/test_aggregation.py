"""From losses per token to the scalar, by hand and however the batch is cut."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from learner.algorithms.losses import aggregate, denominator_of
from slipstream.config.algorithm import Aggregation

MODES = get_args(Aggregation)
LOSS_BT = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]])
MASK_BT = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
EXPECTED = {
    "token_mean": 7 / 3,
    "seq_mean_token_mean": (1.5 + 4.0) / 2,
    "seq_mean_token_sum": 7 / 2,
    "token_sum_norm": 7 / (2 * 10),
}


@pytest.mark.parametrize("mode", MODES)
def test_aggregations(mode: Aggregation) -> None:
    denominator = denominator_of(mode, num_tokens=3, num_rollouts=2, max_tokens=10)
    found = aggregate(LOSS_BT, MASK_BT, mode, denominator=denominator)
    assert found.item() == pytest.approx(EXPECTED[mode])


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(-9, 9), max_size=4), min_size=1, max_size=5), st.data())
def test_how_the_batch_is_cut_and_padded_changes_nothing(
    mode: Aggregation, rollouts: list[list[int]], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(rollouts)))

    def share(part: list[list[int]], padding: int) -> float:
        width = max([1, *map(len, part)]) + padding
        loss_BT = torch.full((max(1, len(part)), width), float("nan"))
        mask_BT = torch.zeros_like(loss_BT)
        for b, tokens in enumerate(part):
            loss_BT[b, : len(tokens)], mask_BT[b, : len(tokens)] = torch.tensor(tokens).float(), 1.0
        denominator = denominator_of(
            mode,
            num_tokens=max(1, sum(map(len, rollouts))),
            num_rollouts=len(rollouts),
            max_tokens=4,
        )
        return aggregate(loss_BT, mask_BT, mode, denominator=denominator).item()

    whole = share(rollouts, 0)
    assert share(rollouts[:cut], 1) + share(rollouts[cut:], 2) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_of_a_token_is_its_share(mode: Aggregation) -> None:
    loss_BT = torch.where(MASK_BT > 0, LOSS_BT, float("nan")).requires_grad_()
    aggregate(loss_BT, MASK_BT, mode, denominator=4.0).backward()
    # A quarter each, and half of that for the two tokens of row 0 if rows are averaged first.
    first = 0.125 if mode == "seq_mean_token_mean" else 0.25
    assert_close(loss_BT.grad, torch.tensor([[first, first, 0.0], [0.25, 0.0, 0.0]]))


@pytest.mark.parametrize("mode", MODES)
def test_a_microbatch_without_trained_tokens_adds_nothing(mode: Aggregation) -> None:
    loss_BT = torch.full((2, 3), float("inf")).requires_grad_()
    total = aggregate(loss_BT, torch.zeros(2, 3), mode, denominator=4.0)
    total.backward()
    assert total.item() == 0
    assert loss_BT.grad is not None
    assert (loss_BT.grad == 0).all()
