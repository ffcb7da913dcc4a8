"""Validation errors in the words of the job file: what is wrong, what was expected, the remedy."""

from __future__ import annotations

import datetime
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from slipstream.config.job import JobConfig
from slipstream.config.known_keys import (
    ANY_NAME,
    holds_names,
    kind_of,
    meant_by,
    models_of,
    nearest,
    unknown_key,
)
from slipstream.config.yaml_text import MAX_SHOWN, KeyPath, dotted_key

Models = list[type[BaseModel]]
WRONG_NAME = "[key]"  # pydantic's word for a key that is wrong itself
# Of keys whose default says little, or that have none.
EXAMPLES = {
    "name": "first-run",
    "mode": "buffered",
    "model": "{path: ./base_model}",
    "model.path": "./base_model",
    "data": "{train: {kind: jsonl, path: train.jsonl}}",
    "data.train": "{kind: jsonl, path: train.jsonl}",
    "data.eval": "{kind: jsonl, path: heldout.jsonl}",
    "data.eval_sets": "{hard: {kind: jsonl, path: hard.jsonl}}",
    "data.eval_sets.*": "{kind: jsonl, path: hard.jsonl}",
    "data.train.path": "train.jsonl",
    "data.train.name": "owner/dataset",
    "data.train.task": "chain_sum",
    "data.train.size": "10000",
    "reward": "{kind: exact_match}",
    "reward.path": "my_reward:score",
    "learner": "{num_steps: 200, groups_per_batch: 16}",
    "learner.num_steps": "200",
    "learner.groups_per_batch": "16",
    "rollout": "{group_size: 8}",
    "replay": "{max_staleness: 1}",
    "algorithm": "{advantage: {kind: grpo}}",
}
UNITS = {"s": "seconds", "minutes": "minutes", "mib": "MiB", "gib": "GiB"}
# A pattern in words, by the key that has it.
FORMS = {
    "name": "use letters, digits, '.', '_' and '-', at most 64, a letter or digit first",
    "data.eval_sets.*": "use letters, digits, '.', '_' and '-', at most 32, a letter or digit "
    "first",
    "reward.path": "expected package.module:function, as in my_reward:score for score() in "
    "my_reward.py",
}


def explain(error: ValidationError) -> Iterator[tuple[KeyPath, str]]:
    """(path of keys, message) of every error. What is missing only because its key is misspelt
    is told once."""
    found = [(detail, *_resolve(detail["loc"])) for detail in error.errors(include_url=False)]
    misspelt = {
        meant[0]
        for detail, path, models in found
        if detail["type"] == "extra_forbidden" and (meant := meant_by(path, models))
    }
    for detail, path, models in found:
        if detail["type"] != "missing" or dotted_key(path) not in misspelt:
            yield path, _message(detail, path, models)


def _resolve(location: tuple[int | str, ...]) -> tuple[KeyPath, Models]:
    """The keys as written, without union tags, and the models that the last name belongs to."""
    path: list[str | int] = []
    models: Models = [JobConfig]
    inside = list(models)  # models whose keys come next
    is_name = False  # and what comes next is a name that the user has chosen
    for part in location:
        tagged = [model for model in inside if len(inside) > 1 and kind_of(model) == part]
        if part == WRONG_NAME:
            break
        if tagged and not is_name:
            inside = tagged
            continue
        path.append(part)
        if isinstance(part, int) or is_name:
            is_name = False
            continue
        models = inside
        fields = [model.model_fields[part] for model in inside if part in model.model_fields]
        inside = [model for info in fields for model in models_of(info.annotation)]
        is_name = any(holds_names(info.annotation) for info in fields)
    return tuple(path), models


def _message(detail: Any, path: KeyPath, models: Models) -> str:
    context, value = detail.get("ctx", {}), detail["input"]
    kinds = _kinds(path, models)
    match detail["type"]:
        case "extra_forbidden":
            return unknown_key(path, models)
        case "missing":
            return f"is missing; {_wanted(path, models)}"
        case _ if value is None:
            remedy = "give it a value, or remove the key" if _has_default(path, models) else None
            return f"is empty; {remedy or _wanted(path, models)}{_example(path, models, remedy)}"
        case "union_tag_not_found":
            return f"needs a kind, one of {', '.join(kinds)}{_example(path, models)}"
        case "union_tag_invalid":
            return f"kind {_choice(str(context['tag']), kinds)}"
        case "literal_error":
            return _choice(value, _choices(path, models) or [str(context["expected"])])
        case "string_pattern_mismatch":
            form = _known(FORMS, path) or f"expected the form {context['pattern']}"
            return f"{_shown(value)} cannot be taken; {form}"
        case "model_type" | "model_attributes_type" | "dict_type":
            remedy = _as_section(value, path, models)
            return f"expected a section with keys, not {_shown(value)}{remedy}"
        case "value_error":
            return str(context.get("error", detail["msg"]))
        case "string_type" if not isinstance(value, dict | list):
            return f"expected text, not {_shown(value)}; put it in quotes"
        case error_type:
            expected = _expected(error_type, context, unit=_unit(path))
            return f"expected {expected}, not {_shown(value)}{_example(path, models)}"


