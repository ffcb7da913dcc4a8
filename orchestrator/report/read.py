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
# Of replay's statistics, and what each has of `generated_` and `trained_` where it has one of them.
COUNTS: Mapping[str, tuple[str, ...]] = {
    "lengths": ("rollouts", "tokens"),
    "rewards": ("groups", "sum"),
    "drops": (),
    "failures": (),
    "reissues": (),
}


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
    replay: Mapping[str, Any]  # its statistics, of the whole run
    missing: tuple[str, ...]  # a sentence each

    @property
    def name(self) -> str:
        return str(self.job.get("name") or self.path.resolve().name)

    def setting(self, key: str, default: Any = None) -> Any:
        """Of the resolved job, by its dotted key."""
        value: Any = self.job
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value


def read_run(path: Path) -> RunRecord:
    """What the files of a run say. Raises NothingToReport where there are none."""
    if not any((path / name).is_file() for name in ("metrics.jsonl", "job.yaml")):
        raise NothingToReport(
            f"{path} is no run's directory: it holds neither metrics.jsonl nor job.yaml"
        )
    return record_of(path)


def record_of(path: Path) -> RunRecord:
    """What there is to be read of a run, be it nothing."""
    missing: list[str] = []
    job_text, job = _job(path / "job.yaml", missing)
    history = _history(path / "metrics.jsonl", missing)
    status = _status(path, missing)
    result = _json(path / "result.json", missing, "the run has not ended")
    return RunRecord(
        path=path,
        job=job,
        job_text=job_text,
        history=history,
        status=status,
        result=result,
        environment=_json(path / "environment.json", missing, "it is of an older Slipstream"),
        samples=_samples(path / "samples.jsonl", missing),
        ledger=_ledger(path, missing),
        replay=_replay(status, result, missing),
        missing=tuple(missing),
    )


def _job(path: Path, missing: list[str]) -> tuple[str, Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        job = YAML(typ="safe").load(text)
    except (OSError, ValueError, YAMLError) as error:  # ValueError: of a date, say
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


def _replay(
    status: StatusReport | None, result: Mapping[str, Any], missing: list[str]
) -> Mapping[str, Any]:
    """Those of replay's statistics that a report needs, where they are sound."""
    now = status.status.replay if status is not None else {}
    found = now or result.get("replay", {})
    parts = found if isinstance(found, Mapping) else {}
    sound = {name: part for name in COUNTS if _is_sound(name, part := parts.get(name, {}))}
    if found is not parts or len(sound) < len(COUNTS):
        missing.append(f"Replay's figures in {'status' if now else 'result'}.json are damaged.")
    return {name: part for name, part in sound.items() if name in parts}


def _is_sound(name: str, part: object) -> bool:
    if not isinstance(part, Mapping):
        return False
    pairs = [[f"{of}_{what}" in part for what in COUNTS[name]] for of in ("generated", "trained")]
    has_all = all(all(pair) or not any(pair) for pair in pairs)
    return has_all and all(isinstance(count, int | float) for count in part.values())


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
