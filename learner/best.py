"""Which commits are kept beside the newest ones: the best, and those that may turn out to be it.

    checkpoints/best        JSON: the best commit, and what makes it that
    checkpoints/.undecided  JSON: what the driver has still to hear of

The driver writes both (`orchestrator/best.py`); rank 0 reads them when it prunes. A commit that
the driver has not thought about yet is kept too.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner.checkpoint import steps, version_of

BEST, UNDECIDED = "best", ".undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The content of `best`."""

    commit: str  # the name of its directory, beside the file
    version: int
    set: str  # the held-out set
    metric: str  # a field of its `eval` event
    value: float


def read_best(root: Path) -> Best | None:
    """None where there is none, or where its commit is gone."""
    try:
        best = Best(**json.loads((root / BEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return best if root / best.commit in steps(root) else None


def kept(root: Path) -> Collection[Path]:
    """The commits that must stay however old they are."""
    undecided = _read_undecided(root)
    versions, seen = set(undecided["versions"]), undecided["seen"]
    waiting = [p for p in steps(root) if version_of(p) in versions or version_of(p) > seen]
    best = read_best(root)
    return {*waiting, *([] if best is None else [root / best.commit])}


def _read_undecided(root: Path) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads((root / UNDECIDED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"versions": [], "seen": -1}  # not written yet
    return found
