"""What an unknown key was meant to be: the nearest word here, or the same one elsewhere."""

from __future__ import annotations

import difflib
import typing
from fnmatch import fnmatchcase
from types import UnionType
from typing import Any

from pydantic import BaseModel

from slipstream.config.job import JobConfig
from slipstream.config.yaml_text import KeyPath, dotted_key

SURE, LIKELY = 0.8, 0.65  # how alike two words are, from 0 to 1
MAX_HOMES = 3  # a word that is known in more places says little
ANY_NAME = "*"  # in a place: a name that the user chooses
# What other programs call it.
OTHER_NAMES = {
    "lr": "learning_rate",
    "batch_size": "groups_per_batch",
    "steps": "num_steps",
    "max_steps": "num_steps",
    "num_generations": "group_size",
    "n_samples_per_prompt": "group_size",
    "max_tokens": "max_new_tokens",
    "tensor_parallel_size": "gpus",
    "kl_coef": "coefficient",
    "staleness": "max_staleness",
    "max_lag": "max_staleness",
    "clip_range": "clip_low",
}


def meant_by(path: KeyPath, models: list[type[BaseModel]]) -> list[str]:
    """The dotted keys that the unknown key `path` may stand for, of which `models` know some."""
    key, section = str(path[-1]), dotted_key(path[:-1])
    known = sorted({name for model in models for name in model.model_fields})
    if near := nearest(key, known, SURE):
        return [_under(section, near)]
    for word in (key, OTHER_NAMES.get(key, "")):
        homes = [home for home, _ in _homes().get(word, []) if ANY_NAME not in home]
        places = list(dict.fromkeys(_under(home, word) for home in homes))
        if word in known:
            return [_under(section, word)]
        if 0 < len(places) <= MAX_HOMES and places != [dotted_key(path)]:
            return places
    near = nearest(key, known)
    return [_under(section, near)] if near else []


def unknown_key(path: KeyPath, models: list[type[BaseModel]]) -> str:
    """What it was meant to be, which kind of its section has it, or else all that is known."""
    section = dotted_key(path[:-1])
    kinds = [
        kind
        for home, kind in _homes().get(str(path[-1]), [])
        if fnmatchcase(section, home) and kind
    ]
    known = "known here: " + ", ".join(
        sorted({key for model in models for key in model.model_fields})
    )
    if kinds and models:
        others = " and ".join(dict.fromkeys(kinds))
        return f"is a key of kind {others}, and the kind here is {kind_of(models[0])}; {known}"
    if not (meant := meant_by(path, models)):
        return f"unknown key; {known}"
    shown = [key.removeprefix(f"{section}.") if section else key for key in meant]
    return f"unknown key, did you mean {' or '.join(map(repr, shown))}?"


def _homes() -> dict[str, list[tuple[str, str | None]]]:
    """Where each key is known: its section, and the kind of that, if it has kinds."""
    homes: dict[str, list[tuple[str, str | None]]] = {}

    def visit(model: type[BaseModel], section: str) -> None:
        for name, info in model.model_fields.items():
            homes.setdefault(name, []).append((section, kind_of(model)))
            place = _under(name, ANY_NAME) if holds_names(info.annotation) else name
            for below in models_of(info.annotation):
                visit(below, _under(section, place))

    visit(JobConfig, "")
    return homes


def nearest(word: str, known: list[str], cutoff: float = LIKELY) -> str | None:
    near = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return near[0] if near else None


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field can hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = typing.get_origin(annotation)
    if holds_names(annotation):
        return models_of(typing.get_args(annotation)[1])
    if origin is typing.Annotated or origin in (typing.Union, UnionType):
        return [model for inner in typing.get_args(annotation) for model in models_of(inner)]
    return []


def holds_names(annotation: Any) -> bool:
    """Whether a field's own keys are names that the user chooses."""
    return typing.get_origin(annotation) is dict


def kind_of(model: type[BaseModel]) -> str | None:
    """The value of `kind` that chooses this model in a union."""
    info = model.model_fields.get("kind")
    return typing.get_args(info.annotation)[0] if info is not None else None


def _under(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key
