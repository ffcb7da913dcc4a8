"""Estimators against the exact divergence, and the controller by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from learner.algorithms.kl import AdaptiveKLController, kl_estimate

fast = settings(max_examples=50, deadline=None)
ESTIMATORS = ("k1", "k2", "k3")


def test_kl_estimators() -> None:
    new, ref = torch.tensor([-1.0]), torch.tensor([-1.5])
    assert kl_estimate(new, ref, "k1").item() == pytest.approx(0.5)
    assert kl_estimate(new, ref, "k2").item() == pytest.approx(0.125)
    assert kl_estimate(new, ref, "k3").item() == pytest.approx(math.exp(-0.5) - 0.5)


logits = st.lists(st.floats(-3, 3), min_size=3, max_size=3)


@fast
@given(logits, logits)
def test_k1_and_k3_are_unbiased(new: list[float], ref: list[float]) -> None:
    # The expectation over pi, exactly: every token of a vocabulary, weighted by pi.
    new_V = torch.tensor(new, dtype=torch.double).log_softmax(-1)
    ref_V = torch.tensor(ref, dtype=torch.double).log_softmax(-1)
    exact = torch.nn.functional.kl_div(ref_V, new_V, log_target=True, reduction="sum")
    for estimator in ("k1", "k3"):
        assert_close((new_V.exp() * kl_estimate(new_V, ref_V, estimator)).sum(), exact)
    assert (kl_estimate(new_V, ref_V, "k3") >= -1e-12).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_gradients(estimator: str) -> None:
    new = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.double, requires_grad=True)
    ref = torch.tensor([-1.5, -1.0, -0.4], dtype=torch.double)
    assert torch.autograd.gradcheck(lambda x: kl_estimate(x, ref, estimator), new)  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("difference", [-200.0, 200.0])
def test_extreme_differences_stay_finite(estimator: str, difference: float) -> None:
    new = torch.tensor([difference], requires_grad=True)
    found = kl_estimate(new, torch.zeros(1), estimator)  # type: ignore[arg-type]
    found.sum().backward()
    assert found.isfinite().all()
    assert new.grad is not None
    assert new.grad.isfinite().all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_policies_have_no_divergence(estimator: str) -> None:
    new = torch.tensor([-1.0, -20.0])
    assert (kl_estimate(new, new, estimator) == 0).all()  # type: ignore[arg-type]


def test_the_controller_by_hand() -> None:
    controller = AdaptiveKLController(0.5, 4.0, 100)
    assert controller.value == 0.5
    controller.update(4.4, 10)  # 4.4 / 4 - 1 = 0.1; 1 + 0.1 * 10 / 100 = 1.01
    assert controller.value == pytest.approx(0.505)
    controller.update(40.0, 50)  # 9 is clipped to 0.2; 1 + 0.2 * 0.5 = 1.1
    assert controller.value == pytest.approx(0.5555)
    controller.update(0.0, 100)  # -1 is clipped to -0.2; 0.8
    assert controller.value == pytest.approx(0.4444)
    controller.update(4.0, 100)  # on target
    assert controller.value == pytest.approx(0.4444)


@fast
@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 10)), max_size=6), st.integers(0, 6))
def test_a_controller_goes_on_from_its_value(steps: list[tuple[float, int]], cut: int) -> None:
    straight = AdaptiveKLController(0.2, 6.0, 50)
    before = AdaptiveKLController(0.2, 6.0, 50)
    for kl, n_steps in steps:
        straight.update(kl, n_steps)
    for kl, n_steps in steps[:cut]:
        before.update(kl, n_steps)
    after = AdaptiveKLController(before.value, 6.0, 50)
    for kl, n_steps in steps[cut:]:
        after.update(kl, n_steps)
    assert after.value == straight.value
    assert after.value > 0
