"""Groups and leases for tests of what is written down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from replay.facts import Accepted, Leased
from slipstream.records import FinishReason, Group, Rollout, VersionSpan


def make_group(
    lease_id: int,
    ordinal: int,
    *,
    versions: Sequence[int] = (0,),
    num_tokens: int = 4,
    rewards: Sequence[float] = (0.0, 1.0),
    is_cut: bool = False,
) -> Group:
    """Each rollout has tokens of all `versions`; their ids tell the lease."""
    stops = [num_tokens * (i + 1) // len(versions) for i in range(len(versions))]
    spans = tuple(
        VersionSpan(version=version, start=start, stop=stop)
        for version, start, stop in zip(versions, [0, *stops], stops, strict=False)
    )
    rollouts = tuple(
        Rollout(
            token_ids=np.full(num_tokens, lease_id, np.int32),
            logprobs=np.full(num_tokens, -0.5, np.float32),
            spans=spans,
            finish_reason=FinishReason.LENGTH if is_cut else FinishReason.EOS,
            reward=reward,
        )
        for reward in rewards
    )
    return Group(
        lease_id=lease_id,
        worker="w0",
        incarnation=0,
        ordinal=ordinal,
        attempt=0,
        prompt_token_ids=np.array([ordinal], np.int32),
        rollouts=rollouts,
    )


def leased(lease_id: int, ordinal: int, *, version: int = 0, attempt: int = 0) -> Leased:
    return Leased(
        ordinal=ordinal,
        attempt=attempt,
        num_failed=0,
        lease_id=lease_id,
        worker="w0",
        incarnation=0,
        min_version=version,
    )


def accepted(lease_id: int, ordinal: int, *versions: int) -> Accepted:
    return Accepted(
        lease_id=lease_id, group=make_group(lease_id, ordinal, versions=versions or (0,))
    )
