"""Each claim of a group, broken one at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from replay.checks import check_group
from replay.scripted import scripted_group, scripted_prompt
from slipstream.records import (
    FailureReason,
    Group,
    Lease,
    RefusalReason,
    RolloutFailure,
    VersionSpan,
)

LEASE = Lease(
    lease_id=5,
    prompt=scripted_prompt(9),
    attempt=1,
    num_failed=0,
    worker="w0",
    incarnation=0,
    timeline=0,
    min_version=3,
    expires_at_s=60.0,
)
GROUP = scripted_group(LEASE, rewards=(0.0, 1.0), num_tokens=3)  # of version 3
NAN, INF = float("nan"), float("inf")


def refusal(group: Group) -> RefusalReason | None:
    refused = check_group(group, LEASE, group_size=2, newest_version=4)
    if refused is not None:
        assert refused[1], "a refusal has a detail"
    return refused[0] if refused else None


def with_rollout(**changes: Any) -> Group:
    """The second of two rollouts changed."""
    first, second = GROUP.rollouts
    return replace(GROUP, rollouts=(first, replace(second, **changes)))


def spans(*bounds: tuple[int, int, int]) -> tuple[VersionSpan, ...]:
    return tuple(VersionSpan(version=v, start=start, stop=stop) for v, start, stop in bounds)


def logprobs(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.float32)


def test_a_sound_group_passes() -> None:
    assert refusal(GROUP) is None


def test_tokens_of_several_published_versions_pass() -> None:
    assert refusal(with_rollout(spans=spans((3, 0, 1), (4, 1, 3)))) is None


def test_a_certain_token_passes() -> None:
    assert refusal(with_rollout(logprobs=logprobs(0.0, -0.0, -1.0))) is None


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (replace(GROUP, ordinal=8), RefusalReason.WRONG_PROMPT),
        (replace(GROUP, attempt=0), RefusalReason.WRONG_PROMPT),
        (replace(GROUP, prompt_token_ids=np.array([8], np.int32)), RefusalReason.WRONG_PROMPT),
        (replace(GROUP, prompt_token_ids=np.array([9, 9], np.int32)), RefusalReason.WRONG_PROMPT),
        (replace(GROUP, rollouts=GROUP.rollouts[:1]), RefusalReason.WRONG_GROUP_SIZE),
        (replace(GROUP, rollouts=()), RefusalReason.WRONG_GROUP_SIZE),
    ],
)
def test_a_group_that_is_not_the_leases(group: Group, reason: RefusalReason) -> None:
    assert refusal(group) is reason


@pytest.mark.parametrize("reward", [None, NAN, INF])
def test_a_group_without_its_greedy_answers_reward(reward: float | None) -> None:
    group = replace(GROUP, greedy_reward=reward)
    refused = check_group(group, LEASE, group_size=2, newest_version=4, needs_greedy=True)
    assert refused is not None
    assert refused[0] is RefusalReason.BAD_REWARD
    assert refusal(group) is None


def test_a_failure_is_named_before_the_hole_that_it_leaves() -> None:
    failure = RolloutFailure(reason=FailureReason.REWARD_TIMEOUT, detail="10 s")
    group = replace(GROUP, rollouts=GROUP.rollouts[:1], failures=(failure,))
    assert check_group(group, LEASE, group_size=2, newest_version=4) == (
        RefusalReason.FAILED_ROLLOUT,
        "reward_timeout: 10 s",
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"token_ids": np.array([], np.int32), "logprobs": logprobs(), "spans": ()},
            RefusalReason.EMPTY_ANSWER,
        ),
        ({"logprobs": logprobs(-1, -1)}, RefusalReason.LENGTH_MISMATCH),
        ({"logprobs": np.full(3, -1.0)}, RefusalReason.LENGTH_MISMATCH),  # float64
        ({"token_ids": np.full(3, 7)}, RefusalReason.LENGTH_MISMATCH),  # int64
        (
            {
                "token_ids": np.full((3, 1), 7, np.int32),
                "logprobs": np.full((3, 1), -1, np.float32),
            },
            RefusalReason.LENGTH_MISMATCH,
        ),
        ({"logprobs": logprobs(-1, NAN, -1)}, RefusalReason.BAD_LOGPROB),
        ({"logprobs": logprobs(-1, -INF, -1)}, RefusalReason.BAD_LOGPROB),
        ({"logprobs": logprobs(-1, 1e-6, -1)}, RefusalReason.BAD_LOGPROB),
        ({"reward": NAN}, RefusalReason.BAD_REWARD),
        ({"reward": -INF}, RefusalReason.BAD_REWARD),
        ({"spans": ()}, RefusalReason.BAD_SPANS),
        ({"spans": spans((3, 0, 2))}, RefusalReason.BAD_SPANS),  # ends early
        ({"spans": spans((3, 0, 4))}, RefusalReason.BAD_SPANS),  # ends late
        ({"spans": spans((3, 1, 3))}, RefusalReason.BAD_SPANS),  # starts late
        ({"spans": spans((3, 0, 1), (4, 2, 3))}, RefusalReason.BAD_SPANS),  # gap
        ({"spans": spans((3, 0, 2), (4, 1, 3))}, RefusalReason.BAD_SPANS),  # overlap
        ({"spans": spans((3, 0, 0), (4, 0, 3))}, RefusalReason.BAD_SPANS),  # empty
        ({"spans": spans((4, 0, 1), (3, 1, 3))}, RefusalReason.BAD_SPANS),  # goes down
        ({"spans": spans((3, 0, 1), (5, 1, 3))}, RefusalReason.UNKNOWN_VERSION),
        ({"spans": spans((-1, 0, 3))}, RefusalReason.UNKNOWN_VERSION),
        ({"spans": spans((2, 0, 3))}, RefusalReason.OLD_VERSION),
        ({"spans": spans((2, 0, 1), (3, 1, 3))}, RefusalReason.OLD_VERSION),
    ],
)
def test_one_unsound_rollout_refuses_the_group(
    changes: dict[str, Any], reason: RefusalReason
) -> None:
    assert refusal(with_rollout(**changes)) is reason
