"""Numbers worked by hand, gradients by finite differences or in closed form, and properties."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from learner.algorithms import losses
from learner.algorithms.losses import (
    aggregate,
    cispo,
    gspo,
    policy_gradient,
    ppo_clip,
    ppo_kl,
    sapo,
    value_loss,
)
from learner.algorithms.masks import rollout_mean

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
LOSSES: dict[str, Loss] = {
    "policy_gradient": policy_gradient,
    "ppo_clip": ppo_clip,
    "dual_clip": partial(ppo_clip, dual_clip=3.0),
    "ppo_kl": ppo_kl,
    "gspo": gspo,
    "cispo": cispo,
    "sapo": sapo,
}
ADDS_CLIP_SHARE = {"ppo_clip", "dual_clip", "gspo", "cispo"}
fast = settings(max_examples=50, deadline=None)
NAN, INF = float("nan"), float("inf")


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def gradient(loss: Loss, logprobs_BT: Tensor, *others: Tensor) -> Tensor:
    logprobs_BT = logprobs_BT.detach().clone().requires_grad_()
    loss_BT, _ = loss(logprobs_BT, *others)
    (found_BT,) = torch.autograd.grad(loss_BT.sum(), logprobs_BT)
    return found_BT


# --- the contract ---------------------------------------------------------------------


def test_every_policy_loss_is_called_the_same_way() -> None:
    public = [
        function
        for name, function in inspect.getmembers(losses, inspect.isfunction)
        if function.__module__ == losses.__name__ and not name.startswith("_")
    ]
    policy_losses = [f for f in public if f not in {value_loss, aggregate, losses.denominator_of}]
    found = {getattr(loss, "func", loss) for loss in LOSSES.values()}
    assert set(policy_losses) == found, "a policy loss that the tests of this file leave out"
    for function in policy_losses:
        parameters = list(inspect.signature(function).parameters.values())
        assert [parameter.name for parameter in parameters[:4]] == [
            "logprobs_BT",
            "old_logprobs_BT",
            "advantages_BT",
            "mask_BT",
        ]
        for parameter in parameters[4:]:
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert parameter.default is not inspect.Parameter.empty


@pytest.mark.parametrize("name", LOSSES)
def test_metrics_are_sums_over_unmasked_tokens(name: str) -> None:
    # ratios 2 and 1/2: their sum 2.5; k3 2 - 1 - ln 2 and 1/2 - 1 + ln 2, sum 0.5
    new_1T = row(2.0, 100.0, 0.5).log()
    loss_1T, metrics = LOSSES[name](new_1T, torch.zeros(1, 3), row(1, 1, 1), row(1, 0, 1))
    assert loss_1T.shape == (1, 3)
    assert loss_1T.dtype == torch.float32
    assert_close(metrics["ratio"], torch.tensor(2.5))
    assert_close(metrics["kl_old"], torch.tensor(0.5))
    extra = {"clip_share"} if name in ADDS_CLIP_SHARE else set()
    assert set(metrics) == {"ratio", "kl_old"} | extra
    assert not any(value.requires_grad for value in metrics.values())


# --- values by hand -------------------------------------------------------------------


def test_policy_gradient_by_hand() -> None:
    # -A log pi: -3 * -2, -(-1) * -0.5; the gradient is -A, whatever pi_old
    new_1T, old_1T, advantages_1T = row(-2.0, -0.5), row(-9.0, 0.0), row(3.0, -1.0)
    loss_1T, _ = policy_gradient(new_1T, old_1T, advantages_1T, row(1, 1))
    assert_close(loss_1T, row(6.0, -0.5))
    assert_close(gradient(policy_gradient, new_1T, old_1T, advantages_1T, row(1, 1)), row(-3, 1))


def test_ppo_clip_by_hand() -> None:
    # ratios 1.5 and 0.5 with A = 2 and -2, bounds 0.8 and 1.2
    old_1T = row(-1.0, -1.0, -1.0, -1.0)
    new_1T = old_1T + row(1.5, 0.5, 1.5, 0.5).log()
    loss_1T, metrics = ppo_clip(new_1T, old_1T, row(2.0, 2.0, -2.0, -2.0), row(1, 1, 1, 1))
    assert_close(loss_1T, row(-2.4, -1.0, 3.0, 1.6))
    assert metrics["clip_share"] == 2
    assert_close(metrics["ratio"], torch.tensor(4.0))


def test_clip_higher_raises_only_the_upper_bound() -> None:
    new_1T = row(1.5, 0.5).log()
    loss_1T, _ = ppo_clip(new_1T, row(0.0, 0.0), row(1.0, -1.0), row(1, 1), clip_high=0.28)
    assert_close(loss_1T, row(-1.28, 0.8))


def test_dual_clip_bounds_the_loss_of_negative_advantages() -> None:
    new_1T = row(10.0, 10.0).log()
    loss_1T, _ = ppo_clip(new_1T, row(0.0, 0.0), row(-1.0, 1.0), row(1, 1), dual_clip=3.0)
    assert_close(loss_1T, row(3.0, -1.2))


def test_ppo_kl_by_hand() -> None:
    # r = 2, A = 3, beta = 0.5: 0.5 (2 - 1 - ln 2) - 6; its gradient 0.5 (2 - 1) - 6 = -5.5
    # r = 1/2, A = -1: 0.5 (0.5 - 1 + ln 2) + 0.5; its gradient 0.5 (0.5 - 1) + 0.5 = 0.25
    case = row(2.0, 0.5).log(), row(0.0, 0.0), row(3.0, -1.0), row(1, 1)
    loss = partial(ppo_kl, beta=0.5)
    log2 = math.log(2.0)
    assert_close(loss(*case)[0], row(0.5 * (1 - log2) - 6, 0.5 * (log2 - 0.5) + 0.5))
    assert_close(gradient(loss, *case), row(-5.5, 0.25))


def test_the_penalty_of_ppo_kl_is_kl_of_old_to_new_in_value_and_gradient() -> None:
    # Expectation over pi_old, exactly: every token of a vocabulary, weighted by pi_old.
    old_1T = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.double).log()
    logits_1T = torch.tensor([[0.4, -1.0, 0.7]], dtype=torch.double, requires_grad=True)
    new_1T = logits_1T.log_softmax(-1)
    zeros_1T, ones_1T = torch.zeros_like(old_1T), torch.ones_like(old_1T)
    expected = (old_1T.exp() * (old_1T - new_1T)).sum()
    loss_1T, _ = ppo_kl(new_1T, old_1T, zeros_1T, ones_1T, beta=1.0)
    found = (old_1T.exp() * loss_1T).sum()
    assert_close(found, expected)
    (expected_grad,) = torch.autograd.grad(expected, logits_1T, retain_graph=True)
    (found_grad,) = torch.autograd.grad(found, logits_1T)
    assert_close(found_grad, expected_grad)


def test_gspo_by_hand() -> None:
    # row 0: mean of ln 4 and ln 1 is ln 2, s = 2; row 1: one token, s = 1/2
    new_BT = torch.tensor([[4.0, NAN, 1.0], [0.5, 9.0, INF]]).log()
    old_BT, mask_BT = torch.zeros(2, 3), torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    advantages_BT = torch.tensor([[1.0, 1.0, -1.0], [1.0, 1.0, 1.0]])
    loss = partial(gspo, clip_low=0.25, clip_high=0.5)
    loss_BT, metrics = loss(new_BT, old_BT, advantages_BT, mask_BT)
    # -min(2, 1.5) for A = 1; -min(-2, -1.5) = 2 for A = -1; -min(0.5, 0.75) = -0.5
    assert_close(loss_BT, torch.tensor([[-1.5, 0.0, 2.0], [-0.5, 0.0, 0.0]]))
    assert metrics["clip_share"] == 1
    # The gradient is -s A where the plain term was taken, else 0.
    expected_BT = torch.tensor([[0.0, 0.0, 2.0], [-0.5, 0.0, 0.0]])
    assert_close(gradient(loss, new_BT, old_BT, advantages_BT, mask_BT), expected_BT)


def test_gspo_clips_at_a_few_ten_thousandths_by_default() -> None:
    new_BT = torch.tensor([[5e-4], [3.5e-4], [-3.5e-4], [-2e-4]], dtype=torch.double)
    ones_BT = torch.ones_like(new_BT)
    loss_BT, _ = gspo(new_BT, 0 * ones_BT, torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]), ones_BT)
    s_BT = new_BT.exp()
    expected_BT = torch.stack([-ones_BT[0] * 1.0004, -s_BT[1], ones_BT[0] * 0.9997, s_BT[3]])
    assert_close(loss_BT, expected_BT, rtol=0, atol=1e-12)


@fast
@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(-2, 2))
def test_gspos_gradient_is_that_of_the_sequences_loss(
    seed: int, length: int, advantage: float
) -> None:
    # Equal advantages and the mean over tokens: -min(s A, clip(s) A) of s = exp(mean log r).
    generator = torch.Generator().manual_seed(seed)
    new_1T = (
        0.5 * torch.randn(1, length, generator=generator, dtype=torch.double)
    ).requires_grad_()
    old_1T = 0.5 * torch.randn(1, length, generator=generator, dtype=torch.double)
    s = (new_1T - old_1T).mean().exp()
    expected = -torch.minimum(s * advantage, s.clamp(0.8, 1.2) * advantage)
    (expected_1T,) = torch.autograd.grad(expected, new_1T)
    ones_1T = torch.ones_like(old_1T)
    loss_1T, _ = gspo(new_1T, old_1T, advantage * ones_1T, ones_1T, clip_low=0.2, clip_high=0.2)
    mean = aggregate(loss_1T, ones_1T, "seq_mean_token_mean", denominator=1.0)
    assert_close(mean, expected)
    (found_1T,) = torch.autograd.grad(mean, new_1T)
    assert_close(found_1T, expected_1T)


def test_cispo_by_hand() -> None:
    # ratios 2, 0.5, 1.1 clipped to 1.5, 0.75, 1.1; times -A log pi with pi_old = 0.2
    old_1T = row(0.2, 0.2, 0.2).log()
    new_1T, advantages_1T = row(0.4, 0.1, 0.22).log(), row(1.0, 2.0, -1.0)
    loss = partial(cispo, clip_low=0.25, clip_high=0.5)
    loss_1T, metrics = loss(new_1T, old_1T, advantages_1T, row(1, 1, 1))
    expected = row(-1.5 * math.log(0.4), -0.75 * 2 * math.log(0.1), 1.1 * math.log(0.22))
    assert_close(loss_1T, expected)
    assert metrics["clip_share"] == 2
    # no token loses its gradient: -weight A
    found_1T = gradient(loss, new_1T, old_1T, advantages_1T, row(1, 1, 1))
    assert_close(found_1T, row(-1.5, -1.5, 1.1))


def test_cispo_is_bounded_only_above_by_default() -> None:
    found_1T = gradient(cispo, row(0.001, 7.0).log(), row(0.0, 0.0), row(1.0, 1.0), row(1, 1))
    assert_close(found_1T, row(-0.001, -5.0))


def test_sapo_by_hand() -> None:
    # r = 1: sigmoid(0) 4 / tau A = 2 A / tau; r = 2: sigmoid(tau) 4 / tau A
    case = row(1.0, 1.0, 2.0, 2.0).log(), torch.zeros(1, 4), row(1.0, -1.0, 3.0, -3.0)
    loss = partial(sapo, tau_pos=2.0, tau_neg=4.0)
    loss_1T, _ = loss(*case, row(1, 1, 1, 1))
    s2, s4 = 1 / (1 + math.exp(-2.0)), 1 / (1 + math.exp(-4.0))
    assert_close(loss_1T, row(-1.0, 0.5, -s2 * 2.0 * 3, s4 * 1.0 * 3))
    # its gradient is -4 s (1 - s) r A: -A at r = 1
    found_1T = gradient(loss, *case, row(1, 1, 1, 1))
    assert_close(found_1T, row(-1.0, 1.0, -4 * s2 * (1 - s2) * 6, 4 * s4 * (1 - s4) * 6))


def test_sapos_default_temperatures() -> None:
    # at r = 1: -2 A / tau, tau 1 and 1.05
    loss_1T, _ = sapo(row(0.0, 0.0), row(0.0, 0.0), row(1.0, -1.0), row(1, 1))
    assert_close(loss_1T, row(-2.0, 2.0 / 1.05))


def test_the_mean_over_a_rollout_by_hand() -> None:
    # (1 + 4) / 2, and a rollout of which nothing is trained
    values_BT = torch.tensor([[1.0, NAN, 4.0], [INF, NAN, 1.0]])
    mask_BT = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert_close(rollout_mean(values_BT, mask_BT), torch.tensor([[2.5], [0.0]]))


# --- the critic -------------------------------------------------------------------------


def test_value_loss_by_hand() -> None:
    values_1T, returns_1T = row(3.0, 1.0, NAN, 2.0), row(1.0, 1.5, INF, 2.0)
    mask_1T = row(1, 1, 0, 1)
    loss_1T, metrics = value_loss(values_1T, torch.zeros(1, 4), returns_1T, mask_1T)
    # 2^2 / 2, 0.5^2 / 2, 0
    assert_close(loss_1T, row(2.0, 0.125, 0.0, 0.0))
    assert_close(metrics["value"], torch.tensor(6.0))
    assert_close(metrics["value_error"], torch.tensor(4.25))
    assert metrics["value_clip_share"] == 0


def test_value_loss_takes_the_worse_of_plain_and_clipped() -> None:
    # V 3 from 0 clipped to 0.5: R = 1: plain 4, clipped 0.25; R = 3: plain 0, clipped 6.25
    # V -3 from 0 clipped to -0.5: R = -3: plain 0, clipped 6.25; V 0.25 is not clipped: 0.5625
    values_1T, returns_1T = row(3.0, 3.0, -3.0, 0.25), row(1.0, 3.0, -3.0, 1.0)
    loss = partial(value_loss, clip=0.5)
    case = values_1T, torch.zeros(1, 4), returns_1T, row(1, 1, 1, 1)
    loss_1T, metrics = loss(*case)
    assert_close(loss_1T, row(2.0, 3.125, 3.125, 0.28125))
    assert metrics["value_clip_share"] == 2
    assert_close(metrics["value_error"], torch.tensor(4.5625))
    # V - R where the plain square was taken, 0 where the clipped one was
    assert_close(gradient(loss, *case), row(2.0, 0.0, 0.0, -0.75))


def test_value_loss_clips_around_the_old_value() -> None:
    # from 10, V 12 clipped to 10.5: R = 12: plain 0, clipped 1.5^2 / 2
    loss_11, _ = value_loss(row(12.0), row(10.0), row(12.0), row(1), clip=0.5)
    assert_close(loss_11, row(1.125))


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("junk", [NAN, INF, 1e30])
def test_value_loss_ignores_masked_entries(clip: float | None, junk: float) -> None:
    loss = partial(value_loss, clip=clip)
    dirty = row(1.0, junk), row(0.75, junk), row(3.0, junk), row(1, 0)
    loss_1T, metrics = loss(*dirty)
    assert_close(loss_1T, torch.cat([loss(row(1.0), row(0.75), row(3.0), row(1))[0], row(0.0)], -1))
    assert all(value.isfinite() for value in metrics.values())
    assert_close(gradient(loss, *dirty), row(-2.0, 0.0))


# --- gradients ----------------------------------------------------------------------------

# Log-ratios away from every corner: of the clip range and of the dual clip at 3.
LOG_RATIO_BT = torch.tensor([[0.1, -0.1, 0.5, -0.5], [0.12, -0.15, 1.5, -2.0]], dtype=torch.double)
OLD_BT = torch.tensor([[-1.0, -0.3, -2.0, -0.1], [-1.5, -0.2, -3.0, -0.7]], dtype=torch.double)
ADVANTAGES_BT = torch.tensor([[1.0, -1.0, 2.0, -0.5], [-0.3, 0.7, -2.0, 1.0]], dtype=torch.double)
GRADCHECK_MASK_BT = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]])


@pytest.mark.parametrize("name", ["policy_gradient", "ppo_clip", "dual_clip", "ppo_kl", "sapo"])
def test_gradients_by_finite_differences(name: str) -> None:
    new_BT = (OLD_BT + LOG_RATIO_BT).requires_grad_()
    for sign in (1.0, -1.0):
        assert torch.autograd.gradcheck(
            lambda x: LOSSES[name](x, OLD_BT, sign * ADVANTAGES_BT, GRADCHECK_MASK_BT)[0],  # noqa: B023
            new_BT,
        )


@pytest.mark.parametrize("clip", [None, 0.3])
def test_the_critics_gradient_by_finite_differences(clip: float | None) -> None:
    values_BT = (OLD_BT + LOG_RATIO_BT).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: value_loss(x, OLD_BT, ADVANTAGES_BT, GRADCHECK_MASK_BT, clip=clip)[0], values_BT
    )


@fast
@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-4, 4)), min_size=1, max_size=6))
def test_gradients_of_held_weights_in_closed_form(tokens: list[tuple[float, float]]) -> None:
    # cispo: -clip(r) A. gspo: -s A, unless clipping the sequence's s raised the loss.
    log_ratio_1T = torch.tensor([[log_ratio for log_ratio, _ in tokens]], dtype=torch.double)
    advantages_1T = torch.tensor([[a for _, a in tokens]], dtype=torch.double)
    ones_1T = torch.ones_like(log_ratio_1T)
    case = log_ratio_1T, 0 * ones_1T, advantages_1T, ones_1T
    weight_1T = log_ratio_1T.exp().clamp(0.5, 2.0)
    found_1T = gradient(partial(cispo, clip_low=0.5, clip_high=1.0), *case)
    assert_close(found_1T, -weight_1T * advantages_1T)
    s = log_ratio_1T.mean().exp()
    raised_1T = ((s > 2.0) & (advantages_1T > 0)) | ((s < 0.5) & (advantages_1T < 0))
    found_1T = gradient(partial(gspo, clip_low=0.5, clip_high=1.0), *case)
    assert_close(found_1T, torch.where(raised_1T, 0.0, -s * advantages_1T))


@pytest.mark.parametrize("name", LOSSES)
def test_on_policy_every_gradient_is_minus_the_advantage(name: str) -> None:
    new_1T, advantages_1T = row(-1.0, -2.0, -0.1), row(3.0, -0.5, 0.0)
    found_1T = gradient(LOSSES[name], new_1T, new_1T, advantages_1T, row(1, 1, 1))
    assert_close(found_1T, -advantages_1T)


# --- properties --------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs of pi and pi_old, advantages, and a mask, which may leave a row empty."""
    num_rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 5))

    def matrix(low: int, high: int) -> Tensor:
        cells = st.lists(st.integers(low, high), min_size=width, max_size=width)
        return torch.tensor([draw(cells) for _ in range(num_rows)], dtype=torch.float32)

    return matrix(-12, 0) / 4, matrix(-12, 0) / 4, matrix(-8, 8) / 4, matrix(0, 1)


Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.mark.parametrize("name", LOSSES)
@fast
@given(batches(), st.sampled_from([NAN, INF, -INF, 1e30, -200.0]), st.integers(0, 3))
def test_masked_entries_and_padding_change_nothing(
    name: str, batch: Batch, junk: float, padding: int
) -> None:
    mask_BT = batch[3]
    clean = [torch.where(mask_BT > 0, values_BT, -1.0) for values_BT in batch[:3]]
    dirty = [
        torch.nn.functional.pad(torch.where(mask_BT > 0, values_BT, junk), (0, padding), value=junk)
        for values_BT in batch[:3]
    ]
    dirty_mask_BT = torch.nn.functional.pad(mask_BT, (0, padding))
    loss_BT, metrics = LOSSES[name](*clean, mask_BT)
    found_BT, found_metrics = LOSSES[name](*dirty, dirty_mask_BT)
    assert_close(found_BT, torch.nn.functional.pad(loss_BT, (0, padding)))
    assert (found_BT[dirty_mask_BT == 0] == 0).all()
    assert_close(found_metrics, metrics)
    expected_BT = torch.nn.functional.pad(gradient(LOSSES[name], *clean, mask_BT), (0, padding))
    found_grad_BT = gradient(LOSSES[name], *dirty, dirty_mask_BT)
    assert_close(found_grad_BT, expected_BT)
    assert (found_grad_BT[dirty_mask_BT == 0] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@fast
@given(batches(), st.sampled_from([0.5, 2.0, 8.0]))
def test_the_loss_is_as_large_as_the_advantages(name: str, batch: Batch, scale: float) -> None:
    new_BT, old_BT, advantages_BT, mask_BT = batch
    loss = partial(ppo_kl, beta=0.0) if name == "ppo_kl" else LOSSES[name]
    scaled_BT, _ = loss(new_BT, old_BT, scale * advantages_BT, mask_BT)
    loss_BT, _ = loss(new_BT, old_BT, advantages_BT, mask_BT)
    assert_close(scaled_BT, scale * loss_BT)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"gspo"}))
