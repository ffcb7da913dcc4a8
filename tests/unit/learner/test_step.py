"""A step is the same however it is cut; what an algorithm adds to it does what it says.

Torch alone stands behind the engine here; DeepSpeed does in tests/integration.
"""

from __future__ import annotations

import copy
import inspect
import math
import threading
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.algorithms import losses
from learner.credit import assign_advantages, scores_of
from learner.minibatch import cut
from learner.objective import critic_loss_of, loss_of
from learner.policy import Critic, Policy, load_critic, load_policy
from learner.state import AlgorithmState
from learner.step import LearnerStep
from learner.tensors import samples_of
from slipstream.config.algorithm import LossConfig
from slipstream.config.job import JobConfig
from slipstream.records import Batch, FinishReason
from tests.helpers.jobs import make_batch, make_job, make_model

WHOLE, MANY = 4096, 40  # padded tokens of a microbatch: all in one, and about eight


class Ranks:
    """Threads that sum with each other."""

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks = num_ranks
        self._barrier = threading.Barrier(num_ranks)
        self._values: dict[int, Tensor] = {}

    def all_sum(self, rank: int, values: Tensor) -> Tensor:
        self._values[rank] = values.clone()
        self._barrier.wait(timeout=30)
        total = torch.stack([self._values[other] for other in range(self.num_ranks)]).sum(0)
        self._barrier.wait(timeout=30)
        return total


class Engine:
    """LearnerEngine's calls, with plain gradient descent."""

    device = torch.device("cpu")

    def __init__(self, model: Policy | Critic, ranks: Ranks, rank: int) -> None:
        self.model, self.rank, self.num_ranks = model, rank, ranks.num_ranks
        self._ranks = ranks
        self.num_backwards = 0

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs)

    def all_sum(self, values: Tensor) -> Tensor:
        return self._ranks.all_sum(self.rank, values)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.num_backwards += 1
        loss.backward()

    def snapshot(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    @torch.no_grad()
    def return_to(self, snapshot: list[Tensor], share: float) -> None:
        for parameter, before in zip(self.model.parameters(), snapshot, strict=True):
            parameter.lerp_(before, share)

    @torch.no_grad()
    def move(self, other: Policy, share: float) -> None:
        for mine, theirs in zip(self.model.hf.parameters(), other.hf.parameters(), strict=True):
            theirs.lerp_(mine, share)

    def gradient_square(self) -> Tensor:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients) ** 2

    def drop(self) -> None:
        self.model.zero_grad()

    @torch.no_grad()
    def step(self, learning_rate: float) -> float:
        square = 0.0
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                gradient = self.all_sum(parameter.grad)
                parameter -= learning_rate * gradient
                square += float((gradient**2).sum())
                parameter.grad = None
        return square**0.5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("step") / "model")


def job_of(model: Path, max_tokens: int = WHOLE, **algorithm: Any) -> JobConfig:
    learner = {"max_tokens_per_microbatch": max_tokens, "learning_rate": 0.3}
    return make_job(str(model), algorithm=algorithm, learner=learner)


