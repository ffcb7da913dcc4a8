"""YAML text to plain values, with the place of every key, or all that is wrong with it in words.

YAML 1.2: `off` and `yes` are texts, 1e-4 is a number. Nothing but plain values is ever made: a tag
such as `!!python/object` is refused before anything is built of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from slipstream.errors import JobFileError, Problem
from slipstream.secrets import redact

KeyPath = tuple[str | int, ...]
MAX_SHOWN = 60  # characters of a wrong value
MAX_VALUES = 100_000  # with every alias counted as often as it is used
NO_JOB = (
    "expected a job: `name: first`, `mode: buffered`, `model: {path: ...}` and so on; start from "
    "one of the files in examples/"
)
_PLAIN_TAG = re.compile(
    r"tag:yaml\.org,2002:(?:map|seq|str|int|float|bool|null|timestamp|merge|value|omap)"
)
# What the parser says, in words for who wrote the file.
_IN_WORDS = (
    (r"found character '\\t'.*", "a tab; indent with spaces"),
    (
        r"found character (.+) that cannot start any token",
        r"a value cannot begin with \1; put it in quotes",
    ),
    (
        r"mapping values are not allowed here",
        "a colon where no key can be: indent this key like those beside it, end the line before it "
        "with a colon, or put a value that holds ': ' in quotes",
    ),
    (r"could not find expected ':'", "a key without a colon behind it; write key: value"),
    (
        r"expected <block end>, but found .*",
        "this line is indented otherwise than those beside it; keys of one section begin in one "
        "column",
    ),
    (r"expected '<document start>', but found .*", "this line is indented less than the first"),
    (r"found unexpected end of stream", "the quote that opens here is never closed"),
    (
        r"expected ',' or '([\]}])', but got .*",
        r"the bracket that opens here is not closed with \1",
    ),
    (r"expected the node content, but found (.+)", r"\1 without anything that it could close"),
    (r"found undefined alias '(.+)'", r"*\1 refers to nothing; write &\1 before a value first"),
    (
        r"but found another document",
        "a second job begins here (---); one file is one job, so make two files of it",
    ),
    (
        r"found unknown escape character '(.+)'",
        r"\\\1 means nothing in double quotes; use single quotes",
    ),
    (
        r"sequence entries are not allowed here",
        "a list cannot begin behind a key; put its first '-' on the next line, or write [a, b]",
    ),
    (
        r"expected a mapping or list of mappings for merging.*",
        "<< takes the keys of another section; write <<: *name, with &name before that section",
    ),
)
# These are told where they begin; the parser notices at their end.
_AT_ITS_BEGIN = ("that opens here", "a key without a colon")


@dataclass(slots=True)
class Places:
    """Where each key was written."""

    file: str
    lines: dict[KeyPath, str] = field(default_factory=dict)

    def of(self, path: KeyPath) -> str:
        """The place of `path`, or of the nearest section above it that was written."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, f"{self.file}:1:1")

    def override(self, path: KeyPath, text: str) -> None:
        """`path` and what is below it come from the command line."""
        for key in [key for key in self.lines if key[: len(path)] == path]:
            del self.lines[key]
        self.lines[path] = f"command line: {redact(text)}"

    def at(self, mark: Any) -> str:
        return f"{self.file}:{mark.line + 1}:{mark.column + 1}"


