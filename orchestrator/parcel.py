"""What travels with a job to a cluster: the directory of its job file, copied aside.

The job file, reward functions, small data and models. Anything big is a path on the cluster's
machines.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slipstream.errors import JobFileError, Problem

MAX_MIB = 50
LEFT_BEHIND = ("__pycache__", "runs", "node_modules")  # and what is hidden
NUM_NAMED = 3


@contextmanager
def packed(job_file: Path) -> Iterator[Path]:
    """A copy of what travels with `job_file`. Raises JobFileError where that is too much."""
    directory = job_file.resolve().parent
    files = list(_files(directory))
    _check_size(job_file, directory, files)
    with tempfile.TemporaryDirectory(prefix="slipstream-") as parcel:
        for file in files:
            place = Path(parcel) / file.relative_to(directory)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, place)
        yield Path(parcel)


def _files(directory: Path) -> Iterator[Path]:
    for where, names, files in os.walk(directory):
        names[:] = sorted(name for name in names if _travels(name))
        for name in sorted(files):
            path = Path(where) / name
            if _travels(name) and path.is_file():  # no socket, no link to nowhere
                yield path


def _travels(name: str) -> bool:
    return not name.startswith(".") and name not in LEFT_BEHIND


def _check_size(job_file: Path, directory: Path, files: list[Path]) -> None:
    sizes = {file: file.stat().st_size for file in files}
    mib = sum(sizes.values()) / 2**20
    if mib <= MAX_MIB:
        return
    largest = sorted(files, key=lambda file: sizes[file], reverse=True)[:NUM_NAMED]
    named = ", ".join(
        f"{file.relative_to(directory)} ({sizes[file] / 2**20:.0f} MiB)" for file in largest
    )
    raise JobFileError(
        [
            Problem(
                str(job_file),
                "",
                f"the job file's directory travels to the cluster, and {directory} holds "
                f"{mib:.0f} MiB, more than {MAX_MIB}: {named}. Put what is big on the cluster's "
                "machines and name its path there, or move the job file to a directory of its own",
            )
        ]
    )