def train(
    job: JobConfig,
    *,
    num_ranks: int = 1,
    batch: Batch | None = None,
    num_steps: int = 2,
    shares: bool = True,
) -> tuple[list[Tensor], dict[str, float], LearnerStep, Engine]:
    """Weights, the last step's metrics, and the step and engine of rank 0."""
    ranks = Ranks(num_ranks)
    found: dict[int, Any] = {}

    start = load_policy(
        job.model, has_value_head=job.algorithm.has_value_head
    ).double()  # here: transformers does not load in two threads
    references: list[Policy | None] = [None] * num_ranks
    if job.algorithm.kl.coefficient > 0:
        plain = load_policy(job.model).double()  # a reference has no value head
        references = [copy.deepcopy(plain) for _ in range(num_ranks)]
        with torch.no_grad():
            for parameter in (p for reference in references for p in reference.parameters()):
                parameter *= 1.01
    policies = [copy.deepcopy(start) for _ in range(num_ranks)]
    critics: list[Critic] = []
    if start.value_head is not None:
        torch.nn.init.constant_(start.value_head.weight, 0.02)
    if job.algorithm.has_own_critic:
        critic = load_critic(job.model, None).double()
        torch.nn.init.constant_(critic.head.weight, 0.02)
        critics = [copy.deepcopy(critic) for _ in range(num_ranks)]

    def of_rank(rank: int) -> None:
        policy = policies[rank]
        engine = Engine(policy, ranks, rank)
        critic = Engine(critics[rank], ranks, rank) if critics else None
        step = LearnerStep(job, engine, references[rank], critic)  # type: ignore[arg-type]
        if not shares:
            step._width = 0
        metrics: dict[str, float] = {}
        for version in range(num_steps):
            metrics = step.run(batch or make_batch(version, num_groups=6))
        weights = [
            p.detach()
            for trained in (policy, *critics[rank : rank + 1])
            for p in trained.parameters()
        ]
        found[rank] = weights, metrics, step, engine

    threads = [threading.Thread(target=of_rank, args=[rank]) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == num_ranks, "a rank failed"
    for weights, metrics, *_ in found.values():
        assert metrics == pytest.approx(found[0][1], nan_ok=True)
        for mine, other in zip(weights, found[0][0], strict=True):
            torch.testing.assert_close(mine, other)
    return found[0]  # type: ignore[no-any-return]


ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "means of answers": {"aggregate": "seq_mean_token_mean"},
    "dr_grpo": {
        "advantage": {"kind": "grpo", "scale": "none"},
        "aggregate": "token_sum_norm",
    },
    "rloo": {"advantage": {"kind": "rloo"}, "loss": {"kind": "policy_gradient"}},
    "reinforce": {"advantage": {"kind": "reinforce", "baseline": "moving_average"}},
    "remax": {"advantage": {"kind": "remax"}},
    "opo": {"advantage": {"kind": "reinforce", "baseline": "optimal"}},
    "reinforce_plus_plus": {
        "advantage": {"kind": "reinforce_plus_plus", "gamma": 0.9},
        "kl": {"coefficient": 0.1, "estimator": "k1", "place": "reward"},
    },
    "reinforce_plus_plus with a baseline": {
        "advantage": {"kind": "reinforce_plus_plus", "baseline": "group_mean"},
        "minibatches": 2,
        "epochs": 2,
    },
    "KL in the reward of grpo": {"kl": {"coefficient": 0.5, "place": "reward"}},
    "KL in the loss": {"kl": {"coefficient": 0.5, "adaptive": {"target": 0.1, "horizon": 10}}},
    "ppo_kl": {"loss": {"kind": "ppo_kl", "target": 0.01}, "epochs": 2},
    "gspo": {"loss": {"kind": "gspo"}, "aggregate": "seq_mean_token_mean", "minibatches": 3},
    "cispo": {"loss": {"kind": "cispo"}, "epochs": 2},
    "sapo": {"loss": {"kind": "sapo"}, "epochs": 2},
    "entropy": {"entropy": {"coefficient": 0.1, "target": 1.0}},
    "sequence weights": {"correction": {"kind": "truncated", "level": "sequence"}},
    "caps by lag": {"correction": {"kind": "truncated", "cap": 3.0, "lag_decay": 0.5}},
    "rates": {"rate": {"kind": "kl", "target": 1e-3}, "epochs": 2},
    "a reference that follows": {"kl": {"coefficient": 0.5, "reference_step": 0.3}},
    "trust region": {"trust_region": {"max_kl": 0.01}},
    "icepop": {"correction": {"kind": "icepop"}},
    "masks": {"mask": {"kind": "geometric", "low": 0.5, "high": 2.0}},
    "opposite signs": {"mask": {"kind": "opposite_sign"}},
    "bypass": {"old_logprobs": "behaviour"},
    "gae": {
        "advantage": {"kind": "gae", "lam": 0.9},
        "critic": {"learning_rate": 0.1},
        "kl": {"coefficient": 0.1, "place": "reward"},
        "epochs": 2,
        "minibatches": 2,
    },
    "a value head": {
        "advantage": {"kind": "gae", "lam": 0.9},
        "critic": {"shared": True},
        "kl": {"coefficient": 0.1, "reference_step": 0.3},
        "minibatches": 2,
    },
    "n_step": {"advantage": {"kind": "n_step", "n": 2}, "critic": {"learning_rate": 0.1}},
    "overlong": {"overlong": {"buffer_tokens": 3, "filter": True}},
}


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_ranks_microbatches_and_rows_do_not_change_a_step(
    model: Path, algorithm: dict[str, Any]
) -> None:
    expected, metrics, *_ = train(job_of(model, **algorithm))
    start = [p.detach() for p in load_policy(job_of(model).model).double().parameters()]
    moved = max(float((a - b).abs().max()) for a, b in zip(expected, start, strict=False))
    assert moved > 1e-3, "nothing was trained"
    for max_tokens, num_ranks, shares in ((MANY, 1, True), (MANY, 2, True), (WHOLE, 1, False)):
        job = job_of(model, max_tokens, **algorithm)
        found, its_metrics, *_ = train(job, num_ranks=num_ranks, shares=shares)
        for name in metrics.keys() - {"padding_share"}:
            assert its_metrics[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-5), name
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other, atol=5e-6, rtol=0)  # norms are of float32


