"""Reads a job file: YAML and overrides to a `JobConfig`, or every problem at once.

Paths in the file (`model.path`, `model.tokenizer`, `model.chat_template`, `data.*.path` and a
local `data.*.name`) are relative to the file's own directory; `checkpoint.dir` is relative to
the current directory.
"""

from __future__ import annotations

import copy
import os
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from slipstream.config.cross_check import cross_check
from slipstream.config.explain import explain
from slipstream.config.job import JobConfig
from slipstream.config.presets import apply_preset
from slipstream.config.yaml_text import KeyPath, Places, dotted_key, parse, parse_value, read_text
from slipstream.errors import JobFileError, Problem
from slipstream.secrets import is_secret_name, looks_secret, redact, secret_values

MIN_KNOWN_SECRET = 12  # characters; a shorter one may be a word of the file by chance


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFile:
    """A job file as read, sound or not."""

    job: JobConfig | None  # None where there are problems
    sections: Mapping[str, Any]  # what could be validated by itself, without its wrong keys
    problems: list[Problem]
    places: Places

    def problem(self, key: str, message: str) -> Problem:
        """With the place where `key` was written."""
        where = self.places.of(tuple(key.split(".")))
        return Problem(where=where, key=key, message=redact(message))


def load_job(path: Path, overrides: list[str] | None = None) -> JobConfig:
    """The validated job. Raises JobFileError with all that is wrong."""
    file = read_job_file(path, overrides)
    if file.job is None:
        raise JobFileError(file.problems)
    return file.job


def read_job_file(path: Path, overrides: list[str] | None = None) -> JobFile:
    """Everything that the file and the overrides tell. Raises JobFileError for bad YAML."""
    places = Places(str(path))
    raw, problems = parse(read_text(path), places)
    problems += [found for text in overrides or [] if (found := _override(raw, text, places))]
    secrets = dict(_secrets(raw, ()))
    _anchor_paths(raw, path.parent)
    whole = apply_preset(raw)
    try:
        job = JobConfig.model_validate(whole)
        wrong = dict(secrets)
        sections = {name: getattr(job, name) for name in JobConfig.model_fields}
        findings = cross_check(job)
    except ValidationError as error:
        wrong = {**dict(explain(error)), **secrets}
        sections = _sound_sections(whole, list(wrong))
        findings = _certain_findings(sections, wrong)
    file = JobFile(job=None, sections=sections, problems=problems, places=places)
    problems += [file.problem(dotted_key(key_path), message) for key_path, message in wrong.items()]
    problems += [file.problem(key, message) for key, message in findings]
    return file if problems else replace(file, job=job)


def _certain_findings(
    sections: Mapping[str, Any], wrong: Mapping[KeyPath, str]
) -> list[tuple[str, str]]:
    """What is found in the sound sections, whatever the wrong keys were meant to be."""
    try:
        job = JobConfig.model_validate(sections)
    except ValidationError:
        return []  # a section that has no default is missing or wrong
    unsure = {str(path[0]) for path in wrong}
    return [
        (key, message)
        for key, message in cross_check(job)
        if not any(f"{name}." in f"{key}. {message}" for name in unsure)
    ]


def _secrets(node: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Texts that are to be kept out of a file whose content is written to many places."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _secrets(value, (*path, key))
    elif isinstance(node, str) and path:
        known = [
            name
            for value, name in secret_values(os.environ).items()
            if len(value) >= MIN_KNOWN_SECRET and value in node
        ]
        named = is_secret_name(str(path[-1])) and node
        if known or named or looks_secret(node):
            yield (
                path,
                f"holds the value of the environment variable {known[0]}; take it out: what needs "
                "it reads the environment itself"
                if known
                else "looks like a secret, and a job file is copied into the run's directory and "
                "every commit; take it out, and set it in the environment, as HF_TOKEN is",
            )


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


def _override(raw: dict[str, Any], text: str, places: Places) -> Problem | None:
    """Lay `key.key=value` over `raw`; the value is YAML."""
    dotted, equals, value = text.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        message = "expected key=value, as in learner.learning_rate=2e-4"
        return Problem(f"command line: {redact(text)}", "", message)
    where = f"command line: {redact(text)}"
    try:
        parsed = parse_value(value)
    except ValueError as error:
        return Problem(where, dotted, f"the value is not valid YAML: {error}")
    section: Any = raw
    for depth, key in enumerate(keys[:-1], start=1):
        if section.get(key) is None:
            section[key] = {}
            places.lines.setdefault(tuple(keys[:depth]), where)
        section = section[key]
        if not isinstance(section, dict):
            message = f"{'.'.join(keys[:depth])} is a value in the file and has no keys"
            return Problem(where, dotted, message)
    section[keys[-1]] = parsed
    places.override(tuple(keys), text)
    return None


def _anchor_paths(raw: dict[str, Any], directory: Path) -> None:
    """Make relative paths of the file start at the file's directory."""
    for section, key, may_be_name in paths_in(raw):
        if not may_be_name or (directory / section[key]).exists():
            section[key] = str((directory / section[key]).resolve())


def paths_in(raw: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str, bool]]:
    """Every (section, key) of a job file that holds a path, and whether what is not there may be a
    name on the Hugging Face hub."""
    data = raw.get("data")
    sources = list(data.values()) if isinstance(data, dict) else []
    if isinstance(data, dict) and isinstance(sets := data.get("eval_sets"), dict):
        sources += sets.values()
    model_keys = {"path": True, "tokenizer": True, "chat_template": False}
    for section, keys in [
        (raw.get("model"), model_keys),
        *((source, {"path": False, "name": True}) for source in sources),
    ]:
        for key, may_be_name in keys.items() if isinstance(section, dict) else ():
            if isinstance(section.get(key), str):
                yield section, key, may_be_name
