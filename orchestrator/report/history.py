"""What a run's events add up to, in the form that charts need. Pure: no clock, no I/O.

    metrics.jsonl, line by line ─▶ History.fold ─▶ steps, evaluations, spans, marks

Only what counts is kept of steps and evaluations: a return to a commit undoes the later ones, and
so does a launch that goes on from one. Time is never undone: spans and marks of all timelines stay.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.event_kinds import KINDS
from orchestrator.report.spans import Spans
from orchestrator.run_files import event_of

HELD_OUT = "held-out"  # the set's name where an event has none
WAIT = "wait"
FAULTS = {kind: found.title for kind, found in KINDS.items() if found.title and found.is_fault}
EVENTS = {kind: found.title for kind, found in KINDS.items() if found.title and not found.is_fault}
SYNC = {  # how long each part of an update of weights took: event -> fields
    "published": ("gather_s", "publish_s"),
    "adopted": ("wire_s", "pause_s", "load_s", "since_published_s"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One learner step that counts."""

    version: int
    time_s: float
    reward: float | None
    num_groups: int
    num_answer_tokens: int
    lags: Mapping[int, int]  # lag -> groups
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One evaluation that counts. Shares are in [0, 1]."""

    set: str
    version: int
    time_s: float
    accuracy: float | None  # of greedy answers; None where none was rewarded
    reward: float | None  # mean of sampled answers
    num_prompts: int
    pass_at: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something that happened at one moment."""

    kind: str
    time_s: float
    who: str  # rollout-0
    text: str
    recovered_s: float | None = None  # of a fault: until the role was at work again


@dataclass(slots=True)
class History:
    """The events of a run so far."""

    steps: dict[int, Step] = field(default_factory=dict)  # by version, in order
    evals: dict[tuple[str, int], Evaluation] = field(default_factory=dict)  # by set and version
    marks: list[Mark] = field(default_factory=list)
    spans: dict[str, dict[str, Spans]] = field(default_factory=dict)  # role-index -> phase
    generated: tuple[array[float], array[float]] = field(
        default_factory=lambda: (array("d"), array("d"))
    )  # times, tokens
    trained: tuple[array[float], array[float]] = field(
        default_factory=lambda: (array("d"), array("d"))
    )
    sync: defaultdict[str, array[float]] = field(
        default_factory=lambda: defaultdict(lambda: array("d"))
    )  # part -> seconds of every update
    bytes_published: int | None = None  # of the newest version
    max_probe_error: float | None = None
    counts: Counter[str] = field(default_factory=Counter)  # kind -> events
    num_undone_steps: int = 0
    num_unreadable: int = 0  # lines
    first_s: float | None = None
    last_s: float | None = None
    # Of each launch, the times of its first step and its last; empty before there is one.
    training: list[list[float]] = field(default_factory=list)
    _newest: int = -1
    _branches: list[tuple[int, int]] = field(default_factory=list)  # timeline, version it left

    @property
    def lags(self) -> Counter[int]:
        total = Counter[int]()
        for step in self.steps.values():
            total.update(step.lags)
        return total

    @property
    def has_exact_spans(self) -> bool:
        phases = [spans for role in self.spans.values() for spans in role.values()]
        return bool(phases) and any(spans.is_exact for spans in phases)

    @property
    def training_s(self) -> float:
        """Seconds from the first step of each launch to its last."""
        return sum(last_s - first_s for first_s, last_s in self._stretches)

    def trained_for_s(self, time_s: float) -> float:
        """What of `training_s` lies before `time_s`."""
        return sum(
            min(max(0.0, time_s - first_s), last_s - first_s) for first_s, last_s in self._stretches
        )

    def while_training(
        self, columns: tuple[Sequence[float], Sequence[float]]
    ) -> tuple[list[float], list[float]]:
        """What was counted after the first step of a launch and up to its last; its times count
        from the first step, without the gaps between launches."""
        times, counts = np.asarray(columns[0]), np.asarray(columns[1])
        before_s, kept_times, kept_counts = 0.0, list[float](), list[float]()
        for first_s, last_s in self._stretches:
            inside = (times > first_s) & (times <= last_s)
            kept_times += (times[inside] - first_s + before_s).tolist()
            kept_counts += counts[inside].tolist()
            before_s += last_s - first_s
        return kept_times, kept_counts

    @property
    def _stretches(self) -> list[tuple[float, float]]:
        return [(times[0], times[1]) for times in self.training if times]

    def read(self, lines: Iterable[bytes]) -> None:
        """Fold a file in. A last line that is still being written is left out."""
        for line in lines:
            if not line.endswith(b"\n"):
                continue
            try:
                self.fold(event_of(line) or {})
            except (KeyError, TypeError, ValueError, AttributeError):
                self.num_unreadable += 1

    def fold(self, event: Mapping[str, Any]) -> None:
        """Take one event into account; unknown kinds only count."""
        kind, time_s = event["kind"], float(event["time_s"])
        self.counts[kind] += 1
        self.first_s = time_s if self.first_s is None else min(self.first_s, time_s)
        self.last_s = time_s if self.last_s is None else max(self.last_s, time_s)
        match kind:
            case "step":
                self._step(event, time_s)
            case "busy":
                _append(self.generated, time_s, event["num_tokens"])
                self._busy(event, time_s)
            case "eval":
                self._eval(event, time_s)
            case "adopted" | "published":
                self._synced(kind, event)
            case "went_back" | "launched":
                if kind == "launched":
                    self.training.append([])
                self._go_back(event["version"])
                self._branches.append((event["timeline"], event["version"]))
        if kind in FAULTS or kind in EVENTS:
            self.marks.append(_mark(event, time_s))

    def finish(self) -> None:
        """Once all is read: how long each fault took to mend."""
        self.marks.sort(key=lambda mark: mark.time_s)
        step_times = sorted(self.trained[0])
        self.marks = [_mended(mark, self.marks, step_times) for mark in self.marks]

    # --- kinds ------------------------------------------------------------------------

    def _step(self, event: Mapping[str, Any], time_s: float) -> None:
        version = int(event["version"])
        if version <= self._newest:
            self._go_back(version - 1)  # launched again from a commit
        self._newest = version
        self.steps[version] = Step(
            version=version,
            time_s=time_s,
            reward=_finite(event.get("reward")),
            num_groups=event["num_groups"],
            num_answer_tokens=event["num_answer_tokens"],
            lags={int(lag): int(count) for lag, count in event.get("lags", {}).items()},
            metrics=event.get("metrics", {}),
        )
        _append(self.trained, time_s, event["num_answer_tokens"])
        if not self.training:
            self.training.append([])
        self.training[-1][1:] = [time_s] if self.training[-1] else [time_s, time_s]
        self._busy(event, time_s)
        for name in SYNC["published"] if not self.counts["published"] else ():
            self._sync(name, self.steps[version].metrics.get(name))

    def _go_back(self, version: int) -> None:
        before = len(self.steps)
        self.steps = {v: step for v, step in self.steps.items() if v <= version}
        self.evals = {key: found for key, found in self.evals.items() if key[1] <= version}
        self.num_undone_steps += before - len(self.steps)
        self._newest = version

    def _eval(self, event: Mapping[str, Any], time_s: float) -> None:
        version, timeline = int(event["version"]), event.get("timeline", 0)
        if any(timeline < began and version > left for began, left in self._branches):
            return  # of weights that are gone
        name = str(event.get("set") or HELD_OUT)
        self.evals[name, version] = Evaluation(
            set=name,
            version=version,
            time_s=time_s,
            accuracy=_finite(event.get("greedy_accuracy")),
            reward=_finite(event.get("sampled_reward")),
            num_prompts=int(event["num_prompts"]),
            pass_at={int(k): float(v) for k, v in (event.get("pass_at") or {}).items()},
        )

    def _synced(self, kind: str, event: Mapping[str, Any]) -> None:
        for name in SYNC[kind]:
            self._sync(name, event.get(name))
        self.bytes_published = event.get("num_bytes", self.bytes_published)
        if (error := event.get("probe_error")) is not None:
            self.max_probe_error = max(self.max_probe_error or 0.0, float(error))

    def _sync(self, name: str, seconds: float | None) -> None:
        if seconds is not None:
            self.sync[name].append(float(seconds))

    def _busy(self, event: Mapping[str, Any], time_s: float) -> None:
        phases = self.spans.setdefault(_who(event), {})
        if (spans := event.get("spans")) is not None:
            for phase, start_s, seconds in spans:
                phases.setdefault(str(phase), Spans()).add(float(start_s), float(seconds))
            return
        total_s = sum(event["seconds"].values())
        for phase, seconds in event["seconds"].items() if total_s > 0 else ():
            share = float(seconds) / total_s
            phases.setdefault(phase, Spans()).add(time_s - total_s, total_s, share)


