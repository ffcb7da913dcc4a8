from __future__ import annotations

from pathlib import Path

import torch

from learner.policy import Policy, Rows, load_policy, recompute_activations
from tests.helpers.jobs import VOCABULARY, make_job, make_model


def gradients(policy: Policy) -> tuple[list[torch.Tensor], int]:
    """Of every parameter, and how often the first layer ran."""
    runs = []
    attention = policy.hf.base_model.layers[0].self_attn
    hook = attention.register_forward_hook(lambda *_: runs.append(1))
    tokens_BT = torch.arange(12).reshape(2, 6) % VOCABULARY
    mask_BT = torch.ones(2, 5)
    logprobs_BT, *_ = policy(
        Rows(tokens_BT[:, :-1], mask_BT > 0, None), tokens_BT[:, 1:], mask_BT, 1.0
    )
    logprobs_BT.sum().backward()
    hook.remove()
    return [p.grad for p in policy.parameters() if p.grad is not None], len(runs)


def test_recomputed_activations_give_the_same_gradients(tmp_path: Path) -> None:
    job = make_job(make_model(tmp_path / "model"))
    plain, plain_runs = gradients(load_policy(job.model))
    policy = load_policy(job.model)
    recompute_activations(policy)
    found, runs = gradients(policy)
    assert (plain_runs, runs) == (1, 2)
    for expected, gradient in zip(plain, found, strict=True):
        torch.testing.assert_close(gradient, expected)
