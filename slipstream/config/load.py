"""Reads a job file: YAML and overrides to a `JobConfig`, or every problem at once.

Paths in the file (`model.path`, `model.tokenizer`, `model.chat_template`, `data.*.path` and a
local `data.*.name`) are relative to the file's own directory; `checkpoint.dir` is relative to
the current directory.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from slipstream.config.cross_check import cross_check
from slipstream.config.explain import KeyPath, explain
from slipstream.config.job import JobConfig
from slipstream.config.presets import apply_preset
from slipstream.errors import JobFileError, Problem


@dataclass(slots=True)
class _Places:
    """Where each key was written."""

    file: str
    lines: dict[KeyPath, str] = field(default_factory=dict)

    def of(self, path: KeyPath) -> str:
        """The place of `path`, or of the nearest section above it that was written."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, f"{self.file}:1")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFile:
    """A job file as read, sound or not."""

    job: JobConfig | None  # None where there are problems
    sections: Mapping[str, Any]  # what could be validated by itself, without its wrong keys
    problems: list[Problem]
    places: _Places

    def problem(self, key: str, message: str) -> Problem:
        """With the place where `key` was written."""
        return Problem(where=self.places.of(tuple(key.split("."))), key=key, message=message)


def load_job(path: Path, overrides: list[str] | None = None) -> JobConfig:
    """The validated job. Raises JobFileError with all that is wrong."""
    file = read_job_file(path, overrides)
    if file.job is None:
        raise JobFileError(file.problems)
    return file.job


def read_job_file(path: Path, overrides: list[str] | None = None) -> JobFile:
    """Everything that the file and the overrides tell. Raises JobFileError for bad YAML."""
    places = _Places(str(path))
    raw = _read(path, places)
    problems = [
        problem for text in overrides or [] if (problem := _override(raw, text, places)) is not None
    ]
    if problems:
        raise JobFileError(problems)
    _anchor_paths(raw, path.parent)
    whole = apply_preset(raw)
    try:
        job = JobConfig.model_validate(whole)
    except ValidationError as error:
        found = list(explain(error, raw))
        sections = _sound_sections(whole, [key_path for key_path, _ in found])
        file = JobFile(job=None, sections=sections, problems=problems, places=places)
        problems += [file.problem(_dotted(key_path), message) for key_path, message in found]
        return file
    sections = {name: getattr(job, name) for name in JobConfig.model_fields}
    file = JobFile(job=job, sections=sections, problems=problems, places=places)
    problems += [file.problem(key, message) for key, message in cross_check(job)]
    return replace(file, job=None) if problems else file


def _sound_sections(raw: Mapping[str, Any], wrong: list[KeyPath]) -> dict[str, Any]:
    """The sections that are valid once the wrong keys are left out."""
    pruned = copy.deepcopy(dict(raw))
    for key_path in wrong:
        section: Any = pruned
        for key in key_path[:-1]:
            section = section.get(key, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict):
            section.pop(key_path[-1], None)
    sections: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(JobConfig, include_extras=True).items():
        if name in pruned:
            with suppress(ValidationError):
                sections[name] = TypeAdapter(hint).validate_python(pruned[name])
    return sections


def _read(path: Path, places: _Places) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise JobFileError([Problem(str(path), "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
        raise JobFileError([Problem(str(path), "", message)]) from None
    try:
        loaded = YAML(typ="rt").load(text)
    except YAMLError as error:
        raise JobFileError([_syntax_problem(path, error)]) from None
    if not isinstance(loaded, CommentedMap):
        message = "expected a mapping with the sections name, mode, model, data, ..."
        raise JobFileError([Problem(f"{path}:1", "", message)])
    return _plain(loaded, (), places)  # type: ignore[no-any-return]


def _syntax_problem(path: Path, error: YAMLError) -> Problem:
    where, said = str(path), str(error)
    if isinstance(error, MarkedYAMLError):
        if mark := error.problem_mark or error.context_mark:
            where = f"{path}:{mark.line + 1}:{mark.column + 1}"
        said = error.problem or said
    return Problem(where, "", f"not valid YAML: {said.strip().splitlines()[0]}")


def _plain(node: Any, path: KeyPath, places: _Places) -> Any:
    """Builtin containers, with the place of every key noted."""
    if isinstance(node, CommentedMap):
        for key in node:
            with suppress(KeyError, TypeError):  # a merged key (<<) is written elsewhere
                line, column = node.lc.key(key)
                places.lines[(*path, key)] = f"{places.file}:{line + 1}:{column + 1}"
        return {key: _plain(value, (*path, key), places) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        return [_plain(value, (*path, index), places) for index, value in enumerate(node)]
    return node


def _override(raw: dict[str, Any], text: str, places: _Places) -> Problem | None:
    """Lay `key.key=value` over `raw`; the value is YAML."""
    dotted, equals, value = text.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        message = "expected key=value, as in learner.learning_rate=2e-4"
        return Problem("command line", text, message)
    section: Any = raw
    for depth, key in enumerate(keys[:-1], start=1):
        section = section.setdefault(key, {})
        places.lines.setdefault(tuple(keys[:depth]), f"command line: {text}")
        if not isinstance(section, dict):
            message = f"{'.'.join(keys[:depth])} is a value and has no keys"
            return Problem("command line", dotted, message)
    try:
        section[keys[-1]] = YAML(typ="safe").load(value)
    except YAMLError as error:
        said = getattr(error, "problem", None) or str(error).strip().splitlines()[0]
        return Problem("command line", dotted, f"{value!r} is not valid YAML: {said}")
    places.lines[tuple(keys)] = f"command line: {text}"
    return None


def _anchor_paths(raw: dict[str, Any], directory: Path) -> None:
    """Make relative paths of the file start at the file's directory."""
    model = raw.get("model")
    if isinstance(model, dict):
        _anchor_if_there(model, "path", directory)
        _anchor_if_there(model, "tokenizer", directory)
        _anchor(model, "chat_template", directory)
    data = raw.get("data")
    sources = list(data.values()) if isinstance(data, dict) else []
    if isinstance(data, dict) and isinstance(sets := data.get("eval_sets"), dict):
        sources += sets.values()
    for source in sources:
        if isinstance(source, dict):
            _anchor(source, "path", directory)
            _anchor_if_there(source, "name", directory)


def _anchor(section: dict[str, Any], key: str, directory: Path) -> None:
    value = section.get(key)
    if isinstance(value, str):
        section[key] = str((directory / value).resolve())


def _anchor_if_there(section: dict[str, Any], key: str, directory: Path) -> None:
    """What is not there may be a name on the Hugging Face hub."""
    value = section.get(key)
    if isinstance(value, str) and (directory / value).exists():
        section[key] = str((directory / value).resolve())


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))
