"""Changes what lies on disk: every rank writes its files and a part, rank 0 makes one commit.

    every rank   .tmp-step-.../its files      fsynced
                 .tmp-step-.../part-....json  their checksums, fsynced
    rank 0       waits for every part
                 .tmp-step-.../commit.json    fsynced
                 renames the directory        from here on it can be found
                 points `latest` at it        from here on it is the one to go on from
                 removes older commits

Ranks share this directory and nothing else. Each operation is a fault point, before and after.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from learner.checkpoint import (
    FORMAT,
    LATEST,
    MANIFEST,
    SELF,
    Found,
    digest_of,
    name_of,
    reason_of,
    sha256_of,
    steps,
    version_of,
)
from slipstream.errors import SlipstreamError
from slipstream.faults import fault_point

Write = Callable[[Path], None]  # makes one file, or one directory of files, at a path
ASIDE, LEFT, CLAIM = ".tmp-", "aside-", ".timeline-"
POLL_EVERY_S = 0.05
_TIMELINE = re.compile(r"(?:\.timeline-|.*-t)(\d{4,})")


class WriteFailed(SlipstreamError):
    """An operation of a commit failed; says which file, and why."""


def claim_timeline(root: Path) -> int:
    """A number that no other timeline of this run has or had, 0 for a new run; before any commit.

    Raises SlipstreamError where `root` cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            timeline = 1 + max((_timeline_of(path) for path in root.iterdir()), default=-1)
            with suppress(FileExistsError):
                (root / f"{CLAIM}{timeline:04d}").touch(exist_ok=False)
                break
        for path in root.glob(f"{CLAIM}*"):
            if _timeline_of(path) < timeline:
                path.unlink(missing_ok=True)
        sync(root)
    except OSError as error:
        raise SlipstreamError(_cannot_write(root, error)) from None
    return timeline


def set_aside(found: Found) -> None:
    """Put what is damaged, and every commit of a future that was left, out of the way."""
    commit = found.required()
    left = [path for path in steps(found.root) if version_of(path) > commit.version]
    try:
        for path in {*found.damaged_paths, *left}:
            fault_point("resume.set_aside")
            path.rename(path.with_name(LEFT + path.name))
        point_at(found.root, commit.path.name)
        sync(found.root)
    except OSError as error:
        raise SlipstreamError(_cannot_write(found.root, error)) from None


def aside(root: Path, version: int, timeline: int) -> Path:
    """Where a commit is written before it is whole."""
    return root / f"{ASIDE}{name_of(version, timeline)}"


def clean(root: Path, keep: Path) -> None:
    """Remove what interrupted commits left, all but `keep`. Rank 0 calls it."""
    for path in root.glob(f"{ASIDE}*"):
        if path != keep:
            with _operation("clean", path):
                # A rank that is late with a failed commit may still write there.
                shutil.rmtree(path, ignore_errors=True)


def write_part(directory: Path, rank: int, files: Mapping[str, Write]) -> None:
    """Write `files`, named relative to `directory`, and the part that lists them.

    Once the part is there rank 0 may rename the directory: nothing is done in it after that.
    """
    for folder in sorted({directory, *((directory / name).parent for name in files)}):
        with _operation("mkdir", folder):
            folder.mkdir(parents=True, exist_ok=True)
    for name, write in files.items():
        with _operation("file", directory / name):
            write(directory / name)
    written = [path for name in files for path in _files(directory / name)]
    for path in [*written, *sorted({path.parent for path in written})]:
        _sync(path)
    part = {
        "sha256": {str(path.relative_to(directory)): sha256_of(path) for path in written},
        "bytes": {str(path.relative_to(directory)): path.stat().st_size for path in written},
    }
    _write_whole("part", directory / _part(rank), part)


def mark_failed(directory: Path, rank: int, reason: str) -> None:
    """Spare rank 0 the wait for a part that will not come."""
    with suppress(OSError):
        (directory / _failure(rank)).write_text(reason, encoding="utf-8")