def weighted(batch: Batch, *weights: float) -> Batch:
    groups = zip(batch.groups, weights, strict=True)
    return replace(batch, groups=tuple(replace(entry, weight=w) for entry, w in groups))


WEIGHTED: dict[str, dict[str, Any]] = {
    "every term of the loss": {
        "kl": {"coefficient": 0.5},
        "entropy": {"coefficient": 0.1},
        "aggregate": "seq_mean_token_mean",
    },
    "a critic": {"advantage": {"kind": "gae"}, "critic": {"learning_rate": 0.1}},
    "a value head": {"advantage": {"kind": "gae"}, "critic": {"shared": True}},
}


@pytest.mark.parametrize("algorithm", WEIGHTED.values(), ids=WEIGHTED)
def test_groups_count_by_their_weights_however_the_batch_is_cut(
    model: Path, algorithm: dict[str, Any]
) -> None:
    batch, job = make_batch(0, num_groups=3), job_of(model, **algorithm)

    start, metrics, *_ = train(job, batch=weighted(batch, 0, 0, 0), num_steps=1)
    assert metrics["grad_norm"] == metrics.get("value_grad_norm", 0.0) == 0.0

    def moved(*weights: float, job: JobConfig = job, **cut: Any) -> list[Tensor]:
        found, *_ = train(job, batch=weighted(batch, *weights), num_steps=1, **cut)
        return [after - before for after, before in zip(found, start, strict=True)]

    expected = moved(1.0, 0.5, 0.125)
    for parts in zip(expected, moved(1, 0, 0), moved(0, 1, 0), moved(0, 0, 1), strict=True):
        whole, *of_groups = parts
        by_hand = of_groups[0] + 0.5 * of_groups[1] + 0.125 * of_groups[2]
        torch.testing.assert_close(whole, by_hand, atol=5e-6, rtol=0)
    assert max(float(change.abs().max()) for change in expected) > 1e-3, "nothing was trained"
    for max_tokens, num_ranks, shares in ((MANY, 1, True), (MANY, 2, True), (WHOLE, 1, False)):
        its_job = job_of(model, max_tokens, **algorithm)
        found = moved(1.0, 0.5, 0.125, job=its_job, num_ranks=num_ranks, shares=shares)
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other, atol=5e-6, rtol=0)


def test_a_weight_changes_the_loss_and_not_its_denominator(model: Path) -> None:
    batch = weighted(make_batch(0, num_groups=2, group_size=1), 1.0, 0.25)
    job, cpu = job_of(model, correction={"kind": "none"}), torch.device("cpu")
    ((entry,),) = [
        part.microbatches
        for part in cut(job, samples_of(batch), width=0, rank=0, num_ranks=1, device=cpu)
    ]
    mask_BT, num_tokens = entry.tensors.mask_BT, batch.num_answer_tokens
    first, second = (float(entry.tensors.mask_BT[entry.index_B == i].sum()) for i in (0, 1))
    entry.advantages_BT, entry.returns_BT = 3.0 * mask_BT, 2.0 * mask_BT
    values_BU = entry.old_values_BU = torch.zeros_like(entry.tensors.mask_BU)
    # Per token -3 where pi is pi_old, and half the square of 2.
    policy, metrics = loss_of(
        job.algorithm,
        AlgorithmState.of(job.algorithm),
        entry,
        torch.zeros_like(mask_BT),
        torch.zeros_like(mask_BT),
        denominator=num_tokens,
    )
    value, _ = critic_loss_of(None, entry, values_BU, num_tokens=num_tokens)
    share = (first + 0.25 * second) / (first + second)
    assert policy.item() == pytest.approx(-3 * share)
    assert value.item() == pytest.approx(2 * share)
    assert metrics["group_weight"] / num_tokens == pytest.approx(share)


