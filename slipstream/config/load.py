"""Reads a job file: YAML and overrides to a `JobConfig`, or every problem at once.

Paths in the file (`model.path`, `model.tokenizer`, `model.chat_template`, `data.*.path` and a
local `data.*.name`) are relative to the file's own directory; `checkpoint.dir` is relative to
the current directory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError

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


def load_job(path: Path, overrides: list[str] | None = None) -> JobConfig:
    """The validated job. Raises JobFileError with all that is wrong."""
    places = _Places(str(path))
    raw = _read(path, places)
    problems = [
        problem for text in overrides or [] if (problem := _override(raw, text, places)) is not None
    ]
    if problems:
        raise JobFileError(problems)
    _anchor_paths(raw, path.parent)
    try:
        job = JobConfig.model_validate(apply_preset(raw))
    except ValidationError as error:
        raise JobFileError(
            [
                Problem(where=places.of(key_path), key=_dotted(key_path), message=message)
                for key_path, message in explain(error, raw)
            ]
        ) from None
    problems = [
        Problem(where=places.of(tuple(key.split("."))), key=key, message=message)
        for key, message in cross_check(job)
    ]
    if problems:
        raise JobFileError(problems)
    return job


def _read(path: Path, places: _Places) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise JobFileError([Problem(str(path), "", f"cannot be read: {error.strerror}")]) from None
    try:
        loaded = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        raise JobFileError([_syntax_problem(path, error)]) from None
    if not isinstance(loaded, CommentedMap):
        message = "expected a mapping with the sections name, mode, model, data, ..."
        raise JobFileError([Problem(f"{path}:1", "", message)])
    return _plain(loaded, (), places)  # type: ignore[no-any-return]


def _syntax_problem(path: Path, error: MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    said = (error.problem or "not valid YAML").split("\n")[0]
    return Problem(where, "", f"not valid YAML: {said}")


def _plain(node: Any, path: KeyPath, places: _Places) -> Any:
    """Builtin containers, with the place of every key noted."""
    if isinstance(node, CommentedMap):
        for key in node:
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
    except MarkedYAMLError as error:
        return Problem("command line", dotted, f"{value!r} is not valid YAML: {error.problem}")
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
    for source in data.values() if isinstance(data, dict) else ():
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