def _choice(value: Any, choices: list[str]) -> str:
    near = nearest(str(value), choices)
    hint = f", did you mean {near!r}?" if near else ""
    return f"{_shown(value)} is not one of {', '.join(choices)}{hint}"


def _as_section(value: Any, path: KeyPath, models: Models) -> str:
    if value in _kinds(path, models):
        return f"; write {path[-1]}: {{kind: {value}}}"
    if isinstance(value, str) and re.match(r"\w+:\S", value):
        return "; put a space behind each colon"
    return _example(path, models)


def _expected(error_type: str, context: Mapping[str, Any], *, unit: str) -> str:
    match error_type.removesuffix("_type").removesuffix("_parsing").removesuffix("_parsing_size"):
        case "int" | "int_from_float":
            return f"a whole number{unit}"
        case "float":
            return f"a number{unit}"
        case "finite_number":
            return "a finite number"
        case "bool":
            return "true or false"
        case "string":
            return "text"
        case "path":
            return "a path"
        case "greater_than_equal":
            return f"{context['ge']:g} or more"
        case "greater_than":
            return f"more than {context['gt']:g}"
        case "less_than_equal":
            return f"{context['le']:g} or less"
        case "less_than":
            return f"less than {context['lt']:g}"
        case "too_long" | "too_short":
            return f"a list of {context.get('max_length', context.get('min_length'))} values"
        case "tuple" | "list":
            return "a list"
        case _:
            return "another value"


def _unit(path: KeyPath) -> str:
    """Which every key names at its end."""
    word = str(path[-1]).rpartition("_")[2]
    return f" of {UNITS[word]}" if word in UNITS else ""


def _shown(value: Any) -> str:
    """A value as it stands in a file, at a length that a line can hold."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, datetime.date):
        return f"the date {value.isoformat()}"
    shown = repr(value)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[: MAX_SHOWN - 3]}..."


# --- what a key takes -------------------------------------------------------------------


def _wanted(path: KeyPath, models: Models) -> str:
    """What has to be written, with an example."""
    fields = _fields(path, models)
    below = [model for info in fields for model in models_of(info.annotation)]
    if isinstance(path[-1], int):
        wanted = f"expected {len(typing.get_args(fields[0].annotation))} values"
    elif len(below) > 1:
        wanted = f"expected a section with a kind, one of {', '.join(_kinds(path, models))}"
    elif below:
        keys = [name for name, info in below[0].model_fields.items() if info.is_required()]
        wanted = f"expected a section with at least {', '.join(keys)}"
    else:
        name = getattr(fields[0].annotation, "__name__", "") if fields else ""
        words = {"str": "text", "int": "a whole number", "float": "a number", "Path": "a path"}
        choices = ", ".join(_choices(path, models))
        wanted = (
            f"expected one of {choices}" if choices else f"expected {words.get(name, 'a value')}"
        )
    return wanted + _example(path, models)


def _example(path: KeyPath, models: Models, wanted: str | None = "") -> str:
    """The default, or a value that many jobs have; nothing where `wanted` is None."""
    fields, names = _fields(path, models), [key for key in path if isinstance(key, str)]
    if wanted is None or not fields:
        return ""
    if (default := _plain(fields[0].default)) is not None:
        return f"; the default is {default}"
    example = _known(EXAMPLES, tuple(names))
    for model in models_of(fields[0].annotation)[:1] if example is None else ():
        defaults = {name: _plain(info.default) for name, info in model.model_fields.items()}
        known = [f"{{{name}: {value}}}" for name, value in defaults.items() if value is not None]
        example = known[0] if known else None
    return f"; for example {names[-1]}: {example}" if example else ""


def _plain(default: Any) -> str | None:
    """A default as it would be written, if it is no section."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return str(list(default))
    return f"{default}" if isinstance(default, int | float | str | Path) else None


def _has_default(path: KeyPath, models: Models) -> bool:
    return any(not info.is_required() for info in _fields(path, models))


def _choices(path: KeyPath, models: Models) -> list[str]:
    arguments = [arg for info in _fields(path, models) for arg in typing.get_args(info.annotation)]
    return [str(arg) for arg in arguments if isinstance(arg, str | int)]


def _kinds(path: KeyPath, models: Models) -> list[str]:
    below = [model for info in _fields(path, models) for model in models_of(info.annotation)]
    return [kind for model in below if (kind := kind_of(model))]


def _fields(path: KeyPath, models: Models) -> list[FieldInfo]:
    """What the models say of the last name of `path` that is theirs, not the user's."""
    known = {name for model in models for name in model.model_fields}
    name = next((str(key) for key in reversed(path) if key in known), "")
    return [model.model_fields[name] for model in models if name in model.model_fields]


def _known(texts: Mapping[str, str], path: KeyPath) -> str | None:
    """By the dotted key, or by the section whose keys the user names."""
    return texts.get(dotted_key(path)) or texts.get(f"{dotted_key(path[:-1])}.{ANY_NAME}")