def read_text(path: Path) -> str:
    """Raises JobFileError."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        message = "does not exist; give the path of a job file"
        raise JobFileError([Problem(str(path), "", message)]) from None
    except OSError as error:
        message = f"cannot be read: {error.strerror}; give the path of a job file"
        raise JobFileError([Problem(str(path), "", message)]) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig", errors="replace")
        message = (
            f"is not UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x}; save the file as "
            "UTF-8"
        )
        raise JobFileError([Problem(_place_after(path, before), "", message)]) from None


def parse(text: str, places: Places) -> tuple[dict[str, Any], list[Problem]]:
    """The values, and what is wrong with keys that were written. Raises JobFileError where the
    text as a whole cannot be understood."""
    try:
        node = _yaml().compose(text)
        if not isinstance(node, MappingNode):
            at = places.at(node.start_mark) if node is not None else f"{places.file}:1:1"
            found = "the file is empty" if node is None else "this is no job"
            raise JobFileError([Problem(at, "", f"{found}; {NO_JOB}")])
        return _values(text, node, places)
    except ReaderError as error:
        message = f"not valid YAML: the character #x{error.character:02x}; remove it"
        at = _place_after(Path(places.file), text[: error.position])
        raise JobFileError([Problem(at, "", message)]) from None
    except RecursionError:
        message = "sections are nested too deeply; no job file needs that"
        raise JobFileError([Problem(f"{places.file}:1:1", "", message)]) from None
    except YAMLError as error:
        raise JobFileError([_syntax_problem(error, places)]) from None


def parse_value(text: str) -> Any:
    """One value of the command line. Raises ValueError that says why it is no YAML."""
    try:
        node = _yaml().compose(text)
        value, problems = (None, []) if node is None else _values(text, node, Places(""))
    except JobFileError as error:
        problems = error.problems
    except ReaderError as error:
        raise ValueError(f"it holds the character #x{error.character:02x}") from None
    except YAMLError as error:
        raise ValueError(_said(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if problems:
        raise ValueError(problems[0].message)
    return value


def _values(text: str, node: Node, places: Places) -> tuple[Any, list[Problem]]:
    """What `text`, read as `node`, stands for, and what is wrong with its keys. Raises JobFileError
    where that cannot be made."""
    _count(node, places, {}, ())
    problems = list(_walk(node, (), places))
    if any(problem.key == "" for problem in problems):
        raise JobFileError(problems)
    try:
        return _unshared(_yaml().load(text)), problems
    except (ValueError, LookupError):  # of Python, for a date or a number that is none
        raise JobFileError(list(_unreadable(node, places))) from None


def _unreadable(node: Node, places: Places) -> Iterator[Problem]:
    """Words that have the form of a date or a number, and are none."""
    if isinstance(node, ScalarNode):
        try:
            _yaml().constructor.construct_object(node)
        except (ValueError, LookupError):
            tag, value = str(node.tag).rpartition(":")[2], node.value
            shown = repr(value if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]}...")
            message = f"{shown} is no {tag} that there is; put it in quotes to make it a text"
            yield Problem(places.at(node.start_mark), "", message)
    else:
        for part in node.value:
            for inner in part if isinstance(part, tuple) else (part,):
                yield from _unreadable(inner, places)


def _yaml() -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True  # all of them are found at once, by `_walk`
    return yaml


def _unshared(value: Any) -> Any:
    """Each alias as containers of its own, so that what changes one changes no other."""
    if isinstance(value, dict):
        return {str(key): _unshared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item) for item in value]
    return value


def _place_after(path: Path, before: str) -> str:
    lines = before.split("\n")
    return f"{path}:{len(lines)}:{len(lines[-1]) + 1}"


def _walk(node: Node, path: KeyPath, places: Places) -> Iterator[Problem]:
    """Note the place of every key; what no key or value may be. A problem without a key is one
    that keeps the values from being made."""
    if not _PLAIN_TAG.fullmatch(str(node.tag)):
        tag = str(node.tag).replace("tag:yaml.org,2002:", "!!")
        yield Problem(
            places.at(node.start_mark), "", f"the tag {tag} means nothing here; remove it"
        )
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            places.lines[(*path, index)] = places.at(item.start_mark)
            yield from _walk(item, (*path, index), places)
    elif isinstance(node, MappingNode):
        yield from _walk_keys(node, path, places)


def _walk_keys(node: MappingNode, path: KeyPath, places: Places) -> Iterator[Problem]:
    first: dict[str, Any] = {}
    for key, value in node.value:
        at = places.at(key.start_mark)
        if not isinstance(key, ScalarNode):
            yield Problem(at, "", "a key is a word, not a list or a section; write key: value")
        elif str(key.tag).endswith(":merge"):
            continue
        elif key.value in first:
            message = f"is written twice, first in {_at(first[key.value])}; remove one of them"
            yield Problem(at, dotted_key((*path, key.value)), message)
        else:
            first[key.value] = key.start_mark
            places.lines[(*path, key.value)] = at
            yield from _walk(value, (*path, key.value), places)


def _count(node: Node, places: Places, known: dict[int, int], above: tuple[int, ...]) -> int:
    """How many values the text stands for. Raises JobFileError for too many, or without end."""
    if id(node) in above:
        message = "this section holds itself; an alias (*name) cannot stand inside what it names"
        raise JobFileError([Problem(places.at(node.start_mark), "", message)])
    if id(node) not in known:
        pairs = node.value if isinstance(node, MappingNode | SequenceNode) else ()
        parts = [part for pair in pairs for part in (pair if isinstance(pair, tuple) else (pair,))]
        inside = (*above, id(node))
        known[id(node)] = 1 + sum(_count(part, places, known, inside) for part in parts)
    if known[id(node)] > MAX_VALUES:
        message = f"its aliases (*name) stand for more than {MAX_VALUES} values; write fewer"
        raise JobFileError([Problem(places.at(node.start_mark), "", message)])
    return known[id(node)]


def _syntax_problem(error: YAMLError, places: Places) -> Problem:
    mark = None
    if isinstance(error, MarkedYAMLError):
        begins = any(words in _said(error) for words in _AT_ITS_BEGIN)
        mark = (begins and error.context_mark) or error.problem_mark or error.context_mark
    at = places.at(mark) if mark is not None else f"{places.file}:1:1"
    return Problem(at, "", f"not valid YAML: {_said(error)}")


def _said(error: YAMLError) -> str:
    said = getattr(error, "problem", None) or str(error).strip().splitlines()[0]
    for pattern, words in _IN_WORDS:
        if re.fullmatch(pattern, said):
            return re.sub(pattern, words, said)
    return str(said)


def dotted_key(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _at(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"
