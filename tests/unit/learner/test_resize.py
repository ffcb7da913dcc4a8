"""What optimizers keep, moved to other ranks: hand-checked."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.contents import seed_random_state
from learner.resize import Part, Place, fill, layout_of, read_shared, zero_3_places
from slipstream.errors import SlipstreamError


def place(name: str, start: int, numel: int, offset: int, buffer: int = 0) -> Place:
    return Place(name=name, start=start, numel=numel, buffer=buffer, offset=offset)


def part(places: list[Place], *values: list[float], step: float | None = None) -> Part:
    """Its moments are 10 and 100 times its weights."""
    masters = [torch.tensor(buffer) for buffer in values]
    adam = [
        {"step": torch.tensor(step), "exp_avg": 10 * master, "exp_avg_sq": 100 * master}
        if step is not None
        else {}
        for master in masters
    ]
    return Part(places=places, masters=masters, adam=adam)


def empty(places: list[Place], *sizes: int) -> Part:
    return Part(
        places=places,
        masters=[torch.full((size,), -1.0) for size in sizes],
        adam=[{} for _ in sizes],
    )


# Two ranks of ZeRO 1: a has 3 elements, b has 4; the second rank's buffer ends in padding.
OLD = [
    part([place("a", 0, 3, 0), place("b", 0, 1, 3)], [1.0, 2.0, 3.0, 4.0], step=6.0),
    part([place("b", 1, 3, 0)], [5.0, 6.0, 7.0, 0.0], step=6.0),
]


def test_each_element_finds_its_new_place() -> None:
    # The second of two ranks of ZeRO 3: the rest of a behind padding, the second half of b.
    mine = empty([place("a", 2, 1, 0), place("b", 2, 2, 2)], 4)
    fill(mine, OLD)
    assert mine.masters[0].tolist() == [3, -1, 6, 7]
    assert mine.adam[0]["exp_avg"].tolist() == [30, 0, 60, 70]
    assert mine.adam[0]["exp_avg_sq"].tolist() == [300, 0, 600, 700]
    assert mine.adam[0]["step"] == 6


def test_a_parameter_of_several_ranks_becomes_one_buffer() -> None:
    mine = empty([place("a", 0, 3, 0), place("b", 0, 4, 0, buffer=1)], 3, 4)
    mine.masters[1].resize_(2, 2)
    fill(mine, OLD)
    assert mine.masters[0].tolist() == [1, 2, 3]
    assert mine.masters[1].tolist() == [[4, 5], [6, 7]]
    assert mine.adam[1]["exp_avg"].tolist() == [[40, 50], [60, 70]]


def test_what_arrives_is_a_copy() -> None:
    mine = empty([place("a", 0, 3, 0)], 3)
    fill(mine, OLD)
    mine.masters[0].zero_(), mine.adam[0]["exp_avg"].zero_(), mine.adam[0]["step"].zero_()
    assert OLD[0].masters[0].tolist() == [1, 2, 3, 4]
    assert OLD[0].adam[0]["exp_avg"].tolist() == [10, 20, 30, 40]
    assert OLD[0].adam[0]["step"] == 6


def test_parameters_with_counts_of_their_own_share_the_highest() -> None:
    counts = [
        part([place(name, 0, 1, 0)], [1.0], step=step) for name, step in (("a", 3.0), ("b", 2.0))
    ]
    mine = empty([place("a", 0, 1, 0), place("b", 0, 1, 1)], 2)
    fill(mine, counts)
    assert mine.adam[0]["step"] == 3


def test_before_the_first_step_there_is_nothing_of_adam() -> None:
    mine = empty([place("a", 0, 2, 0)], 2)
    fill(mine, [part([place("a", 0, 2, 0)], [1.0, 2.0])])
    assert mine.masters[0].tolist() == [1, 2]
    assert mine.adam == [{}]


@pytest.mark.parametrize("wanted", [place("c", 0, 1, 0), place("b", 2, 3, 0)])
def test_an_element_that_no_rank_had_is_told(wanted: Place) -> None:
    with pytest.raises(SlipstreamError, match=rf"elements of {wanted.name} that this rank needs"):
        fill(empty([wanted], 4), OLD)


def test_zero_3_shares_every_parameter() -> None:
    shapes = [{"a": torch.Size([5]), "b": torch.Size([2, 2])}, {"c": torch.Size([1])}]
    assert zero_3_places(shapes, 0, 3) == [
        *(place("a", 0, 2, 0), place("b", 0, 2, 2), place("c", 0, 1, 0, buffer=1)),
    ]
    assert zero_3_places(shapes, 2, 3) == [
        *(place("a", 4, 1, 0), place("b", 4, 0, 2), place("c", 1, 0, 0, buffer=1)),
    ]


def test_files_say_their_layout(tmp_path: Path) -> None:
    shared = {"dp_world_size": 2, "ds_config": {"zero_optimization": {"stage": 3}}}
    torch.save(shared, tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    assert layout_of(read_shared(tmp_path)) == (2, 3)
    shared["dp_world_size"] = 4
    torch.save(shared, tmp_path / "mp_rank_00_model_states.pt")
    assert layout_of(read_shared(tmp_path)) == (4, 3)


def test_a_new_rank_draws_what_seed_and_rank_say() -> None:
    def draws(seed: int, rank: int) -> tuple[float, float, float]:
        seed_random_state(seed, rank)
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    assert draws(3, 1) == draws(3, 1)
    assert len({draws(3, 1), draws(3, 2), draws(1, 3), draws(4, 1)}) == 4
