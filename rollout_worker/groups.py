"""The groups that a worker rolls out: from a lease to requests, from answers to the record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from rollout_worker.engine import GREEDY, Generation, GenerationRequest
from rollout_worker.reward_pool import Score
from slipstream.config.job import JobConfig
from slipstream.records import Group, Lease, Rollout, RolloutFailure


@dataclass(slots=True)
class OpenGroup:
    """A leased prompt whose rollouts are under way."""

    lease: Lease
    finished: dict[int, Generation] = field(default_factory=dict)  # by place in the group
    answers: list[str] = field(default_factory=list)  # once all are finished, as they are scored
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


def is_sampled(job: JobConfig, group: OpenGroup) -> bool:
    """Whether people shall be able to read it: the same prompts are, wherever they run."""
    every = job.telemetry.sample_every_groups if job.telemetry.enabled else 0
    return every > 0 and group.lease.prompt.ordinal % every == 0


def to_sample(job: JobConfig, group: OpenGroup) -> dict[str, Any]:
    """The scored group for people, the fields of a `sample` event."""
    assert group.scores is not None
    scores, limit = group.scores.result(), job.telemetry.max_sample_chars
    generations = [group.finished[place] for place in range(job.rollout.group_size)]
    return {
        "ordinal": group.lease.prompt.ordinal,
        "attempt": group.lease.attempt,
        "prompt": _cut(group.lease.prompt.text, limit),
        "answers": [
            {
                "text": _cut(text, limit),
                "reward": None if isinstance(score, RolloutFailure) else score,
                "finish_reason": generation.finish_reason.value,
                "num_tokens": len(generation.token_ids),
                "spans": [[span.version, span.stop - span.start] for span in generation.spans],
            }
            for generation, text, score in zip(generations, group.answers, scores, strict=False)
        ],
    }


def _cut(text: str, num_chars: int) -> str:
    if len(text) <= num_chars:
        return text
    return f"{text[:num_chars]} [and {len(text) - num_chars} more characters]"


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