def publish(
    root: Path,
    version: int,
    timeline: int,
    *,
    num_ranks: int,
    timeout_s: float,
    contents: Mapping[str, Any],
) -> Path:
    """Wait for the parts of every rank, then make one commit of them; returns its directory.

    `contents`: what else the manifest says.
    """
    directory, final = aside(root, version, timeline), root / name_of(version, timeline)
    parts = _parts(directory, num_ranks, timeout_s)
    manifest = {
        "format": FORMAT,
        "version": version,
        "timeline": timeline,
        **contents,
        "sha256": {name: sha for part in parts for name, sha in part["sha256"].items()},
        "bytes": {name: size for part in parts for name, size in part["bytes"].items()},
    }
    # As it will be read: JSON makes lists of tuples, and texts of numbers that are keys.
    manifest = json.loads(json.dumps(manifest))
    _write_whole("manifest", directory / MANIFEST, {**manifest, SELF: digest_of(manifest)})
    for folder in [directory, *(path for path in directory.rglob("*") if path.is_dir())]:
        _sync(folder)
    if any(_timeline_of(path) > timeline for path in root.glob(f"{CLAIM}*")):
        raise WriteFailed(f"{root} belongs to a later timeline; this learner was given up")
    with _operation("rename", final):
        directory.rename(final)
    _sync(root)
    with _operation("point", root / LATEST):
        point_at(root, final.name)
    return final


def prune(root: Path, keep_last: int, kept: Collection[Path] = ()) -> None:
    """Remove all but the newest commits and those `kept`. Each leaves by one rename, never file by
    file."""
    for path in steps(root)[keep_last:]:
        if path in kept:
            continue
        gone = root / f"{ASIDE}gone-{path.name}"
        with _operation("prune", path):
            path.rename(gone)
        with _operation("remove", path):
            shutil.rmtree(gone)


def point_at(root: Path, name: str) -> None:
    pointer = root / f".{LATEST}"
    pointer.unlink(missing_ok=True)  # whatever a link may lead to
    pointer.write_text(name + "\n", encoding="utf-8")
    sync(pointer)
    fault_point("commit.pointer")
    pointer.replace(root / LATEST)
    sync(root)


def save_groups(groups: Mapping[int, bytes], path: Path) -> None:
    arrays = {str(ordinal): np.frombuffer(data, np.uint8) for ordinal, data in groups.items()}
    np.savez(path, allow_pickle=False, **arrays)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    with _operation("fsync", path):
        sync(path)


def _parts(directory: Path, num_ranks: int, timeout_s: float) -> list[Mapping[str, Any]]:
    """What every rank has written."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        names = set(os.listdir(directory))  # noqa: PTH208 (never answered from a network's cache)
        for rank in range(num_ranks):
            if _failure(rank) in names:
                raise WriteFailed((directory / _failure(rank)).read_text(encoding="utf-8"))
        missing = [rank for rank in range(num_ranks) if _part(rank) not in names]
        if not missing:
            texts = [(directory / _part(rank)).read_text() for rank in range(num_ranks)]
            return [json.loads(text) for text in texts]
        if time.monotonic() > deadline_s:
            raise WriteFailed(
                f"{directory / _part(missing[0])} was not there after {timeout_s:.0f} s: rank "
                f"{missing[0]} is late, or does not see this directory"
            )
        time.sleep(POLL_EVERY_S)


def _write_whole(operation: str, path: Path, value: Mapping[str, Any]) -> None:
    """A JSON file that is there as a whole or not at all."""
    beside = path.with_name(f".{path.name}")
    with _operation(operation, path):
        beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        sync(beside)
        fault_point(f"commit.{operation}.written")
        beside.replace(path)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _part(rank: int) -> str:
    return f"part-{rank:05d}.json"


def _failure(rank: int) -> str:
    return f"failed-{rank:05d}"


def _timeline_of(path: Path) -> int:
    match = _TIMELINE.fullmatch(path.name)
    return int(match[1]) if match else -1


def _cannot_write(root: Path, error: OSError) -> str:
    return (
        f"{root} cannot be written: {error.strerror}. No commit could be kept there; set "
        "checkpoint.dir to a directory that can be written"
    )


@contextmanager
def _operation(name: str, path: Path) -> Iterator[None]:
    """One operation on the disk: a fault point on either side, and a failure names the file."""
    fault_point(f"commit.{name}")
    try:
        yield
    except Exception as error:
        raise WriteFailed(f"{path}: {reason_of(error)}") from error
    fault_point(f"commit.{name}.done")
