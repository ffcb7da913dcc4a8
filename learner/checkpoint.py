"""Commits: one directory that restores a run, visible only when it is whole.

    checkpoints/
        step-00000050/
            model/          Hugging Face format, for transformers and vLLM
            learner/        DeepSpeed state of every rank
            commit.json     version, format, layout, replay snapshot, SHA-256 of every file
        latest              the name of the newest commit

Written aside as `.tmp-step-...`, fsynced, renamed, and only then pointed at. Older commits go
last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipstream.errors import SlipstreamError

FORMAT = 2
LATEST = "latest"
MANIFEST = "commit.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A verified commit on disk."""

    path: Path
    version: int
    replay: Mapping[str, Any]  # snapshot of the ledger at the same step boundary

    @property
    def learner_dir(self) -> Path:
        return self.path / "learner"


def begin(root: Path, version: int) -> None:
    """Make an empty directory to write `version` into; every rank writes to the same one."""
    directory = aside(root, version)
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "learner").mkdir(parents=True)


def finish(
    root: Path,
    version: int,
    replay: Mapping[str, Any],
    *,
    layout: Mapping[str, Any],
    keep_last: int,
) -> Path:
    """Checksum, rename and point at what was written; then remove older commits and leftovers.

    `layout`: the settings of the learner that its files depend on.
    """
    directory, final = aside(root, version), root / f"step-{version:08d}"
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    manifest = {
        "format": FORMAT,
        "version": version,
        "layout": layout,
        "replay": replay,
        "sha256": {str(path.relative_to(directory)): _sha256(path) for path in files},
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    for path in [
        *files,
        directory / MANIFEST,
        *(p for p in directory.rglob("*") if p.is_dir()),
        directory,
    ]:
        _fsync(path)
    if final.exists():
        shutil.rmtree(final)
    directory.rename(final)
    _point_at(root, final.name)
    # Newer ones can be there too, of a future that was left for an older commit.
    older = sorted(path for path in root.glob("step-*") if path.name < final.name)
    for path in [*older[: len(older) - keep_last + 1], *root.glob(".tmp-step-*")]:
        shutil.rmtree(path)
    return final


def newest(root: Path) -> Commit:
    """The commit that `latest` names, verified.

    Raises SlipstreamError where there is none, or where it is damaged.
    """
    path = manifest_of(root).parent
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise SlipstreamError(f"{path / MANIFEST} cannot be read: {error}") from None
    if manifest["format"] != FORMAT:
        raise SlipstreamError(f"{path} has format {manifest['format']}; this is {FORMAT}")
    for name, expected in manifest["sha256"].items():
        if not (path / name).is_file() or _sha256(path / name) != expected:
            raise SlipstreamError(f"{path / name} is damaged: its checksum differs")
    return Commit(path=path, version=manifest["version"], replay=manifest["replay"])


def manifest_of(root: Path) -> Path:
    """Where the newest commit's manifest lies. Raises SlipstreamError where there is none."""
    pointer = root / LATEST
    if not pointer.is_file():
        raise SlipstreamError(f"{root} holds no commit to resume from")
    return root / pointer.read_text().strip() / MANIFEST


def aside(root: Path, version: int) -> Path:
    """Where a commit is written before it is whole."""
    return root / f".tmp-step-{version:08d}"


def _point_at(root: Path, name: str) -> None:
    pointer = root / f".{LATEST}"
    pointer.write_text(name + "\n")
    _fsync(pointer)
    pointer.replace(root / LATEST)
    _fsync(root)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
