"""pass@k: the chance that at least one of k sampled answers is right. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from math import comb


def pass_at(k: int, num_samples: int, num_right: int) -> float:
    """The unbiased estimate from n = `num_samples` >= k answers of one prompt, c of them right:
    1 - C(n - c, k) / C(n, k) (Chen et al. 2021)."""
    return 1.0 - comb(num_samples - num_right, k) / comb(num_samples, k)


def mean_pass_at(k: int, prompts: Iterable[tuple[int, int]]) -> float | None:
    """Over prompts, as (answers with a reward, right ones). Those with fewer than k such answers
    count for nothing, as it is not known what they would have been; None where no other is left.
    """
    found = [pass_at(k, samples, right) for samples, right in prompts if samples >= k]
    return sum(found) / len(found) if found else None
