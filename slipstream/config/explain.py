"""Validation errors in the words of the job file: what is wrong, what was expected."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from slipstream.config.job import JobConfig

KeyPath = tuple[str | int, ...]


def explain(error: ValidationError, raw: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """(path of keys, message) of every error; `raw` is what the user wrote."""
    for detail in error.errors(include_url=False):
        path, models = _resolve(detail["loc"])
        yield path, _message(detail, path, models)


def _resolve(location: tuple[int | str, ...]) -> tuple[KeyPath, list[type[BaseModel]]]:
    """The keys as written, without union tags, and the models that the last key belongs to."""
    path: list[str | int] = []
    models: list[type[BaseModel]] = [JobConfig]
    inside = list(models)  # models whose keys come next
    for part in location:
        tagged = [model for model in inside if len(inside) > 1 and _kind(model) == part]
        if tagged:
            inside = tagged
            continue
        models = inside
        path.append(part)
        fields = [model.model_fields[str(part)] for model in inside if part in model.model_fields]
        if fields:
            inside = [model for info in fields for model in _models(info.annotation)]
    return tuple(path), models


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field can hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated or origin in (typing.Union, UnionType):
        return [model for inner in typing.get_args(annotation) for model in _models(inner)]
    return []


def _kind(model: type[BaseModel]) -> str | None:
    """The value of `kind` that chooses this model in a union."""
    info = model.model_fields.get("kind")
    return typing.get_args(info.annotation)[0] if info is not None else None


def _message(detail: Any, path: KeyPath, models: list[type[BaseModel]]) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(str(path[-1]), models)
        case "missing":
            return f"is missing; {_expected(path, models)}"
        case "union_tag_not_found":
            return (
                f"needs a kind, one of {context.get('expected_tags', _kinds_below(path, models))}"
            )
        case "union_tag_invalid":
            return f"kind {context['tag']!r} is not one of {context['expected_tags']}"
        case "literal_error":
            expected = str(context["expected"])
            near = _nearest(str(detail["input"]), expected.split("'")[1::2])
            return f"{detail['input']!r} is not one of {expected}{near}"
        case "string_pattern_mismatch":
            return f"{detail['input']!r} does not have the form {context['pattern']}"
        case "model_type" | "model_attributes_type":
            return f"expected a section with keys, not {detail['input']!r}"
        case "value_error":
            return str(context.get("error", detail["msg"]))
        case _:
            said = str(detail["msg"]).replace("Input should be", "expected").split(",")[0]
            return f"{said}, not {detail['input']!r}"


def _unknown_key(key: str, models: list[type[BaseModel]]) -> str:
    known = sorted({name for model in models for name in model.model_fields})
    return f"unknown key{_nearest(key, known)}; known here: {', '.join(known)}"


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def _expected(path: KeyPath, models: list[type[BaseModel]]) -> str:
    fields = _fields(path, models)
    if not fields:
        return "it is required here"
    below = _models(fields[0].annotation)
    if below:
        keys = [name for name, info in below[0].model_fields.items() if info.is_required()]
        return f"expected a section with at least {', '.join(keys) or 'its own keys'}"
    name = getattr(fields[0].annotation, "__name__", str(fields[0].annotation))
    words = {"str": "text", "int": "a whole number", "float": "a number", "Path": "a path"}
    return f"expected {words.get(name, name.replace('typing.', ''))}"


def _kinds_below(path: KeyPath, models: list[type[BaseModel]]) -> str:
    below = [model for info in _fields(path, models) for model in _models(info.annotation)]
    return ", ".join(repr(kind) for model in below if (kind := _kind(model)))


def _fields(path: KeyPath, models: list[type[BaseModel]]) -> list[FieldInfo]:
    """What the models say of the last key."""
    name = str(path[-1])
    return [model.model_fields[name] for model in models if name in model.model_fields]
