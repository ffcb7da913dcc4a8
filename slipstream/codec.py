"""Groups as bytes: between processes, in the journal and in commits.

    "SLG" and the format, one byte │ CRC-32 of the rest │ length of the header
    header, JSON                   │ all token ids, int32 │ all log-probs, float32

Numbers are little-endian; spaces after the header bring them to multiples of four bytes. The
token ids are the prompt's and then each answer's, back to back. Nothing in the bytes is ever run,
so a file from elsewhere can do no harm.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import numpy as np

from slipstream.records import (
    FailureReason,
    FinishReason,
    Group,
    LogProbs,
    Rollout,
    RolloutFailure,
    TokenIds,
    VersionSpan,
)

MAGIC = b"SLG"
FORMAT = 1
_PREFIX = struct.Struct("<3sBII")  # magic, format, CRC of what follows it, length of the header
_CRC_FROM = 8
_to_json = json.JSONEncoder(separators=(",", ":")).encode


def encode(group: Group) -> bytes:
    """Raises TypeError where an array is not of its record's type."""
    if group.encoded is not None:
        return group.encoded
    rollouts = group.rollouts
    header = {
        "lease_id": group.lease_id,
        "worker": group.worker,
        "incarnation": group.incarnation,
        "ordinal": group.ordinal,
        "attempt": group.attempt,
        "num_prompt_tokens": len(group.prompt_token_ids),
        "greedy_reward": group.greedy_reward,
        # JSON has the shortest text that gives back exactly the same double.
        "rollouts": [
            [
                len(r.token_ids),
                len(r.logprobs),
                r.finish_reason.value,
                float(r.reward),
                [(span.version, span.start, span.stop) for span in r.spans],
            ]
            for r in rollouts
        ],
        "failures": [(failure.reason.value, failure.detail) for failure in group.failures],
    }
    text = _to_json(header).encode()
    text += b" " * (-(_PREFIX.size + len(text)) % 4)
    ids = [group.prompt_token_ids, *(r.token_ids for r in rollouts)]
    # "equiv" lets nothing pass that would lose a bit, or change its meaning.
    token_ids = np.concatenate(ids, dtype="<i4", casting="equiv")
    logprobs = [r.logprobs for r in rollouts] or [np.empty(0, np.float32)]
    numbers = np.concatenate(logprobs, dtype="<f4", casting="equiv")
    body = b"".join((len(text).to_bytes(4, "little"), text, token_ids.data, numbers.data))
    return b"".join((MAGIC, bytes([FORMAT]), zlib.crc32(body).to_bytes(4, "little"), body))


def decode(data: bytes) -> Group:
    """The same group; its arrays are views of `data`. Raises ValueError for any other bytes."""
    if len(data) < _PREFIX.size or data[:3] != MAGIC:
        raise ValueError("these bytes are no group")
    _, found, crc, _ = _PREFIX.unpack_from(data)
    if found != FORMAT:
        raise ValueError(f"a group of format {found}, this is {FORMAT}")
    if zlib.crc32(memoryview(data)[_CRC_FROM:]) != crc:
        raise ValueError("a damaged group: its checksum differs")
    return receive(data)


def receive(buffer: bytes | memoryview) -> Group:
    """As `decode`, of bytes that come straight from `encode`: without a look at the checksum."""
    data = bytes(buffer)  # copied if it is not this process's own
    header_length = _PREFIX.unpack_from(data)[3]
    try:
        header = json.loads(data[_PREFIX.size : _PREFIX.size + header_length])
        return _group(header, data, _PREFIX.size + header_length)
    except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"a group with an unsound header: {error!r}") from error


def _group(header: dict[str, Any], data: bytes, offset: int) -> Group:
    rows = header["rollouts"]
    num_prompt_tokens = header["num_prompt_tokens"]
    counts = [num_prompt_tokens, *(count for row in rows for count in row[:2])]
    num_ids = num_prompt_tokens + sum(row[0] for row in rows)
    if min(counts) < 0 or offset + 4 * sum(counts) != len(data):
        raise ValueError(f"{sum(counts)} numbers announced, {len(data) - offset} bytes follow")
    token_ids = np.frombuffer(data, "<i4", num_ids, offset).astype(np.int32, copy=False)
    logprobs = np.frombuffer(data, "<f4", offset=offset + 4 * num_ids).astype(
        np.float32, copy=False
    )
    group = Group(
        lease_id=header["lease_id"],
        worker=header["worker"],
        incarnation=header["incarnation"],
        ordinal=header["ordinal"],
        attempt=header["attempt"],
        prompt_token_ids=token_ids[:num_prompt_tokens],
        rollouts=_rollouts(rows, token_ids[num_prompt_tokens:], logprobs),
        greedy_reward=header["greedy_reward"],
        failures=tuple(
            RolloutFailure(reason=FailureReason(reason), detail=detail)
            for reason, detail in header["failures"]
        ),
    )
    object.__setattr__(group, "encoded", data)
    return group


def _rollouts(rows: list[Any], token_ids: TokenIds, logprobs: LogProbs) -> tuple[Rollout, ...]:
    """Cut from what all of them have, back to back."""
    rollouts = []
    ids_at = logprobs_at = 0
    for num_ids, num_logprobs, finish, reward, spans in rows:
        rollouts.append(
            Rollout(
                token_ids=token_ids[ids_at : ids_at + num_ids],
                logprobs=logprobs[logprobs_at : logprobs_at + num_logprobs],
                spans=tuple([VersionSpan(version=v, start=a, stop=b) for v, a, b in spans]),
                finish_reason=FinishReason(finish),
                reward=reward,
            )
        )
        ids_at += num_ids
        logprobs_at += num_logprobs
    return tuple(rollouts)
