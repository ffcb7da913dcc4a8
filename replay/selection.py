"""Which of the eligible groups are preferred, and what those that were drawn weigh. Pure.

`select: priority` is prioritized experience replay (Schaul et al. 2016, arXiv 1511.05952): of N
candidates with priorities p a group is drawn with probability P(i) = p_i^alpha / sum p^alpha,
without replacement, and its loss is multiplied by a power of how unlikely that was. There one
group is drawn at a time, and w_i = (N P(i))^-beta / max w. Here a batch often takes most of the
candidates, and N P(i) is not the chance to be among K drawn. That chance, given the (K+1)th best
key, is q_i = 1 - exp(-exp(alpha log p_i - key)) (Kool et al. 2019, arXiv 1903.06059), and
w_i = q_i^-beta / max w over those drawn: the same where K is small beside N, and 1 where all fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from replay.rules import Rules
from replay.shelf import Buffered
from slipstream.config.job import PriorityBy, PriorityConfig
from slipstream.records import Group


@dataclass(frozen=True, slots=True)
class Chosen:
    """A group of the batch. One that was certain to be in it, and not drawn, has weight 1."""

    entry: Buffered
    weight: float = 1.0


def preferred(
    candidates: Iterable[Buffered], size: int, rules: Rules, version: int
) -> list[Chosen]:
    """The `size` best candidates, best first; ties go to the lower ordinal.

    fifo      lowest ordinal
    freshest  its oldest token is from the newest version
    priority  drawn by `rules.priority`, see above
    random    the first of a permutation

    What is drawn depends on seed, version and candidates alone. Where all fit, nothing is drawn.
    """
    in_order = sorted(candidates, key=lambda entry: entry.group.ordinal)
    if rules.select == "priority" and len(in_order) > size > 0:
        return _drawn(in_order, size, rules, version)
    match rules.select:
        case "fifo" | "priority":
            best = in_order
        case "freshest":
            best = sorted(in_order, key=lambda entry: -entry.group.oldest_version)
        case "random":
            order = _generator(rules, version).permutation(len(in_order))
            best = [in_order[index] for index in order]
    return [Chosen(entry) for entry in best[:size]]


def _drawn(candidates: Sequence[Buffered], size: int, rules: Rules, version: int) -> list[Chosen]:
    """By Gumbel top-k: the same as one after the other, each by P among those that are left."""
    scores_N = log_scores([entry.group for entry in candidates], rules.priority, version)
    keys_N = scores_N + _generator(rules, version).gumbel(size=len(candidates))
    order = np.argsort(-keys_N, kind="stable")
    best = order[:size]
    weights = importance_weights(scores_N[best], keys_N[order[size]], rules.priority.beta)
    return [Chosen(candidates[i], float(w)) for i, w in zip(best, weights, strict=True)]


def log_scores(
    groups: Sequence[Group], config: PriorityConfig, version: int
) -> npt.NDArray[np.float64]:
    """(N,) log of p^alpha, with p at least epsilon, so that every group can be drawn."""
    priorities = [
        priority(group, config.by, lag=version - group.oldest_version) for group in groups
    ]
    scores_N: npt.NDArray[np.float64] = config.alpha * np.log(
        np.maximum(priorities, config.epsilon)
    )
    return scores_N


def importance_weights(
    log_scores_K: npt.NDArray[np.float64], next_key: float, beta: float
) -> npt.NDArray[np.float64]:
    """(K,) of K drawn groups, at most 1. `next_key`: the best key that was not drawn."""
    chances_K = -np.expm1(-np.exp(log_scores_K - next_key))
    weights_K: npt.NDArray[np.float64] = (chances_K / chances_K.min()) ** -beta
    return weights_K


def priority(group: Group, by: PriorityBy, *, lag: int) -> float:
    """How much the group is worth training on, 0 or more.

    reward_spread  standard deviation of its rewards: at 0 a group-relative advantage vanishes
    advantage      mean of |reward - mean of the group|
    age            lag + 1
    """
    rewards = np.array([rollout.reward for rollout in group.rollouts])
    match by:
        case "reward_spread":
            return float(rewards.std())
        case "advantage":
            return float(np.abs(rewards - rewards.mean()).mean())
        case "age":
            return lag + 1.0


def _generator(rules: Rules, version: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([rules.seed, version]))
