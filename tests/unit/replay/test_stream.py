"""Order, addressing and over-long prompts of the stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from replay.sources import DataError
from replay.stream import PromptStream
from slipstream.records import TokenIds

ITEMS = [{"length": length} for length in (1, 2, 3, 4, 5)]


def render(item: Mapping[str, Any], item_index: int) -> tuple[str, TokenIds]:
    return f"item {item_index}", np.zeros(item["length"], dtype=np.int32)


def stream(*, seed: int = 0, shuffle: bool = True, max_prompt_tokens: int = 5) -> PromptStream:
    return PromptStream(
        ITEMS, render, seed=seed, shuffle=shuffle, max_prompt_tokens=max_prompt_tokens
    )


def indices(prompts: PromptStream, ordinals: range) -> list[int]:
    found = [prompts.prompt(ordinal) for ordinal in ordinals]
    return [prompt.item_index for prompt in found if prompt is not None]


def test_each_epoch_is_another_permutation() -> None:
    prompts = stream()
    epochs = [indices(prompts, range(5 * e, 5 * e + 5)) for e in range(20)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 10


def test_the_order_is_numpys_permutation_of_seed_and_epoch() -> None:
    expected = np.random.Generator(np.random.PCG64([7, 2])).permutation(5).tolist()
    assert indices(stream(seed=7), range(10, 15)) == expected


def test_the_order_of_access_does_not_matter() -> None:
    forward, backward = stream(seed=3), stream(seed=3)
    ordinals = range(60)  # more epochs than are kept
    ahead = {o: forward.prompt(o) for o in ordinals}
    behind = {o: backward.prompt(o) for o in reversed(ordinals)}
    assert {o: p.item_index for o, p in ahead.items() if p} == {
        o: p.item_index for o, p in behind.items() if p
    }


def test_without_shuffle_it_is_the_order_of_the_data() -> None:
    assert indices(stream(shuffle=False), range(7)) == [0, 1, 2, 3, 4, 0, 1]


def test_a_prompt_carries_its_place_and_its_item() -> None:
    prompt = stream(shuffle=False).prompt(7)
    assert prompt is not None
    assert (prompt.ordinal, prompt.epoch, prompt.item_index) == (7, 1, 2)
    assert prompt.item == {"length": 3}
    assert prompt.text == "item 2"
    assert prompt.token_ids.tolist() == [0, 0, 0]


def test_an_over_long_prompt_is_none() -> None:
    prompts = stream(shuffle=False, max_prompt_tokens=3)
    assert [prompts.prompt(o) is None for o in range(6)] == [False] * 3 + [True] * 2 + [False]


def test_data_without_one_prompt_that_fits_is_an_error() -> None:
    prompts = PromptStream(ITEMS[1:], render, seed=0, shuffle=True, max_prompt_tokens=1)
    assert [prompts.prompt(o) for o in range(7)] == [None] * 7
    with pytest.raises(DataError, match=r"all 4 prompts .*max_prompt_tokens \(1\)"):
        prompts.prompt(7)


def test_one_prompt_that_fits_is_enough_wherever_epochs_put_it() -> None:
    for seed in range(50):
        prompts = PromptStream(ITEMS, render, seed=seed, shuffle=True, max_prompt_tokens=1)
        assert any(prompts.prompt(o) for o in range(60))