@fast
@given(batches())
def test_tokens_do_not_see_each_other(name: str, batch: Batch) -> None:
    loss_BT, _ = LOSSES[name](*batch)
    for t in range(loss_BT.shape[-1]):
        alone_B1, _ = LOSSES[name](*(values_BT[:, t : t + 1] for values_BT in batch))
        assert_close(alone_B1, loss_BT[:, t : t + 1])


@fast
@given(batches())
def test_rollouts_do_not_see_each_other(batch: Batch) -> None:
    loss_BT, _ = gspo(*batch)
    for b in range(len(loss_BT)):
        alone_1T, _ = gspo(*(values_BT[b : b + 1] for values_BT in batch))
        assert_close(alone_1T, loss_BT[b : b + 1])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("log_ratio", [-200.0, 200.0])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_extreme_ratios_stay_finite(name: str, log_ratio: float, advantage: float) -> None:
    case = row(log_ratio, -1.0), row(0.0, -1.0), row(advantage, 1.0), row(1, 1)
    loss_1T, metrics = LOSSES[name](*case)
    assert loss_1T.isfinite().all()
    assert gradient(LOSSES[name], *case).isfinite().all()
    assert all(value.isfinite() for value in metrics.values())


@pytest.mark.parametrize("name", LOSSES)
def test_inputs_are_never_changed_and_masks_of_any_type_do(name: str) -> None:
    batch = [values_BT.float() for values_BT in (OLD_BT + LOG_RATIO_BT, OLD_BT, ADVANTAGES_BT)]
    before = [values_BT.clone() for values_BT in batch]
    loss_BT, metrics = LOSSES[name](*batch, GRADCHECK_MASK_BT)
    assert_close(batch, before, rtol=0, atol=0)
    for mask_BT in (GRADCHECK_MASK_BT.bool(), GRADCHECK_MASK_BT.long()):
        found_BT, found = LOSSES[name](*batch, mask_BT)
        assert_close(found_BT, loss_BT)
        assert_close(found, metrics, check_dtype=False)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_reach_only_pi(name: str) -> None:
    new_BT, old_BT, advantages_BT = (
        values_BT.clone().requires_grad_() for values_BT in (OLD_BT, OLD_BT, ADVANTAGES_BT)
    )
    loss_BT, _ = LOSSES[name](new_BT, old_BT.detach(), advantages_BT.detach(), GRADCHECK_MASK_BT)
    loss_BT.sum().backward()
    assert new_BT.grad is not None
    assert new_BT.grad.abs().sum() > 0