@pytest.mark.parametrize(
    "config", typing.get_args(typing.get_args(LossConfig)[0]), ids=lambda c: c.__name__
)
def test_a_loss_of_the_job_file_is_a_function_with_these_arguments(config: Any) -> None:
    (kind,) = typing.get_args(config.model_fields["kind"].annotation)
    parameters = inspect.signature(getattr(losses, kind)).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert keywords == config(kind=kind).arguments()


def test_passes_end_when_the_policy_has_moved_too_far(model: Path) -> None:
    _, metrics, _, engine = train(job_of(model, epochs=5), num_steps=1)
    assert (metrics["num_updates"], engine.num_backwards) == (5, 5)
    # The first update has moved nothing yet when its KL is measured.
    _, metrics, *_ = train(job_of(model, epochs=5, max_kl=1e-9), num_steps=1)
    assert metrics["num_updates"] == 2


def finished(batch: Batch, reason: FinishReason, places: range) -> Batch:
    """The batch with other finish reasons at these places of every group."""
    groups = []
    for entry in batch.groups:
        rollouts = tuple(
            replace(rollout, finish_reason=reason) if place in places else rollout
            for place, rollout in enumerate(entry.group.rollouts)
        )
        groups.append(replace(entry, group=replace(entry.group, rollouts=rollouts)))
    return replace(batch, groups=tuple(groups))


def test_opposite_signs_are_measured_against_the_policy_that_is_trained(model: Path) -> None:
    """pi_old is mu here: only pi can have moved away from what sampled."""
    mask = {"kind": "opposite_sign", "threshold": 1e-9}
    _, metrics, *_ = train(job_of(model, old_logprobs="behaviour", mask=mask), num_steps=1)
    assert metrics["masked_share"] > 0