def _append(columns: tuple[array[float], array[float]], time_s: float, count: float) -> None:
    columns[0].append(time_s)
    columns[1].append(float(count))


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _who(event: Mapping[str, Any]) -> str:
    role = str(event.get("role", "?"))
    is_one_of_many = role in ("learner", "rollout") and event["kind"] != "scaled"
    return f"{role}-{event.get('index', 0)}" if is_one_of_many else role


def _mark(event: Mapping[str, Any], time_s: float) -> Mark:
    return Mark(kind=event["kind"], time_s=time_s, who=_who(event), text=_told(event))


def _told(event: Mapping[str, Any]) -> str:
    """The event's own words, in one line."""
    version = event.get("version")
    match event["kind"]:
        case "went_back":
            return f"to version {version}: {_first_line(event.get('cause'))}"
        case "scaled":
            return f"{event.get('num_before')} to {event.get('num_after')}"
        case "launched":
            return f"from version {version}"
        case "commit":
            return f"version {version}"
        case "best":
            return f"version {version}: {event.get('value')} on {event.get('set')}"
    said = [event.get(name) for name in ("cause", "reason", "message", "detail")]
    words = [_first_line(text) for text in said if text]
    return "; ".join(([f"version {version}"] if version is not None else []) + words)


def _first_line(text: Any) -> str:
    lines = str(text or "").strip().splitlines()
    return lines[0] if lines else ""


def _mended(mark: Mark, marks: list[Mark], step_times: list[float]) -> Mark:
    match mark.kind:
        case "worker_died":
            later = [m for m in marks if m.kind == "worker_started" and m.who == mark.who]
            at_s = next((m.time_s for m in later if m.time_s > mark.time_s), None)
        case "went_back":
            at_s = next((s for s in step_times if s > mark.time_s), None)
        case _:
            return mark
    if at_s is None:
        return mark
    return Mark(
        kind=mark.kind,
        time_s=mark.time_s,
        who=mark.who,
        text=mark.text,
        recovered_s=at_s - mark.time_s,
    )
