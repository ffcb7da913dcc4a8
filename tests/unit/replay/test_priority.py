"""Prioritized replay: priorities, chances and weights, with numbers worked by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.choosing import choose
from replay.rules import Rules
from replay.scripted import scripted_group, scripted_lease
from replay.selection import Chosen, importance_weights, log_scores, preferred, priority
from replay.shelf import Buffered
from slipstream.config.job import PriorityBy, PriorityConfig
from slipstream.records import Group

NUM_DRAWS = 5_000
SPREADS = (0.0, 1.0, 2.0, 5.0)  # with epsilon 2: p is 2, 2, 2, 5
VALUES = np.array([3.0, -1.0, 4.0, 10.0])


def group(ordinal: int, rewards: Sequence[float], version: int = 0) -> Group:
    return scripted_group(scripted_lease(ordinal, version), rewards=rewards)


def entry(ordinal: int, spread: float = 1.0, *, version: int = 0, uses: int = 0) -> Buffered:
    """A group of two whose rewards have this standard deviation."""
    return Buffered(group(ordinal, (0.0, 2 * spread), version), uses)


def rules(*, seed: int = 0, size: int = 2, max_staleness: int = 9, **priority: Any) -> Rules:
    return Rules(
        group_size=2,
        groups_per_batch=size,
        num_steps=10**6,
        max_staleness=max_staleness,
        select="priority",
        priority=PriorityConfig(**priority),
        seed=seed,
    )


def four() -> list[Buffered]:
    return [entry(ordinal, spread) for ordinal, spread in enumerate(SPREADS)]


def weights(choices: Sequence[Chosen]) -> dict[int, float]:
    return {choice.entry.group.ordinal: choice.weight for choice in choices}


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("reward_spread", 3**0.5),  # squares 1, 1, 1, 9 from the mean of 2
        ("advantage", 1.5),  # 1, 1, 1, 3
        ("age", 4.0),
    ],
)
def test_priorities(by: PriorityBy, expected: float) -> None:
    assert priority(group(0, (1, 1, 1, 5)), by, lag=3) == pytest.approx(expected)


def test_chances_and_weights_by_hand() -> None:
    config = PriorityConfig(alpha=2.0, beta=0.5, epsilon=2.0)
    scores_N = log_scores([e.group for e in four()], config, version=0)
    assert np.exp(scores_N) == pytest.approx([4, 4, 4, 25])
    # The chances to be above a key of log 4: 1 - 1/e = 0.63212, and 1 - e^-6.25 = 0.99807.
    found = importance_weights(scores_N, np.log(4), 0.5)
    assert found == pytest.approx([1, 1, 1, (0.63212 / 0.99807) ** 0.5], abs=1e-5)
    assert importance_weights(scores_N[3:], np.log(4), 0.5) == pytest.approx([1])  # of those drawn
    assert importance_weights(scores_N, np.log(4), 0.0) == pytest.approx([1, 1, 1, 1])


@given(
    st.lists(st.floats(0, 1e3), min_size=1, max_size=9), st.floats(0, 3), st.floats(0, 1), st.data()
)
def test_few_of_many_weigh_as_in_the_paper(
    spreads: list[float], alpha: float, beta: float, data: st.DataObject
) -> None:
    """A key that is hard to exceed: then the chance to do so is proportional to p^alpha."""
    config = PriorityConfig(alpha=alpha, beta=beta)
    groups = [entry(ordinal, spread).group for ordinal, spread in enumerate(spreads)]
    drawn = sorted(data.draw(st.sets(st.sampled_from(range(len(groups))), min_size=1)))
    powers = np.maximum(spreads, config.epsilon) ** alpha
    plain = (len(groups) * powers / powers.sum()) ** -beta
    scores_N = log_scores(groups, config, version=0)
    found = importance_weights(scores_N[drawn], scores_N.max() + 15, beta)
    assert found == pytest.approx(plain[drawn] / plain[drawn].max(), rel=1e-5)


def draw_one(**priority: Any) -> list[int]:
    """The ordinal drawn at each of many versions."""
    job, candidates = rules(size=1, **priority), four()
    return [
        preferred(candidates, 1, job, version)[0].entry.group.ordinal
        for version in range(NUM_DRAWS)
    ]


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, [1, 1, 1, 1]), (2.0, [4, 4, 4, 25])])
def test_a_group_is_drawn_as_often_as_its_chance_says(alpha: float, expected: list[int]) -> None:
    counts = Counter(draw_one(alpha=alpha, epsilon=2.0))
    expected_N = NUM_DRAWS * np.array(expected) / sum(expected)
    chi_square = sum((counts[i] - n) ** 2 / n for i, n in enumerate(expected_N))
    assert chi_square < 16.3  # 3 degrees of freedom: exceeded once in 1000


@pytest.mark.parametrize("size", [1, 2, 3])
def test_with_beta_1_what_is_drawn_estimates_the_mean(size: int) -> None:
    """However many of the four are drawn; before the division by the largest weight."""
    chance = np.random.default_rng(0)
    config = PriorityConfig(alpha=2.0, epsilon=2.0)
    scores_N = log_scores([e.group for e in four()], config, version=0)
    estimates, plain = [], []
    for _ in range(20_000):
        keys_N = scores_N + chance.gumbel(size=4)
        order = np.argsort(-keys_N)
        best, next_key = order[:size], keys_N[order[size]]
        weights = importance_weights(scores_N[best], next_key, 1.0)
        smallest_chance = -np.expm1(-np.exp(scores_N[best].min() - next_key))
        estimates.append((weights * VALUES[best]).sum() / smallest_chance / 4)
        plain.append(VALUES[best].mean())
    assert np.mean(estimates) == pytest.approx(VALUES.mean(), abs=0.2)
    assert abs(np.mean(plain) - VALUES.mean()) > 0.5, "the plain mean is biased"


def test_where_most_are_drawn_the_papers_weights_correct_far_too_much() -> None:
    """How much groups of the lowest priority count, beside those of the highest: how often they
    are drawn, times their weight."""
    chance = np.random.default_rng(0)
    priorities_N = np.array([0.001] * 4 + [0.3] * 8 + [0.5] * 8)
    scores_N = 0.6 * np.log(priorities_N)
    plain_N = np.exp(-scores_N)  # (N P)^-1, but for a factor
    here, paper = np.zeros(20), np.zeros(20)
    for _ in range(5_000):
        keys_N = scores_N + chance.gumbel(size=20)
        order = np.argsort(-keys_N)
        best = order[:19]
        here[best] += importance_weights(scores_N[best], keys_N[order[19]], 1.0)
        paper[best] += plain_N[best] / plain_N[best].max()
    assert here[:4].mean() / here[12:].mean() == pytest.approx(0.94, abs=0.03)
    assert paper[:4].mean() / paper[12:].mean() == pytest.approx(31, abs=2)


def test_several_are_drawn_one_after_the_other() -> None:
    """0 and 1 of 3: 1/2 * (1/4) / (1/2) + 1/4 * (1/2) / (3/4) = 5/12."""
    job = rules(alpha=1.0)
    candidates = [entry(0, 2.0), entry(1, 1.0), entry(2, 1.0)]
    pairs = Counter(frozenset(weights(preferred(candidates, 2, job, v))) for v in range(NUM_DRAWS))
    assert pairs[frozenset({0, 1})] / NUM_DRAWS == pytest.approx(5 / 12, abs=0.025)
    assert pairs[frozenset({1, 2})] / NUM_DRAWS == pytest.approx(1 / 6, abs=0.025)


def test_a_draw_depends_on_seed_version_and_candidates_alone() -> None:
    candidates = [entry(ordinal, 1.0 + ordinal % 3) for ordinal in range(20)]
    one = preferred(candidates, 5, rules(seed=1), 3)
    assert preferred(candidates[::-1], 5, rules(seed=1), 3) == one
    assert weights(preferred(candidates, 5, rules(seed=2), 3)).keys() != weights(one).keys()
    assert weights(preferred(candidates, 5, rules(seed=1), 4)).keys() != weights(one).keys()


def chosen(entries: Sequence[Buffered], job: Rules, version: int = 0) -> dict[int, float]:
    choice = choose({e.group.ordinal: e for e in entries}, (), (), job, version)
    assert isinstance(choice, list)
    return weights(choice)


def test_what_is_not_drawn_weighs_1() -> None:
    # Due now at version 1: ordinal 0. Of 1 to 3 two are drawn, of spreads 1, 2, 4.
    here = [entry(0, 9.0)] + [entry(o, 2.0 ** (o - 1), version=1) for o in range(1, 4)]
    for seed in range(20):
        found = chosen(here, rules(seed=seed, size=3, max_staleness=1, alpha=1.0, beta=1.0), 1)
        assert found.pop(0) == 1
        (low, weight_low), (high, weight_high) = sorted(found.items())
        assert 2.0 ** (low - high) < weight_high < weight_low == 1
    # All fit: nothing is drawn.
    assert chosen(here[:3], rules(size=3, max_staleness=1), 1) == {0: 1, 1: 1, 2: 1}


def test_unused_groups_go_first_and_used_ones_are_drawn_for_the_rest() -> None:
    used = [entry(o, 2.0**o, uses=1) for o in range(4)]
    found = chosen([*used, entry(8, 0.1)], rules(size=3, alpha=1.0, beta=1.0))
    assert found.pop(8) == 1
    (low, weight_low), (high, weight_high) = sorted(found.items())
    assert 2.0 ** (low - high) < weight_high < weight_low == 1
    unused = [entry(o, 1.0) for o in range(8, 11)]
    assert chosen([*used, *unused], rules(size=3)) == {8: 1, 9: 1, 10: 1}
