"""A group's bytes give back exactly that group, or a clear error."""

from __future__ import annotations

import math
import pickle
import struct
import zlib
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.codec import decode, encode
from slipstream.records import (
    FailureReason,
    FinishReason,
    Group,
    Rollout,
    RolloutFailure,
    VersionSpan,
)
from tests.helpers.groups import make_group

INT32 = st.integers(-(2**31), 2**31 - 1)
VERSIONS = st.integers(0, 2**40)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    ids = draw(st.lists(INT32, max_size=5))
    logprobs = draw(st.lists(st.floats(width=32), max_size=5))
    return Rollout(
        token_ids=np.array(ids, np.int32),
        logprobs=np.array(logprobs, np.float32),
        spans=tuple(
            draw(
                st.lists(
                    st.builds(VersionSpan, version=VERSIONS, start=VERSIONS, stop=VERSIONS),
                    max_size=3,
                )
            )
        ),
        finish_reason=draw(st.sampled_from(FinishReason)),
        reward=draw(st.floats()),
    )


groups = st.builds(
    Group,
    lease_id=VERSIONS,
    worker=st.text(),
    incarnation=VERSIONS,
    ordinal=VERSIONS,
    attempt=VERSIONS,
    prompt_token_ids=st.lists(INT32, max_size=5).map(lambda ids: np.array(ids, np.int32)),
    rollouts=st.lists(rollouts(), max_size=4).map(tuple),
    greedy_reward=st.none() | st.floats(),
    failures=st.lists(
        st.builds(RolloutFailure, reason=st.sampled_from(FailureReason), detail=st.text()),
        max_size=3,
    ).map(tuple),
)


def bits(value: Any) -> Any:
    """Comparable to the last bit, NaN included."""
    match value:
        case np.ndarray():
            return value.dtype.str, value.shape, value.tobytes()
        case float():
            return "nan" if math.isnan(value) else struct.pack("<d", value)
        case tuple():
            return tuple(map(bits, value))
        case Group() | Rollout():
            names = [field.name for field in fields(value) if field.compare]
            return tuple(bits(getattr(value, name)) for name in names)
        case _:
            return value


@settings(max_examples=300)
@given(groups)
def test_every_group_comes_back_to_the_bit(group: Group) -> None:
    assert bits(decode(encode(group))) == bits(group)


def test_arrays_are_views_that_nobody_can_write() -> None:
    group = decode(encode(make_group(7, 3)))
    assert list(group.prompt_token_ids) == [3]
    for array in (group.prompt_token_ids, group.rollouts[0].token_ids, group.rollouts[1].logprobs):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


@given(groups)
def test_a_group_that_came_as_bytes_keeps_them_until_it_is_changed(group: Group) -> None:
    data = encode(group)
    received = pickle.loads(pickle.dumps(decode(data), protocol=5))
    assert received.encoded == encode(received) == data
    changed = replace(received, attempt=received.attempt + 1)
    assert decode(encode(changed)).attempt == group.attempt + 1


def test_bytes_of_another_process_are_copied() -> None:
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(make_group(7, 3), protocol=5, buffer_callback=buffers.append)
    shared = bytearray(buffers[0].raw())
    received = pickle.loads(pickled, buffers=[shared])
    shared[:] = bytes(len(shared))
    assert list(received.rollouts[0].token_ids) == [7] * 4


@given(groups, st.data())
def test_any_changed_byte_shows(group: Group, data: st.DataObject) -> None:
    whole = encode(group)
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r"no group|format|damaged"):
        decode(bytes(damaged))


@given(groups, st.data())
def test_any_missing_or_added_byte_shows(group: Group, data: st.DataObject) -> None:
    whole = encode(group)
    for damaged in (whole[: data.draw(st.integers(0, len(whole) - 1))], whole + b"\0"):
        with pytest.raises(ValueError, match=r"no group|damaged"):
            decode(damaged)


def sealed(header: bytes, numbers: bytes = b"") -> bytes:
    """With the right checksum, as from a foreign hand."""
    body = struct.pack("<I", len(header)) + header + numbers
    return b"SLG\x01" + struct.pack("<I", zlib.crc32(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        sealed(b"{}"),
        sealed(b"[]"),
        sealed(b"[" * 100_000),
        sealed(b"\xff\xff"),
        sealed(b'{"rollouts": [], "num_prompt_tokens": 3}'),
        sealed(b'{"rollouts": [], "num_prompt_tokens": -1}'),
        sealed(b'{"rollouts": [], "num_prompt_tokens": 1.0}', bytes(4)),
        sealed(b'{"rollouts": [[-1, 1, "eos", 0, []]], "num_prompt_tokens": 1}', bytes(4)),
        sealed(b'{"rollouts": [[1, 0, "why", 0, []]], "num_prompt_tokens": 0}', bytes(4)),
        sealed(b'{"rollouts": [[1, 0, "eos", 0, 5]], "num_prompt_tokens": 0}', bytes(4)),
    ],
)
def test_an_unsound_header_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="unsound header"):
        decode(data)


def test_foreign_bytes_and_other_formats_are_said() -> None:
    for foreign in (b"", b"SLG", b"\x80\x04pickle", b"PK\x03\x04" * 10):
        with pytest.raises(ValueError, match="no group"):
            decode(foreign)
    whole = encode(make_group(0, 0))
    with pytest.raises(ValueError, match="a group of format 2, this is 1"):
        decode(whole[:3] + b"\x02" + whole[4:])


def test_arrays_of_another_type_are_not_written() -> None:
    group = make_group(0, 0)
    wide = replace(group, prompt_token_ids=np.array([1], np.int64))
    with pytest.raises(TypeError):
        encode(wide)