def test_answers_cut_by_length_do_not_train_where_they_are_filtered(model: Path) -> None:
    batch = make_batch(0, num_groups=6)
    job = job_of(model, overlong={"filter": True}, advantage={"kind": "grpo", "scale": "none"})
    whole = finished(batch, FinishReason.EOS, range(4))
    everything, *_ = train(job, batch=whole, num_steps=1)
    some, *_ = train(job, batch=batch, num_steps=1)
    assert any(not torch.equal(a, b) for a, b in zip(everything, some, strict=True))
    nothing = finished(batch, FinishReason.LENGTH, range(4))
    unchanged, metrics, *_ = train(job, batch=nothing, num_steps=1)
    assert metrics["num_updates"] == 0
    start = [p.detach() for p in load_policy(job.model).double().parameters()]
    for mine, other in zip(unchanged, start, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_critic_learns_what_answers_are_worth_before_the_policy_moves(model: Path) -> None:
    batch = make_batch(0, num_groups=6)
    critic = {"learning_rate": 0.1, "warmup_steps": 30, "clip": None}
    job = job_of(model, advantage={"kind": "gae", "lam": 1.0}, critic=critic)
    weights, metrics, *_ = train(job, batch=batch, num_steps=30)
    start = [p.detach() for p in load_policy(job.model).double().parameters()]
    for mine, other in zip(weights, start, strict=False):
        assert torch.equal(mine, other)
    _, first, *_ = train(job, batch=batch, num_steps=1)
    assert metrics["value_error"] < 0.3 * first["value_error"]


def test_a_value_head_learns_beside_the_policy(model: Path) -> None:
    batch = make_batch(0, num_groups=6)
    critic = {"shared": True, "coefficient": 1.0, "clip": None}
    job = job_of(model, advantage={"kind": "gae", "lam": 1.0}, critic=critic)
    _, metrics, *_ = train(job, batch=batch, num_steps=30)
    _, first, *_ = train(job, batch=batch, num_steps=1)
    assert metrics["value_error"] < 0.5 * first["value_error"]


def test_kl_in_the_reward_takes_it_off_the_tokens_that_moved_away(model: Path) -> None:
    """Equal rewards: only KL tells tokens apart. pi_old is the start, the reference 1% away."""
    batch = make_batch(0, num_groups=6, reward=1.0)
    kl = {"coefficient": 5.0, "estimator": "k1", "place": "reward"}
    job = job_of(model, advantage={"kind": "reinforce_plus_plus", "gamma": 0.0}, kl=kl)
    (entry,) = cut(
        job, samples_of(batch), width=0, rank=0, num_ranks=1, device=torch.device("cpu")
    )[0].microbatches
    mask_BT = entry.tensors.mask_BT
    torch.manual_seed(0)
    entry.old_logprobs_BT = -torch.rand(mask_BT.shape) * mask_BT
    entry.reference_logprobs_BT = entry.old_logprobs_BT - 0.1 * mask_BT
    entry.reference_logprobs_BT[0, 0] += 0.3  # here alone pi_old is below the reference
    scores = scores_of(job, samples_of(batch))
    state = AlgorithmState.of(job.algorithm)
    assign_advantages(job.algorithm, state, scores, [entry], lambda values: values)
    assert entry.advantages_BT is not None
    ends_BT = mask_BT.flip(-1).cumsum(-1).flip(-1) == 1  # where the reward is
    before_BT = (mask_BT > 0) & ~ends_BT
    before_BT[0, 0] = False
    assert entry.advantages_BT[0, 0] > entry.advantages_BT[before_BT].max()
    # Before whitening: -5 * 0.1 on every token, +5 * 0.2 on the first, 1 more on the last ones.
    raw_BT = (torch.where(ends_BT, 1.0, 0.0) - 0.5) * mask_BT
    raw_BT[0, 0] += 1.5
    values = raw_BT[mask_BT > 0].double()
    white = (values - values.mean()) / values.std()
    torch.testing.assert_close(entry.advantages_BT[mask_BT > 0].double(), white, atol=1e-5, rtol=0)


def test_a_run_goes_on_with_what_it_has_moved_and_with_what_the_job_file_sets(model: Path) -> None:
    committed = job_of(
        model,
        advantage={"kind": "reinforce", "baseline": "moving_average"},
        kl={"coefficient": 0.5, "adaptive": {"target": 0.1}},
        entropy={"coefficient": 0.75, "target": 1.0},
    ).algorithm
    before = AlgorithmState.of(committed)
    before.average_score, before.kl_coefficient, before.entropy_coefficient = 0.0, 7.0, 8.0
    saved = before.snapshot(committed)
    algorithm = job_of(
        model,
        advantage={"kind": "reinforce", "baseline": "moving_average"},
        kl={"coefficient": 0.5, "adaptive": {"target": 0.1}},
        entropy={"coefficient": 0.25},
        loss={"kind": "ppo_kl", "beta": 2.0, "target": 0.1},
        epochs=2,
    ).algorithm
    state = AlgorithmState.of(algorithm)
    state.resume(algorithm, saved)
    assert (state.kl_coefficient, state.entropy_coefficient) == (7.0, 0.25)
    assert (state.average_score, state.beta, state.rate_factor) == (0.0, 2.0, 1.0)


def test_an_entropy_bonus_raises_entropy_and_is_steered(model: Path) -> None:
    batch = make_batch(0, num_groups=6, reward=1.0)  # equal rewards: entropy alone trains
    job = job_of(model, entropy={"coefficient": 0.05, "target": 0.5, "learning_rate": 0.1})
    _, metrics, step, _ = train(job, batch=batch, num_steps=8)
    _, first, *_ = train(job, batch=batch, num_steps=1)
    assert metrics["entropy"] > first["entropy"]
    assert step.state.entropy_coefficient < 0.05, "entropy is above its target"


def test_an_update_outside_the_trust_region_is_taken_back(model: Path) -> None:
    batch = make_batch(0, num_groups=6)
    start = [p.detach() for p in load_policy(job_of(model).model).double().parameters()]

    def train_within(**region: Any) -> tuple[float, float]:
        """How far the weights went, and how often half of it was taken back."""
        found, metrics, *_ = train(job_of(model, trust_region=region), batch=batch, num_steps=1)
        way = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(found, start, strict=True)))
        return way, metrics["halvings"]

    whole, halvings = train_within(max_kl=1e3)
    assert halvings == 0
    kept, halvings = train_within(max_kl=0.01)
    assert halvings >= 1
    assert kept == pytest.approx(whole / 2**halvings)
    kept, halvings = train_within(max_kl=1e-12, max_halvings=2)
    assert (kept, halvings) == (0.0, 3)


def test_the_rate_goes_down_with_the_lag(model: Path) -> None:
    batch = make_batch(0, num_groups=6)
    old = replace(batch, groups=tuple(replace(entry, lag=3) for entry in batch.groups))
    job = job_of(model, rate={"kind": "lag", "power": 0.5})
    rates = [train(job, batch=b, num_steps=1)[1]["learning_rate"] for b in (batch, old)]
    assert rates == pytest.approx([0.3, 0.15])


