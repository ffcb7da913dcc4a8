"""One step's work: how long its answers are, and the rows and microbatches that they make.

Lengths are not known before a run. Every token is taken to be an answer's last by the same chance,
with a cut at `rollout.max_new_tokens`: a geometric distribution of a given mean, by its quantiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from learner.batching import group_ranges, rows_of_ranks
from slipstream.config.job import JobConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Of one learner step. Tokens are of all ranks or workers together, if nothing else is said."""

    num_groups: int
    num_answers: int  # generated, with the greedy ones of ReMax
    num_trained: int  # answers
    prompt_tokens: float  # of one prompt, on average
    answer_tokens: float  # of one answer, on average
    longest_answer: int
    input_tokens: int  # that the learner computes, without padding
    rank_tokens: int  # of the rank that has most in each minibatch, with padding
    rank_squares: int  # sum over its rows of their padded length squared, for attention
    num_microbatches: int  # of each rank, in all minibatches
    largest_microbatch: int  # tokens with padding

    @property
    def trained_tokens(self) -> float:
        return self.num_trained * self.answer_tokens

    @property
    def padding_share(self) -> float:
        """Of what one rank computes."""
        return max(0.0, 1 - self.input_tokens / max(1, self.rank_tokens))


def work_of(job: JobConfig, *, prompt_tokens: float, answer_tokens: float, hidden: int) -> Work:
    """Of one step of `job` with answers of this mean; `hidden` as in `learner.tensors.rows_of`."""
    num_groups, group_size = job.learner.groups_per_batch, job.rollout.group_size
    lengths = quantiles(num_groups * group_size, answer_tokens, job.rollout.max_new_tokens)
    prefix = max(0, round(prompt_tokens) - 1)
    # Long and short ones in every group.
    groups = [_rows(lengths[start::num_groups], prefix, hidden) for start in range(num_groups)]
    packed = [
        _packed(job, [row for group in part for row in groups[group]])
        for part in group_ranges(num_groups, job.algorithm.minibatches)
        if part
    ]
    return Work(
        num_groups=num_groups,
        num_answers=num_groups * (group_size + job.algorithm.needs_greedy),
        num_trained=len(lengths),
        prompt_tokens=prompt_tokens,
        answer_tokens=sum(lengths) / len(lengths),
        longest_answer=max(lengths),
        input_tokens=sum(map(sum, groups)),
        rank_tokens=sum(part.rank_tokens for part in packed),
        rank_squares=sum(part.rank_squares for part in packed),
        num_microbatches=sum(part.num_microbatches for part in packed),
        largest_microbatch=max(part.largest_microbatch for part in packed),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    """One minibatch; the fields are those of `Work`."""

    rank_tokens: int
    rank_squares: int
    num_microbatches: int
    largest_microbatch: int


def _packed(job: JobConfig, rows: list[int]) -> _Packed:
    ranks = rows_of_ranks(
        rows,
        max_tokens=job.learner.max_tokens_per_microbatch,
        num_ranks=job.learner.num_ranks,
    )
    padded = [[(rows[batch[0]], len(batch)) for batch in rank if batch] for rank in ranks]
    sizes = [sum(longest * count for longest, count in rank) for rank in padded]
    most = sizes.index(max(sizes))
    return _Packed(
        rank_tokens=sizes[most],
        rank_squares=sum(longest**2 * count for longest, count in padded[most]),
        num_microbatches=len(ranks[0]),
        largest_microbatch=max(longest * count for rank in padded for longest, count in rank),
    )


def quantiles(count: int, mean: float, most: int) -> list[int]:
    """`count` lengths from 1 to `most` whose mean is about `mean`."""
    if mean <= 1 or most == 1:
        return [1] * count
    if mean >= most:
        return [most] * count
    going_on = _chance_to_go_on(mean, most)
    places = ((index + 0.5) / count for index in range(count))
    return [min(most, 1 + int(math.log1p(-place) / math.log(going_on))) for place in places]


def _chance_to_go_on(mean: float, most: int) -> float:
    """q for which an answer that goes on by q a token, and is cut, has this mean: the sum of q**i
    for i below `most`."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        total = most if middle == 1 else (1 - middle**most) / (1 - middle)
        low, high = (middle, high) if total < mean else (low, middle)
    return max(low, 1e-9)


def _rows(answers: list[int], prefix: int, hidden: int) -> list[int]:
    """Input positions of a group's rows: its answers share one where that is cheaper."""

    def cost(num_tokens: int) -> int:
        return num_tokens * (12 * hidden + num_tokens)

    apart = [prefix + num_tokens for num_tokens in answers]
    together = prefix + sum(answers)
    shares = hidden and len(answers) > 1 and cost(together) < sum(map(cost, apart))
    return [together] if shares else apart
