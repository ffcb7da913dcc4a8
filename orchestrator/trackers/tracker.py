"""What a tracker is, and how each kind is opened. Its package is imported only then."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, assert_never

from orchestrator.run_files import write_whole
from orchestrator.trackers.curves import Figures
from slipstream.config.job import JobConfig, TrackerName

IDS = "trackers.json"  # in the run's directory: the run's id at each tracker
_KEEPING = threading.Lock()  # trackers are opened in threads of their own
PROJECT = "slipstream"  # where a tracker's own settings name no other
MODULES: Mapping[TrackerName, str] = {"wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


class Tracker(Protocol):
    """One tracker's view of one run. Used by one thread; whatever it raises ends its use."""

    def log(self, figures: Figures) -> None: ...

    def finish(self) -> None: ...


def is_installed(name: TrackerName) -> bool:
    return find_spec(MODULES[name]) is not None


def open_tracker(name: TrackerName, job: JobConfig, run_dir: Path) -> Tracker:
    """Of this run: the same at the tracker after a resume. May take seconds, and raise anything."""
    settings: Mapping[str, object] = job.model_dump(mode="json")
    match name:
        case "wandb":
            from orchestrator.trackers.to_wandb import Wandb

            return Wandb(job.name, _own_id(run_dir, name), settings, run_dir)
        case "mlflow":
            from orchestrator.trackers.to_mlflow import Mlflow

            run_id = _ids(run_dir).get(name)
            tracker = Mlflow(job.name, run_id, settings)
            _keep_id(run_dir, name, tracker.run_id)
            return tracker
        case "trackio":
            from orchestrator.trackers.to_trackio import Trackio

            return Trackio(f"{job.name}-{_own_id(run_dir, name)}", settings)
        case _:
            assert_never(name)


def _own_id(run_dir: Path, name: TrackerName) -> str:
    """For a tracker that lets its users choose: the one kept, or a new one."""
    found = _ids(run_dir).get(name)
    return found or _keep_id(run_dir, name, uuid.uuid4().hex[:12])


def _keep_id(run_dir: Path, name: TrackerName, run_id: str) -> str:
    with _KEEPING:
        write_whole(run_dir / IDS, {**_ids(run_dir), name: run_id})
    return run_id


def _ids(run_dir: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads((run_dir / IDS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found