def test_controllers_follow_their_targets(model: Path) -> None:
    kl = {"coefficient": 0.5, "adaptive": {"target": 1e-6, "horizon": 100}}
    *_, step, _ = train(job_of(model, kl=kl), num_steps=1)
    # 24 rollouts, KL far above the target: 1 + 0.2 * 24 / 100
    assert step.state.kl_coefficient == pytest.approx(0.5 * 1.048)
    loss = {"kind": "ppo_kl", "beta": 1.0, "target": 100.0}
    *_, step, _ = train(job_of(model, loss=loss, epochs=2), num_steps=1)
    assert step.state.beta == 0.5
    advantage = {"kind": "reinforce", "baseline": "moving_average", "decay": 0.5}
    batch = make_batch(0, num_groups=6)
    rewards = [r.reward for entry in batch.groups for r in entry.group.rollouts]
    *_, step, _ = train(job_of(model, advantage=advantage), batch=batch, num_steps=1)
    assert step.state.average_score == pytest.approx(sum(rewards) / len(rewards))


def rewarded(batch: Batch, reward: float, groups: range) -> Batch:
    """The batch with this reward for every answer of these groups."""
    entries = list(batch.groups)
    for place in groups:
        group = entries[place].group
        rollouts = tuple(replace(rollout, reward=reward) for rollout in group.rollouts)
        entries[place] = replace(entries[place], group=replace(group, rollouts=rollouts))
    return replace(batch, groups=tuple(entries))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_an_update_that_is_not_finite_is_as_if_it_had_not_been(model: Path, num_ranks: int) -> None:
    batch = make_batch(0, num_groups=6)
    spoilt = rewarded(batch, math.nan, range(2, 4))  # the second of three minibatches
    others = replace(batch, groups=(*batch.groups[:2], *batch.groups[4:]))
    found, metrics, *_ = train(
        job_of(model, minibatches=3), batch=spoilt, num_steps=1, num_ranks=num_ranks
    )
    expected, its_metrics, *_ = train(job_of(model, minibatches=2), batch=others, num_steps=1)
    assert (metrics.pop("num_updates"), metrics.pop("updates_skipped")) == (2, 1)
    assert (its_metrics.pop("num_updates"), its_metrics.pop("updates_skipped")) == (2, 0)
    for name in metrics.keys() - {"padding_share"}:
        assert metrics[name] == pytest.approx(its_metrics[name], rel=1e-4, abs=1e-5), name
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=5e-6, rtol=0)


MOVING: dict[str, dict[str, Any]] = {
    "a policy": {
        "advantage": {"kind": "reinforce", "baseline": "moving_average"},
        "kl": {"coefficient": 0.5, "adaptive": {"target": 0.1, "horizon": 100}},
        "entropy": {"coefficient": 0.1, "target": 1.0},
        "rate": {"kind": "kl", "target": 1e-3},
        "epochs": 2,
    },
    "and its critic": {"advantage": {"kind": "gae"}, "critic": {"learning_rate": 0.1}, "epochs": 2},
}


@pytest.mark.parametrize("algorithm", MOVING.values(), ids=MOVING)
def test_a_step_without_a_finite_update_changes_nothing(
    model: Path, algorithm: dict[str, Any]
) -> None:
    job, batch = job_of(model, **algorithm), make_batch(0, num_groups=6)
    start, *_ = train(job, num_steps=0)
    for spoilt in (math.nan, math.inf):
        bad = rewarded(batch, spoilt, range(6))
        found, metrics, step, _ = train(job, batch=bad, num_steps=2, num_ranks=2)
        assert (metrics["num_updates"], metrics["updates_skipped"]) == (0, 2)
        assert step.state == AlgorithmState.of(job.algorithm)
        for mine, before in zip(found, start, strict=True):
            assert mine.equal(before)


def test_figures_that_are_not_finite_do_not_reach_what_goes_from_step_to_step(model: Path) -> None:
    """Of the six groups one has no finite score; the other minibatches were trained."""
    advantage = {"kind": "reinforce", "baseline": "none"}
    algorithm = MOVING["a policy"] | {"advantage": advantage, "minibatches": 3}
    batch = rewarded(make_batch(0, num_groups=6), math.nan, range(1))
    _, metrics, step, _ = train(job_of(model, **algorithm), batch=batch, num_steps=1)
    assert (metrics["num_updates"], metrics["updates_skipped"]) == (4, 2)
    assert step.state == AlgorithmState.of(job_of(model, **algorithm).algorithm)
