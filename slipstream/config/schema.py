"""The JSON schema of a job file, for editors: what every key takes, with the words beside it.

A file that the schema takes may still be refused: what does not go together is in `cross_check`.
"""

from __future__ import annotations

import ast
import inspect
import tokenize
from collections.abc import Iterator, Mapping
from functools import cache
from io import StringIO
from types import ModuleType
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from slipstream.config import algorithm, job
from slipstream.config.job import JobConfig
from slipstream.config.presets import PRESETS, USUAL_KINDS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _Generator(GenerateJsonSchema):
    """Without titles, which repeat the keys in other letters."""

    def field_title_should_be_set(self, _schema: Any) -> bool:
        return False


def job_schema() -> dict[str, Any]:
    schema = JobConfig.model_json_schema(schema_generator=_Generator)
    definitions = schema["$defs"]
    for name, section in {**definitions, JobConfig.__name__: schema}.items():
        section.pop("title", None)
        for key, node in section.get("properties", {}).items():
            if comment := _comment(name, key):
                node["description"] = comment
            if isinstance(node.get("default"), dict):
                del node["default"]  # of a section, whose keys say theirs
    for preset in PRESETS.values():
        for path in _paths(preset):
            if all(_holds(other, path) for other in PRESETS.values()):
                _make_optional(schema, definitions, path)
    _name_kinds(schema, definitions)
    return {"$schema": DIALECT, "title": "A job of Slipstream", **schema}


# --- what presets and usual kinds supply ------------------------------------------------


def _paths(node: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from _paths(value, (*above, key))


def _holds(preset: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    return path in set(_paths(preset))


def _make_optional(
    schema: dict[str, Any], definitions: Mapping[str, Any], path: tuple[str, ...]
) -> None:
    section = schema
    for key in path[:-1]:
        section = definitions[_name(section["properties"][key])]
    if path[-1] in section.get("required", []):
        section["required"].remove(path[-1])
    if section.get("required") == []:
        del section["required"]


def _name_kinds(schema: dict[str, Any], definitions: Mapping[str, Any]) -> None:
    """Of sections that come in several kinds, only the usual one need not name its own."""
    usual = {kinds["kind"] for section in USUAL_KINDS.values() for kinds in section.values()}
    for section in definitions.values():
        kind = section.get("properties", {}).get("kind", {})
        required = section.get("required", [])
        if "const" in kind and kind["const"] not in usual and "kind" not in required:
            section["required"] = ["kind", *required]


def _name(node: Mapping[str, Any]) -> str:
    return str(node["$ref"]).rpartition("/")[2]


# --- the comments beside the fields -----------------------------------------------------


def _comment(section: str, key: str) -> str | None:
    """The comment above a field, behind it, or both; it may stand in a base of its class."""
    kind = getattr(job, section, None) or getattr(algorithm, section)
    for base in kind.__mro__:
        for module in (job, algorithm):
            if base.__module__ == module.__name__ and key in base.__annotations__:
                return _comments_of(module)[base.__name__].get(key)
    return None


@cache
def _comments_of(module: ModuleType) -> dict[str, dict[str, str]]:
    source = inspect.getsource(module)
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    return {
        node.name: {
            field.target.id: words
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if (words := _beside(field, lines, comments))
        }
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }


def _beside(field: ast.AnnAssign, lines: list[str], comments: Mapping[int, str]) -> str:
    first = field.lineno
    while first - 1 in comments and lines[first - 2].lstrip().startswith("#"):
        first -= 1
    numbers = range(first, (field.end_lineno or field.lineno) + 1)
    return " ".join(comments[number] for number in numbers if number in comments)
