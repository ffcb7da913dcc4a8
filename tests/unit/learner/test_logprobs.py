"""The chunked operation equals log_softmax, and never holds all logits."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from learner import logprobs as module
from learner.logprobs import linear_logprobs


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 7 * 3, 2**20])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_log_softmax_in_value_and_gradient(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, temperature: float
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    hidden_NH = torch.randn(11, 5, requires_grad=True)
    weight_VH = torch.randn(7, 5, requires_grad=True)
    targets_N, upstream_N = torch.randint(7, (11,)), torch.randn(11)
    found_N, entropies_N = linear_logprobs(hidden_NH, weight_VH, targets_N, temperature)
    found = torch.autograd.grad(found_N @ upstream_N, (hidden_NH, weight_VH))
    all_NV = (hidden_NH @ weight_VH.T / temperature).log_softmax(-1)
    expected_N = all_NV.gather(-1, targets_N[:, None])[:, 0]
    expected = torch.autograd.grad(expected_N @ upstream_N, (hidden_NH, weight_VH))
    torch.testing.assert_close(found_N, expected_N)
    torch.testing.assert_close(entropies_N, -(all_NV.exp() * all_NV).sum(-1))
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


def test_gradcheck() -> None:
    torch.manual_seed(0)
    hidden_NH = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight_VH = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    targets_N = torch.randint(6, (4,))
    assert torch.autograd.gradcheck(
        lambda hidden, weight: linear_logprobs(hidden, weight, targets_N, 0.8),
        (hidden_NH, weight_VH),
    )


def test_no_tokens_at_all() -> None:
    hidden_NH = torch.zeros(0, 3, requires_grad=True)
    logprobs_N, _ = linear_logprobs(hidden_NH, torch.randn(6, 3), torch.zeros(0).long())
    logprobs_N.sum().backward()
    assert hidden_NH.grad is not None
    assert hidden_NH.grad.shape == (0, 3)


MEMORY_PROGRAM = """
import resource, torch
from learner.logprobs import linear_logprobs
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
N, V, H = 4096, 152_000, 16
hidden = torch.randn(N, H, requires_grad=True)
weight = torch.randn(V, H, requires_grad=True)
targets = torch.randint(V, (N,))
small = linear_logprobs(hidden[:8], weight, targets[:8])[0].sum()
small.backward()
hidden.grad = weight.grad = None
before = peak()
linear_logprobs(hidden, weight, targets)[0].sum().backward()
gradients = 4 * (hidden.numel() + weight.numel())
print(peak() - before - gradients)
"""


def test_memory_stays_far_below_the_logits() -> None:
    """4,096 tokens x 152,000 words are 2.5 GB of logits; the peak must stay below 1 GiB."""
    output = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM], capture_output=True, text=True, check=True
    ).stdout
    assert int(output) < 2**30, f"{int(output) / 2**20:.0f} MiB above inputs and gradients"
