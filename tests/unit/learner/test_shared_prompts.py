"""Answers that share a row with others of their group train as if each had its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from learner.policy import Policy, load_policy, sharing_width
from learner.tensors import Row, Sample, rows_of, samples_of, to_tensors
from slipstream.records import Batch
from tests.helpers.jobs import make_batch, make_job, make_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    model = make_model(tmp_path_factory.mktemp("shared") / "model")
    return load_policy(make_job(model).model).double()


def by_answer(
    policy: Policy, samples: list[Sample], rows: list[Row]
) -> tuple[list[np.ndarray], list[torch.Tensor]]:
    """The log-probs of every answer's tokens, and the gradients of their weighted sum."""
    policy.zero_grad()
    tensors = to_tensors(rows, samples, CPU)
    logprobs_BT, *_ = policy(tensors.rows, tensors.targets_BT, tensors.mask_BT, 1.0)
    answers = [index for row in rows for index in row.indices]
    (logprobs_BT.sum(-1) * (torch.tensor(answers) % 3 - 1)).sum().backward()
    found = [
        logprobs_T[mask_T > 0].detach().numpy()
        for logprobs_T, mask_T in zip(logprobs_BT, tensors.mask_BT, strict=True)
    ]
    gradients = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    return found, gradients


def test_log_probs_and_gradients_are_the_same(policy: Policy) -> None:
    samples = samples_of(make_batch(0, num_groups=3, group_size=4))
    apart = rows_of(samples, 0)
    together = rows_of(samples, 10**6)
    assert (len(apart), len(together)) == (12, 3)
    expected, expected_gradients = by_answer(policy, samples, apart)
    found, gradients = by_answer(policy, samples, together)
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-12)
    for mine, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)  # norms are of float32


def test_a_prompt_of_one_token_has_no_prefix(policy: Policy) -> None:
    samples = [
        Sample(prompt_token_ids=s.prompt_token_ids[:1], rollout=s.rollout, group=s.group)
        for s in samples_of(make_batch(1, num_groups=1))
    ]
    everything = Row(indices=(0, 1, 2, 3), num_tokens=sum(s.rollout.num_tokens for s in samples))
    expected, _ = by_answer(policy, samples, rows_of(samples, 0))
    found, _ = by_answer(policy, samples, [everything])
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-12)


def test_every_answer_is_in_one_row_that_costs_less() -> None:
    batch: Batch = make_batch(2, num_groups=5, group_size=6)
    samples = samples_of(batch)
    for hidden_size in (0, 1, 2, 8, 10**6):
        rows = rows_of(samples, hidden_size)
        assert [index for row in rows for index in row.indices] == list(range(30))
        assert all(len({samples[i].group for i in row.indices}) == 1 for row in rows)
    assert len(rows_of(samples, 10**6)) == 5
    assert len(rows_of(samples, 0)) == 30


def test_long_answers_get_rows_of_their_own() -> None:
    """Prefix 9, four answers of 1,000: attention over 4,009 positions costs more than is saved."""
    (group,) = make_batch(0, num_groups=1).groups
    rollout = group.group.rollouts[0]
    long = type(rollout)(
        token_ids=np.zeros(1000, np.int32),
        logprobs=np.zeros(1000, np.float32),
        spans=rollout.spans,
        finish_reason=rollout.finish_reason,
        reward=0.0,
    )
    samples = [Sample(prompt_token_ids=np.zeros(10, np.int32), rollout=long, group=0)] * 4
    assert len(rows_of(samples, 64)) == 4
    assert to_tensors(rows_of(samples, 64), samples, CPU).rows.layout is None


def test_the_algorithms_see_answers_whatever_rows_they_were_computed_in() -> None:
    samples = samples_of(make_batch(0, num_groups=3, group_size=4))
    apart, together = (to_tensors(rows_of(samples, width), samples, CPU) for width in (0, 10**6))
    assert len(together.rows.inputs_RS) == 3
    for name in ("targets_BT", "mask_BT", "behaviour_logprobs_BT"):
        torch.testing.assert_close(getattr(together, name), getattr(apart, name))
    for index, sample in enumerate(samples):
        num_tokens = sample.rollout.num_tokens
        assert together.mask_BT[index].sum() == num_tokens
        assert together.targets_BT[index, :num_tokens].tolist() == sample.rollout.token_ids.tolist()


@pytest.mark.parametrize(
    "other",
    [
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"sliding_window": 16},
        {"rope_parameters": None},  # ALiBi, or positions that are learnt
        {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1]}},
    ],
)
def test_models_with_other_attention_do_not_share(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    assert sharing_width(policy) == 64
    for name, value in other.items():
        monkeypatch.setattr(policy.hf.config, name, value)
    assert sharing_width(policy) == 0
