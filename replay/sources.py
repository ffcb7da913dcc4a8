"""Opens the data that a job file names. An item is one row, a mapping of JSON-able values.

Libraries that are slow to import are imported where they are used.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

from slipstream.config.job import (
    DataSource,
    HubSource,
    JsonlSource,
    ParquetSource,
    ReasoningGymSource,
)
from slipstream.errors import SlipstreamError


class DataError(SlipstreamError):
    """The data cannot be used as they are; `str()` says where and what to do."""


class Items(Protocol):
    """The rows of a data set, by index from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


def open_source(source: DataSource) -> Items:
    """The items of `source`; at least one. Raises DataError."""
    match source:
        case JsonlSource():
            items = _open_jsonl(source.path)
        case ParquetSource():
            items = _open_parquet(source.path)
        case HubSource():
            items = _open_hub(source)
        case ReasoningGymSource():
            items = _open_reasoning_gym(source)
    if len(items) == 0:
        raise DataError(f"{describe(source)} has no items")
    return items


def describe(source: DataSource) -> str:
    """The source in words, for messages."""
    match source:
        case JsonlSource() | ParquetSource():
            return f"the data of {source.path}"
        case HubSource():
            return f"the split {source.split!r} of the data set {source.name}"
        case ReasoningGymSource():
            return f"the reasoning-gym task {source.task}"


def _open_jsonl(path: Path) -> Items:
    """One JSON object a line, as UTF-8."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return [_parse_line(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _parse_line(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        item = json.loads(line.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8; convert the file") from error
    except ValueError as error:
        hint = "an empty line; remove it" if not line.strip() else f"not JSON ({error})"
        raise DataError(f"{where}: {hint}") from error
    if not isinstance(item, dict):
        raise DataError(f'{where}: expected an object like {{"prompt": "..."}}, found {item!r:.80}')
    return item


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _open_parquet(path: Path) -> Items:
    """A file, or a directory of files in order of their names."""
    import datasets

    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError(f"{path}: no Parquet file is there; check the path")
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset("parquet", data_files=[str(f) for f in files], split="train")
    except Exception as error:  # the library and pyarrow raise many kinds
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error
    return cast("Items", rows)


def _open_hub(source: HubSource) -> Items:
    """A data set of the hub, a directory laid out like one, or one saved by `save_to_disk`."""
    import datasets

    datasets.disable_progress_bars()
    directory = Path(source.name)
    try:
        if (directory / "dataset_dict.json").is_file():
            rows = datasets.load_from_disk(source.name)[source.split]
        elif (directory / "state.json").is_file():
            rows = datasets.load_from_disk(source.name)
        else:
            rows = datasets.load_dataset(
                source.name, source.config, split=source.split, revision=source.revision
            )
    except Exception as error:  # the library raises many kinds: network, split, config, files
        raise DataError(
            f"cannot open {describe(source)}: {error}; check name, config, split and revision, "
            "or name a local directory"
        ) from error
    return cast("Items", rows)


def _open_reasoning_gym(source: ReasoningGymSource) -> Items:
    """Items are made when asked for, each from seed and index alone, and carry all metadata,
    as the task's verifier needs them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of a library that it imports
        import reasoning_gym

    try:
        task = reasoning_gym.create_dataset(
            source.task, size=source.size, seed=source.seed, **source.params
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise DataError(
            f"{describe(source)}: {error}; check data.*.task and data.*.params"
        ) from error
    return cast("Items", task)
