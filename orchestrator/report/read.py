"""A run's directory, read for its report. Whatever is missing is None or empty, and named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from orchestrator.ledger import read_ledger
from orchestrator.report.history import History
from orchestrator.status import NoStatus, StatusReport, read_status
from slipstream.errors import SlipstreamError

MAX_SAMPLES = 48  # of all that samples.jsonl holds, evenly spread


class NothingToReport(SlipstreamError):
    """The directory holds no run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """All that a run's files say."""

    path: Path
    job: Mapping[str, Any]
    job_text: str
    history: History
    status: StatusReport | None
    result: Mapping[str, Any]
    environment: Mapping[str, Any]
    samples: list[Mapping[str, Any]]
    ledger: Mapping[str, Any] | None
    missing: tuple[str, ...]  # a sentence each

    @property
    def name(self) -> str:
        return str(self.job.get("name") or self.path.resolve().name)

    @property
    def replay(self) -> Mapping[str, Any]:
        """Replay's statistics, of the whole run."""
        if self.status is not None and self.status.status.replay:
            return self.status.status.replay
        found: Mapping[str, Any] = self.result.get("replay", {})
        return found

    def setting(self, key: str, default: Any = None) -> Any:
        """Of the resolved job, by its dotted key."""
        value: Any = self.job
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value


def read_run(path: Path) -> RunRecord:
    """What the files of a run say. Raises NothingToReport where there are none."""
    events = path / "metrics.jsonl"
    if not events.is_file() and not (path / "job.yaml").is_file():
        raise NothingToReport(
            f"{path} is no run's directory: it holds neither metrics.jsonl nor job.yaml"
        )
    missing: list[str] = []
    job_text, job = _job(path / "job.yaml", missing)
    history = _history(events, missing)
    return RunRecord(
        path=path,
        job=job,
        job_text=job_text,
        history=history,
        status=_status(path, missing),
        result=_json(path / "result.json", missing, "the run has not ended"),
        environment=_json(path / "environment.json", missing, "it is of an older Slipstream"),
        samples=_samples(path / "samples.jsonl", missing),
        ledger=_ledger(path, missing),
        missing=tuple(missing),
    )


def _job(path: Path, missing: list[str]) -> tuple[str, Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        job = YAML(typ="safe").load(text)
    except (OSError, YAMLError) as error:
        missing.append(f"job.yaml cannot be read ({_reason(error)}): no settings are shown.")
        return "", {}
    return text, job if isinstance(job, Mapping) else {}


def _history(path: Path, missing: list[str]) -> History:
    history = History()
    try:
        with path.open("rb") as file:
            history.read(file)
    except OSError as error:
        missing.append(f"metrics.jsonl cannot be read ({_reason(error)}): there are no events.")
    history.finish()
    if history.num_unreadable:
        missing.append(f"{history.num_unreadable} lines of metrics.jsonl could not be read.")
    return history


def _status(path: Path, missing: list[str]) -> StatusReport | None:
    try:
        return read_status(path)
    except NoStatus:
        missing.append("status.json cannot be read: the run's state is not known.")
        return None


def _json(path: Path, missing: list[str], why: str) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append(f"There is no {path.name}: {why}.")
    except (OSError, ValueError) as error:
        missing.append(f"{path.name} cannot be read ({_reason(error)}).")
    else:
        if isinstance(found, Mapping):
            return found
        missing.append(f"{path.name} holds no mapping.")
    return {}


def _samples(path: Path, missing: list[str]) -> list[Mapping[str, Any]]:
    """Every n-th of the file, n a power of two, and the newest."""
    kept: list[bytes] = []
    stride, last = 1, b""
    try:
        with path.open("rb") as file:
            for place, line in enumerate(file):
                last = line
                if place % stride == 0:
                    kept.append(line)
                if len(kept) > MAX_SAMPLES:
                    kept, stride = kept[::2], 2 * stride
    except OSError:
        missing.append("There is no samples.jsonl: no answers can be shown.")
    lines = kept if not kept or kept[-1] == last else [*kept, last]
    return [sample for sample in map(_sample, lines) if sample is not None]


def _sample(line: bytes) -> Mapping[str, Any] | None:
    try:
        sample = json.loads(line)
    except ValueError:
        return None  # cut, or damaged
    if not isinstance(sample, Mapping) or not isinstance(sample.get("answers"), list):
        return None
    return sample


def _ledger(path: Path, missing: list[str]) -> Mapping[str, Any] | None:
    try:
        return read_ledger(str(path)).as_json()
    except SlipstreamError as error:
        missing.append(f"The ledger cannot be read: {error}.")
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0]
