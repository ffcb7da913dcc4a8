"""From the files of some ranks to the optimizers of others: another number, or another ZeRO stage.

An optimizer keeps what it changes in buffers: the weights in float32 and, beside them in the same
order, Adam's moments. What a buffer holds differs between ZeRO stages, so both sides say it:

    old files ── read ──▶ [Part, Part, ...]      of every old rank, mapped into memory
    new rank  ──────────▶  Part                  its own buffers
              fill: copies into the new one what each old one has of the same elements

Numbers are copied, never computed, so what arrives is exactly what was saved.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.errors import SlipstreamError

STEP = "step"  # Adam's count, one for a buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where some consecutive elements of a parameter are kept."""

    name: str
    start: int  # the first one, in the flat parameter
    numel: int
    buffer: int  # which of the rank's
    offset: int  # of the first one, in the buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one rank's optimizer keeps."""

    places: Sequence[Place]
    masters: Sequence[Tensor]  # by buffer
    adam: Sequence[dict[str, Tensor]]  # by buffer: `step` and moments; empty before the first step


def read_shared(directory: Path) -> dict[str, Any]:
    """What every rank had alike, of DeepSpeed's files: layout, and what lay beside it."""
    whole = directory / "mp_rank_00_model_states.pt"
    return _load(whole if whole.exists() else directory / f"zero_pp_rank_0_{whole.name}")


def layout_of(shared: Mapping[str, Any]) -> tuple[int, int]:
    """(number of ranks, ZeRO stage)."""
    return shared["dp_world_size"], shared["ds_config"]["zero_optimization"]["stage"]


def read_parts(directory: Path, shared: Mapping[str, Any], names: Sequence[str]) -> list[Part]:
    """The parts of the ranks that wrote `directory`. `names`: of all parameters, in order."""
    num_ranks, zero_stage = layout_of(shared)
    if zero_stage == 0:
        return [_whole(shared, names)]
    files = [f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(num_ranks)]
    states = [_load(next(directory.glob(file)))["optimizer_state_dict"] for file in files]
    if zero_stage == 3:
        shapes = shared["param_shapes"]
        return [
            Part(
                places=zero_3_places(shapes, rank, num_ranks),
                masters=state["fp32_flat_groups"],
                adam=_adam(state["optimizer_state_dict"], len(shapes)),
            )
            for rank, state in enumerate(states)
        ]
    return [
        Part(
            places=places,
            masters=state["single_partition_of_fp32_groups"],
            adam=_adam(state["base_optimizer_state"], len(state["param_slice_mappings"])),
        )
        for state, places in zip(states, _flat_places(states), strict=True)
    ]


def zero_3_places(
    shapes: Iterable[Mapping[str, torch.Size]], rank: int, num_ranks: int
) -> list[Place]:
    """ZeRO 3 gives each rank an equal share of every parameter, the last ones padded. `shapes`:
    of the parameters, by buffer and in their order there."""
    places = []
    for buffer, named in enumerate(shapes):
        offset = 0
        for name, shape in named.items():
            share = -(-shape.numel() // num_ranks)
            start = min(rank * share, shape.numel())
            numel = min(share, shape.numel() - start)
            place = Place(name=name, start=start, numel=numel, buffer=buffer, offset=offset)
            places.append(place)
            offset += share
    return places


def fill(mine: Part, parts: Sequence[Part]) -> None:
    """Copy what `parts` hold of the elements that are in `mine`.

    Raises SlipstreamError where an element is in none of them.
    """
    holders: dict[str, list[tuple[Part, Place]]] = defaultdict(list)
    for part in parts:
        for place in part.places:
            holders[place.name].append((part, place))
    for place in mine.places:
        copied = sum(_copy(part, at, mine, place) for part, at in holders[place.name])
        if copied != place.numel:
            raise SlipstreamError(
                f"the commit holds {copied} of the {place.numel} elements of {place.name} that "
                "this rank needs; it is of another model"
            )


def _copy(source: Part, at: Place, target: Part, to: Place) -> int:
    """Copy what both have of a parameter; returns how many elements that is."""
    start = max(at.start, to.start)
    numel = min(at.start + at.numel, to.start + to.numel) - start
    if numel <= 0:
        return 0

    def copy(saved: Tensor, into: Tensor) -> None:
        elements = saved.reshape(-1).narrow(0, at.offset + start - at.start, numel)
        into.view(-1).narrow(0, to.offset + start - to.start, numel).copy_(elements)

    master, adam = target.masters[to.buffer], target.adam[to.buffer]
    copy(source.masters[at.buffer], master)
    for key, saved in source.adam[at.buffer].items():
        if key == STEP:
            # Without ZeRO each parameter has its own: those without a gradient are left out.
            known = adam.get(STEP, torch.zeros_like(saved))
            adam[STEP] = torch.maximum(known.cpu(), saved).to(master.device)
            continue
        if key not in adam:
            adam[key] = torch.zeros_like(master)
        copy(saved, adam[key])
    return numel


def _whole(shared: Mapping[str, Any], names: Sequence[str]) -> Part:
    """Without ZeRO: each parameter is a buffer, and one file holds all."""
    masters = [shared["module"][name] for name in names]
    places = [
        Place(name=name, start=0, numel=master.numel(), buffer=buffer, offset=0)
        for buffer, (name, master) in enumerate(zip(names, masters, strict=True))
    ]
    return Part(places=places, masters=masters, adam=_adam(shared["optimizer"], len(names)))


def _flat_places(states: Iterable[Mapping[str, Any]]) -> list[list[Place]]:
    """ZeRO 1 and 2 put all parameters in a row and cut it into equal pieces, by rank."""
    seen: Counter[str] = Counter()  # elements of a parameter on the ranks before
    places = []
    for state in states:
        mine = []
        for buffer, fragments in enumerate(state["param_slice_mappings"]):
            for name, at in fragments.items():
                place = Place(
                    name=name, start=seen[name], numel=at.numel, buffer=buffer, offset=at.start
                )
                mine.append(place)
                seen[name] += at.numel
        places.append(mine)
    return places


def _adam(state: Mapping[str, Any], num_buffers: int) -> list[dict[str, Tensor]]:
    return [dict(state["state"].get(buffer, {})) for buffer in range(num_buffers)]


def _load(path: Path) -> dict[str, Any]:
    """Its tensors are read when they are used. Of a verified commit: it may hold any object."""
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    return loaded
