"""The door of the buffer: a group gets in only if every claim it makes holds."""

from __future__ import annotations

import math

import numpy as np

from slipstream.records import Group, Lease, RefusalReason, Rollout

Refusal = tuple[RefusalReason, str]  # with a detail for people


def check_group(
    group: Group,
    lease: Lease,
    *,
    group_size: int,
    newest_version: int,
    needs_greedy: bool = False,
) -> Refusal | None:
    """Why `group`, pushed under its own running `lease`, may not enter, or None.

    `newest_version`: no token can be from a later policy.
    """
    if group.failures:
        failure = group.failures[0]
        return RefusalReason.FAILED_ROLLOUT, f"{failure.reason.value}: {failure.detail}"
    prompt = lease.prompt
    if (group.ordinal, group.attempt) != (prompt.ordinal, lease.attempt):
        return (
            RefusalReason.WRONG_PROMPT,
            f"ordinal {group.ordinal}, attempt {group.attempt}; the lease is for ordinal "
            f"{prompt.ordinal}, attempt {lease.attempt}",
        )
    if not np.array_equal(group.prompt_token_ids, prompt.token_ids):
        return RefusalReason.WRONG_PROMPT, "the prompt's tokens differ from the lease's"
    if len(group.rollouts) != group_size:
        return RefusalReason.WRONG_GROUP_SIZE, f"{len(group.rollouts)} rollouts, not {group_size}"
    if needs_greedy and (group.greedy_reward is None or not math.isfinite(group.greedy_reward)):
        return RefusalReason.BAD_REWARD, f"of the greedy answer: {group.greedy_reward}"
    for rollout in group.rollouts:
        refusal = _check_tokens(rollout) or _check_spans(
            rollout, min_version=lease.min_version, newest_version=newest_version
        )
        if refusal:
            return refusal
    return None


def _check_tokens(rollout: Rollout) -> Refusal | None:
    ids, logprobs = rollout.token_ids, rollout.logprobs
    if ids.size == 0:
        return RefusalReason.EMPTY_ANSWER, "an answer has at least its end-of-sequence token"
    if ids.dtype != np.int32 or logprobs.dtype != np.float32:
        return (
            RefusalReason.LENGTH_MISMATCH,
            f"arrays of {ids.dtype} and {logprobs.dtype}, expected int32 and float32",
        )
    if ids.ndim != 1 or ids.shape != logprobs.shape:
        return RefusalReason.LENGTH_MISMATCH, f"shapes {ids.shape} and {logprobs.shape}"
    lowest, highest = logprobs.min(), logprobs.max()
    # At most 0, exactly: engines clamp what rounding puts above it. NaN fails the comparison.
    if not -math.inf < lowest <= highest <= 0:
        return RefusalReason.BAD_LOGPROB, f"from {lowest} to {highest}"
    if not math.isfinite(rollout.reward):
        return RefusalReason.BAD_REWARD, str(rollout.reward)
    return None


def _check_spans(rollout: Rollout, *, min_version: int, newest_version: int) -> Refusal | None:
    stop, last_version = 0, None
    for span in rollout.spans:
        if span.start != stop or span.stop <= span.start:
            return RefusalReason.BAD_SPANS, f"[{span.start}, {span.stop}) follows {stop}"
        if last_version is not None and span.version < last_version:
            return RefusalReason.BAD_SPANS, f"version {span.version} follows {last_version}"
        stop, last_version = span.stop, span.version
    if stop != rollout.num_tokens:
        return RefusalReason.BAD_SPANS, f"they end at {stop} of {rollout.num_tokens} tokens"
    if rollout.oldest_version < 0 or rollout.spans[-1].version > newest_version:
        return (
            RefusalReason.UNKNOWN_VERSION,
            f"{rollout.oldest_version} to {rollout.spans[-1].version}, published: {newest_version}",
        )
    if rollout.oldest_version < min_version:
        return RefusalReason.OLD_VERSION, f"{rollout.oldest_version}, leased at {min_version}"
    return None
