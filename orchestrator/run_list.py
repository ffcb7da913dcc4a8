"""`slipstream runs`: the runs of a directory, each in a line, from their files alone."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from orchestrator.run_files import NoRun
from orchestrator.status import NoStatus, StatusReport, duration, read_status
from slipstream.config.job import MAIN_SET


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRun:
    """One run. None is what its files do not tell yet."""

    name: str
    state: str  # as in `slipstream status`
    version: int
    num_steps: int
    mode: str | None
    model: str | None
    reward: float | None  # mean of the newest batch
    held_out: float | None  # share that the newest evaluation got right, greedily
    held_out_version: int | None
    started_at_s: float  # seconds since the epoch
    age_s: float  # since its status was written


@dataclass(frozen=True, slots=True, kw_only=True)
class RunList:
    """What the command prints, in either form."""

    runs: tuple[ListedRun, ...]

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(run) for run in self.runs]

    def as_text(self) -> RenderableType:
        table = Table()
        headings = ("run", "state", "version", "mode", "model", "reward", "held-out")
        for heading in (*headings, "started", "heard of"):
            table.add_column(heading, overflow="fold")
        for run in self.runs:
            table.add_row(
                run.name,
                run.state,
                f"{run.version} of {run.num_steps}",
                run.mode or "-",
                Path(run.model).name if run.model else "-",
                "-" if run.reward is None else f"{run.reward:.3f}",
                "-" if run.held_out is None else f"{run.held_out:.1%} at {run.held_out_version}",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started_at_s)),
                f"{duration(run.age_s)} ago",
            )
        return table


def list_runs(directory: Path) -> RunList:
    """The runs in `directory`, the one begun last first. Raises NoRun where it is no directory."""
    if not directory.is_dir():
        raise NoRun(f"{directory} is no directory; give the one that holds the runs")
    found = []
    for path in sorted(directory.iterdir()):
        with suppress(NoStatus):  # no run, or none that has begun
            found.append(_listed(path, read_status(path)))
    found.sort(key=lambda run: run.started_at_s, reverse=True)
    return RunList(runs=tuple(found))


def names(directory: Path) -> list[str]:
    """What may be a run there."""
    with suppress(OSError):
        return sorted(path.parent.name for path in directory.glob("*/job.yaml"))
    return []


def _listed(path: Path, report: StatusReport) -> ListedRun:
    job = _job(path)
    newest = _newest(path, _held_out(job))
    model = job.get("model")
    return ListedRun(
        name=path.name,
        state=report.state,
        version=report.status.version,
        num_steps=report.status.num_steps,
        mode=job.get("mode"),
        model=model.get("path") if isinstance(model, dict) else None,
        reward=newest.get("step", {}).get("reward"),
        held_out=newest.get("eval", {}).get("greedy_accuracy"),
        held_out_version=newest.get("eval", {}).get("version"),
        started_at_s=report.status.launched_at_s,
        age_s=report.age_s,
    )


def _job(path: Path) -> Mapping[str, Any]:
    with suppress(OSError, YAMLError):
        found = YAML(typ="safe").load(path / "job.yaml")
        return found if isinstance(found, dict) else {}
    return {}


def _newest(path: Path, held_out: str | None) -> dict[str, Mapping[str, Any]]:
    """The last `step` of the events, and the last `eval` of the set `held_out`."""
    last: dict[str, Mapping[str, Any]] = {}
    with suppress(OSError), (path / "metrics.jsonl").open("rb") as file:
        for line in file:
            # Most lines are neither, and there can be millions.
            if b'"kind": "step"' in line or b'"kind": "eval"' in line:
                with suppress(ValueError):  # cut, or two that have become one
                    event = json.loads(line)
                    if event["kind"] == "step" or event.get("set", MAIN_SET) == held_out:
                        last[event["kind"]] = event
    return last


def _held_out(job: Mapping[str, Any]) -> str | None:
    """The first held-out set, as `JobConfig.data.held_out` has it."""
    data = job.get("data")
    if not isinstance(data, Mapping) or data.get("eval") is not None:
        return MAIN_SET
    return next(iter(data.get("eval_sets") or ()), None)
