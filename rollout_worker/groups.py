"""The groups that a worker rolls out: from a lease to requests, from answers to the record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from rollout_worker.engine import GREEDY, Generation, GenerationRequest
from rollout_worker.reward_pool import Score
from slipstream.config.job import JobConfig
from slipstream.records import Group, Lease, Rollout, RolloutFailure


@dataclass(slots=True)
class OpenGroup:
    """A leased prompt whose rollouts are under way."""

    lease: Lease
    finished: dict[int, Generation] = field(default_factory=dict)  # by place in the group
    scores: Future[list[Score]] | None = None

    @property
    def is_scored(self) -> bool:
        return self.scores is not None and self.scores.done()


def num_answers(job: JobConfig) -> int:
    """Of one prompt: its rollouts, and perhaps a greedy answer in the last place."""
    return job.rollout.group_size + job.algorithm.needs_greedy


def requests(job: JobConfig, lease: Lease) -> list[GenerationRequest]:
    """One for every answer of the prompt, in their places."""
    return [_request(job, lease, place) for place in range(num_answers(job))]


def request_ids(job: JobConfig, leases: Iterable[int]) -> list[str]:
    return [_request_id(lease, place) for lease in leases for place in range(num_answers(job))]


def lease_and_place(request_id: str) -> tuple[int, int]:
    lease_id, place = request_id.split("/")
    return int(lease_id), int(place)


def to_record(job: JobConfig, group: OpenGroup, worker: str, incarnation: int) -> Group:
    """The scored group as replay takes it."""
    assert group.scores is not None
    generations = [group.finished[place] for place in sorted(group.finished)]
    scores, size = group.scores.result(), job.rollout.group_size
    greedy = scores[size] if job.algorithm.needs_greedy else None
    return Group(
        lease_id=group.lease.lease_id,
        worker=worker,
        incarnation=incarnation,
        ordinal=group.lease.prompt.ordinal,
        attempt=group.lease.attempt,
        prompt_token_ids=group.lease.prompt.token_ids,
        rollouts=tuple(
            _rollout(generation, score)
            for generation, score in zip(generations[:size], scores, strict=False)
            if not isinstance(score, RolloutFailure)
        ),
        greedy_reward=None if isinstance(greedy, RolloutFailure) else greedy,
        failures=tuple(score for score in scores if isinstance(score, RolloutFailure)),
    )


def rollout_seed(job_seed: int, ordinal: int, num_failed: int, place: int) -> int:
    """The same prompt gives the same tokens wherever and whenever it runs, until an attempt of it
    fails. In [0, 2^62)."""
    key = f"{job_seed}/{ordinal}/{num_failed}/{place}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 2


def _request(job: JobConfig, lease: Lease, place: int) -> GenerationRequest:
    rollout = job.rollout
    is_greedy = place == rollout.group_size
    return GenerationRequest(
        request_id=_request_id(lease.lease_id, place),
        prompt_token_ids=lease.prompt.token_ids,
        max_new_tokens=rollout.max_new_tokens,
        temperature=GREEDY if is_greedy else rollout.temperature,
        top_p=rollout.top_p,
        seed=rollout_seed(job.seed, lease.prompt.ordinal, lease.num_failed, place),
    )


def _request_id(lease_id: int, place: int) -> str:
    return f"{lease_id}/{place}"


def _rollout(generation: Generation, reward: float) -> Rollout:
    return Rollout(
        token_ids=generation.token_ids,
        logprobs=generation.logprobs,
        spans=generation.spans,
        finish_reason=generation.finish_reason,
        reward=reward,
    )
