"""The door of the buffer: a group gets in only if every claim it makes holds."""

from __future__ import annotations

import math

import numpy as np

from slipstream.records import Group, Lease, RefusalReason, Rollout

Refusal = tuple[RefusalReason, str]


def check_group(group: Group, lease: Lease, *, group_size: int, version: int) -> Refusal | None:
    """Why `group`, pushed under `lease`, may not enter, or None.

    `version` is the newest published one: no token can be from a later policy.
    """
    if group.incarnation != lease.incarnation or group.worker != lease.worker:
        return RefusalReason.STALE_INCARNATION, f"{group.worker} is now {lease.incarnation}"
    if group.failures:
        failure = group.failures[0]
        return RefusalReason.FAILED_ROLLOUT, f"{failure.reason.value}: {failure.detail}"
    if (group.ordinal, group.attempt) != (lease.prompt.ordinal, lease.attempt) or (
        not np.array_equal(group.prompt_token_ids, lease.prompt.token_ids)
    ):
        return RefusalReason.WRONG_PROMPT, f"the lease is for ordinal {lease.prompt.ordinal}"
    if len(group.rollouts) != group_size:
        return RefusalReason.WRONG_GROUP_SIZE, f"{len(group.rollouts)}, not {group_size}"
    for rollout in group.rollouts:
        if refusal := _check_rollout(rollout, lease.min_version, version):
            return refusal
    return None


def _check_rollout(rollout: Rollout, min_version: int, version: int) -> Refusal | None:
    num_tokens = len(rollout.token_ids)
    if num_tokens == 0:
        return RefusalReason.EMPTY_ANSWER, "an answer has at least its end-of-sequence token"
    if len(rollout.logprobs) != num_tokens:
        return (
            RefusalReason.LENGTH_MISMATCH,
            f"{num_tokens} tokens, {len(rollout.logprobs)} log-probs",
        )
    if not bool(np.all(np.isfinite(rollout.logprobs) & (rollout.logprobs <= 0))):
        return RefusalReason.BAD_LOGPROB, f"{rollout.logprobs.min()} to {rollout.logprobs.max()}"
    if not math.isfinite(rollout.reward):
        return RefusalReason.BAD_REWARD, str(rollout.reward)
    return _check_spans(rollout, min_version, version)


def _check_spans(rollout: Rollout, min_version: int, version: int) -> Refusal | None:
    stop, last_version = 0, min_version
    for span in rollout.spans:
        if span.start != stop or span.stop <= span.start:
            return RefusalReason.BAD_SPANS, f"a span of [{span.start}, {span.stop}) after {stop}"
        if not last_version <= span.version <= version:
            return (
                RefusalReason.UNKNOWN_VERSION,
                f"version {span.version}, expected {last_version} to {version}",
            )
        stop, last_version = span.stop, span.version
    if stop != rollout.num_tokens:
        return RefusalReason.BAD_SPANS, f"the spans end at {stop} of {rollout.num_tokens} tokens"
    return None
