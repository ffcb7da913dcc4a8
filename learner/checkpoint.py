"""Commits on disk: their names, how the newest good one is found, and what one holds.

    checkpoints/
        step-00000050-t0001/    of version 50, made in timeline 1
            model/              Hugging Face format, for transformers and vLLM
            learner/            DeepSpeed state, random states of every rank
            replay.npz          replay's buffered groups, where there are any
            part-00000.json     what rank 0 wrote
            commit.json         version, timeline, format, job, replay, SHA-256 of every file
        latest                  the name of the newest commit, for people and tools
        best                    the best commit and why, as JSON (`best.py`)
        aside-step-...          damaged, or of a future that was left; never read again
        .tmp-...                being written or removed
        .timeline-0001          the newest one

A run that goes back to a commit, or is launched again from one, begins a timeline: a version that
is trained again never takes the place of the commit it replaces. This module reads, `commit_files`
writes; neither imports torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from slipstream.errors import SlipstreamError
from slipstream.records import ReplaySnapshot

FORMAT = 3
LATEST, MANIFEST, GROUPS = "latest", "commit.json", "replay.npz"
SELF = "manifest_sha256"  # of the manifest without it
_NAME = re.compile(r"step-(\d{8,})(?:-t(\d{4,}))?")


class Damaged(SlipstreamError):
    """A commit that does not verify."""


class OtherFormat(SlipstreamError):
    """A commit of an older or a newer Slipstream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A verified commit on disk."""

    path: Path
    version: int
    timeline: int
    job: Mapping[str, Any]  # as resolved, as JSON
    replay: ReplaySnapshot

    @property
    def learner_dir(self) -> Path:
        return self.path / "learner"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a run's directory holds to go on from."""

    root: Path
    commit: Commit | None
    damaged: tuple[str, ...]  # what was passed over, and why
    damaged_paths: tuple[Path, ...] = ()

    def required(self) -> Commit:
        """The commit. Raises SlipstreamError where there is none to go on from."""
        if self.commit is not None:
            return self.commit
        if not self.damaged:
            raise SlipstreamError(
                f"{self.root} holds no commit to resume from; launch with --overwrite to start anew"
            )
        raise SlipstreamError(
            f"{self.root} holds no commit that can be resumed from: {'; '.join(self.damaged)}. "
            "Nothing was changed. Bring the files back, or launch under another name, or with "
            "--overwrite to start anew"
        )


def find(root: Path, *, contents: bool = True) -> Found:
    """The newest commit that verifies: by timeline, then version.

    Without `contents` the learner's files are compared by their sizes only.
    """
    damaged: list[str] = []
    paths: list[Path] = []
    commit = None
    for path in steps(root):
        try:
            commit = verified(path, contents=contents)
            break
        except OtherFormat as error:
            damaged.append(str(error))
            if error.args[1] > FORMAT:
                break  # going on from an older one would leave what a newer Slipstream trained
        except Damaged as error:
            damaged.append(str(error))
            paths.append(path)
    return Found(root=root, commit=commit, damaged=tuple(damaged), damaged_paths=tuple(paths))


def verified(path: Path, *, contents: bool = True) -> Commit:
    """The commit in this directory. Raises Damaged or OtherFormat."""
    manifest = read_manifest(path)
    _verify(path, manifest, contents=contents)
    return _commit(path, manifest)


def name_of(version: int, timeline: int) -> str:
    return f"step-{version:08d}-t{timeline:04d}"


def steps(root: Path) -> list[Path]:
    """The directories of whole commits, newest first: by timeline, then version. What a link leads
    to is no commit of this run."""
    if not root.is_dir():
        return []
    named = [path for path in root.iterdir() if _NAME.fullmatch(path.name)]
    paths = [path for path in named if path.is_dir() and not path.is_symlink()]
    return sorted(paths, key=_age, reverse=True)


def read_manifest(path: Path) -> Mapping[str, Any]:
    """What a commit says of itself. Raises Damaged or OtherFormat."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        found = manifest["format"]
    except OSError as error:
        raise Damaged(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{file} is damaged: it is no manifest of a commit") from None
    if found != FORMAT:
        age = "a newer" if isinstance(found, int) and found > FORMAT else "an older"
        raise OtherFormat(
            f"{path} was written by {age} Slipstream: format {found}, this is {FORMAT}",
            found if isinstance(found, int) else 0,
        )
    if manifest.pop(SELF, None) != digest_of(manifest):
        raise Damaged(f"{file} is damaged: its checksum differs")
    return manifest  # type: ignore[no-any-return]


def digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason_of(error: BaseException) -> str:
    """What the operating system said; libraries hide it behind errors of their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


def _verify(path: Path, manifest: Mapping[str, Any], *, contents: bool) -> None:
    for name, expected in manifest["sha256"].items():
        file, num_bytes = path / name, manifest["bytes"][name]
        try:
            found = file.stat().st_size
            if found != num_bytes:
                raise Damaged(f"{file} is damaged: {found} of {num_bytes} bytes")
            if contents and sha256_of(file) != expected:
                raise Damaged(f"{file} is damaged: its checksum differs")
        except FileNotFoundError:
            raise Damaged(f"{file} is missing") from None
        except OSError as error:
            raise Damaged(f"{file} cannot be read: {error.strerror}") from None


def _commit(path: Path, manifest: Mapping[str, Any]) -> Commit:
    return Commit(
        path=path,
        version=manifest["version"],
        timeline=manifest["timeline"],
        job=manifest["job"],
        replay=ReplaySnapshot(
            state=manifest["replay"],
            groups=_groups(path / GROUPS) if GROUPS in manifest["sha256"] else {},
        ),
    )


def _groups(file: Path) -> dict[int, bytes]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {int(ordinal): arrays[ordinal].tobytes() for ordinal in arrays}
    except (OSError, ValueError, BadZipFile) as error:
        raise Damaged(f"{file} is damaged: {error}") from None


def version_of(path: Path) -> int:
    return _age(path)[1]


def _age(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[2] or 0), int(match[1])
