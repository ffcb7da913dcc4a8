"""A job file for machines that do not see this one's files. Pure but for reading the reward.

What the job names beside its file (a model, prompts, a chat template) is looked for in one
directory of the pods, under the same relative path; absolute paths stay as they are. The reward's
own module, a small text, goes along with the job file.
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML

from slipstream.config.job import JobConfig, RewardConfig
from slipstream.config.load import paths_in

UNPRINTABLE = re.compile(r"[^\t\n\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
MAX_BYTES = 900_000  # of all together: a ConfigMap holds 1 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Portable:
    """What the pods get of a job."""

    text: str  # the job file
    model: str  # its path there, or its name on the hub
    modules: dict[str, str]  # beside it: the reward's file name and source
    needs: tuple[str, ...]  # paths that must be there in the pods, in the job's words


def portable(
    job: JobConfig, job_dir: Path, *, files: PurePosixPath, changes: dict[str, Any]
) -> Portable:
    """`job`, whose file lies in `job_dir`, with its paths below `files`.

    `changes`: values by dotted key that the cluster decides. Raises ValueError where it is too
    large to go along.
    """
    raw = copy.deepcopy(job.model_dump(mode="json", exclude_unset=True))
    needs = tuple(_anchor(raw, job_dir.resolve(), files))
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        section = raw
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    text = io.StringIO()
    YAML().dump(raw, text)
    modules = _modules(job.reward, job_dir)
    num_bytes = sum(len(part.encode()) for part in (text.getvalue(), *modules.values()))
    if num_bytes > MAX_BYTES:
        raise ValueError(
            f"the job file and its reward are {num_bytes} bytes, and at most {MAX_BYTES} can go "
            "along; put the reward's module into the image"
        )
    return Portable(text=text.getvalue(), model=raw["model"]["path"], modules=modules, needs=needs)


def _anchor(raw: dict[str, Any], job_dir: Path, files: PurePosixPath) -> Iterator[str]:
    """Move the paths that lie in `job_dir` to `files`; name all that must be there."""
    for section, key, _ in paths_in(raw):
        if place := _place(section[key], key, job_dir, files):
            section[key] = place
            yield place


def _place(value: str, key: str, job_dir: Path, files: PurePosixPath) -> str | None:
    """Where the pods look for it; None where it is a name on the hub."""
    path = Path(value)
    if path.is_relative_to(job_dir):
        return str(files / PurePosixPath(path.relative_to(job_dir)))
    if path.is_absolute():
        return value
    # What is not there yet, as a model that is to be made, is no name of the form owner/model.
    is_named = key == "name" or value.count("/") == 1
    return None if is_named else str(files / value)


def _modules(reward: RewardConfig, job_dir: Path) -> dict[str, str]:
    """The reward's own module where it is one file beside the job file; a package belongs in the
    image."""
    if reward.kind != "function":
        return {}
    name = f"{reward.path.partition(':')[0].partition('.')[0]}.py"
    file = job_dir / name
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8")
    if found := UNPRINTABLE.search(text):
        raise ValueError(
            f"{file} holds the character {found[0]!r}, which YAML cannot; write it as an escape"
        )
    return {name: text}
