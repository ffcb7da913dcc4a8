"""A run's events as a Chrome trace, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

    metrics.jsonl ─▶ `Trace.hear` ─▶ trace.json: a track for each role with its phases, marks for
                     what happened, counters for versions and groups

Its size is bounded: where there is too much, short phases go into their neighbours and marks and
counts are thinned out, which `otherData` then says. What was trained in vain before a return to a
commit stays: it took that time.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.event_kinds import KINDS
from orchestrator.run_files import events

MAX_SPANS = 100_000  # of all roles; Perfetto opens some 15 MB in a second or two
MAX_MARKS = 20_000
MAX_COUNTS = 20_000
# Process ids, and their order on the page.
ROLES = {"driver": 1, "learner": 2, "rollout": 3, "replay": 4, "weights": 5}
OF_ALL = ("launched", "paused", "resumed", "scaled", "went_back")  # drawn across every track


@dataclass(slots=True)
class _Span:
    phase: str
    start_s: float
    end_s: float


class Spans:
    """Of every track, at most `limit` in all: beyond it the shortest go into their neighbours."""

    def __init__(self, limit: int = MAX_SPANS) -> None:
        self.by_track: dict[tuple[str, int], list[_Span]] = defaultdict(list)
        self.shortest_s = 0.0  # what is shorter may be merged
        self._limit = limit
        self._num = 0

    def add(self, track: tuple[str, int], spans: Iterable[tuple[str, float, float]]) -> None:
        """`spans`: phase, start_s and seconds, by time."""
        for phase, start_s, seconds in spans:
            self.by_track[track].append(_Span(phase, start_s, start_s + seconds))
            self._num += 1
        while self._num > self._limit:
            self.shortest_s = max(0.02, 2 * self.shortest_s)
            for name, found in self.by_track.items():
                self.by_track[name] = _merged(found, self.shortest_s)
            self._num = sum(map(len, self.by_track.values()))


def _merged(spans: Iterable[_Span], shortest_s: float) -> list[_Span]:
    """Neighbours of the same phase become one, and what is too short goes on with what follows,
    under the longer one's phase."""
    found: list[_Span] = []
    for span in spans:
        last = found[-1] if found else None
        if last is None or span.start_s - last.end_s > shortest_s:
            found.append(span)
            continue
        last_s, span_s = last.end_s - last.start_s, span.end_s - span.start_s
        if last.phase == span.phase or last_s < shortest_s:
            phase = last.phase if last_s >= span_s else span.phase
            found[-1] = _Span(phase, last.start_s, max(last.end_s, span.end_s))
        else:
            found.append(span)
    return found


@dataclass(slots=True)
class Thinned:
    """Every n-th of what is added; n doubles whenever there are more than `limit`."""

    limit: int
    entries: list[dict[str, Any]] = field(default_factory=list)
    one_of: int = 1
    _num_heard: int = 0

    def add(self, entry: dict[str, Any]) -> None:
        if self._num_heard % self.one_of == 0:
            self.entries.append(entry)
        self._num_heard += 1
        if len(self.entries) > self.limit:
            self.entries = self.entries[::2]
            self.one_of *= 2


class Trace:
    """Folds events, in the order of the file; `as_json` is the trace of those heard."""

    def __init__(self, max_spans: int = MAX_SPANS) -> None:
        self._spans = Spans(max_spans)
        self._often = Thinned(MAX_MARKS)  # one a version and worker
        self._marks = Thinned(MAX_MARKS)
        self._counts = Thinned(MAX_COUNTS)
        self._tracks: set[tuple[str, int]] = set()

    def hear(self, event: Mapping[str, Any]) -> None:
        kind, track = event["kind"], (event["role"], event["index"])
        if track[0] not in ROLES:
            return
        if kind in ("busy", "step"):
            self._tracks.add(track)
            self._spans.add(track, event.get("spans", ()))
        if kind in KINDS:  # an `adopted` stands on its rollout's own track
            self._tracks.add(track)
            often = kind in ("adopted", "commit", "eval", "eval_started")
            (self._often if often else self._marks).add(_mark(event, track))
        if kind == "step":
            self._count(event, "version", version=event["version"])
        if kind in ("launched", "went_back"):
            self._count(event, "version", version=event["version"])
        if kind == "replay":
            groups = {"buffered": event["num_buffered"], "rolled out": event["num_running"]}
            self._count(event, "groups", **groups)

    def as_json(self) -> dict[str, Any]:
        """The Trace Event Format's object; `ts` and `dur` in microseconds since the first event."""
        entries = [*self._of_spans(), *self._often.entries, *self._marks.entries]
        entries += self._counts.entries
        entries.sort(key=lambda entry: int(entry["ts"]))
        start_us = entries[0]["ts"] if entries else 0
        moved = ({**entry, "ts": entry["ts"] - start_us} for entry in entries)
        return {
            "traceEvents": [*self._names(), *moved],
            "displayTimeUnit": "ms",
            "otherData": {"start_s": start_us / 1e6, "note": self._note()},
        }

    def _count(self, event: Mapping[str, Any], name: str, **values: int) -> None:
        place = _place(("driver", 0), event["time_s"])
        self._counts.add({"name": name, "ph": "C", "args": values, **place})

    def _of_spans(self) -> Iterator[dict[str, Any]]:
        for track, spans in self._spans.by_track.items():
            starts_s = [span.start_s for span in spans]
            for span, next_s in zip(spans, [*starts_s[1:], spans[-1].end_s], strict=True):
                # Times are rounded, and clocks are set: viewers want no overlap.
                place = _place(track, span.start_s)
                dur_us = max(0, round(min(span.end_s, next_s) * 1e6) - place["ts"])
                yield {"name": span.phase, "cat": "phase", "ph": "X", "dur": dur_us, **place}

    def _names(self) -> Iterator[dict[str, Any]]:
        """Of the tracks, with their order."""
        for role, pid in ROLES.items():
            about = {"ph": "M", "pid": pid, "tid": 0}
            yield {"name": "process_name", "args": {"name": role}, **about}
            yield {"name": "process_sort_index", "args": {"sort_index": pid}, **about}
        for role, index in sorted(self._tracks):
            about = {"ph": "M", "pid": ROLES[role], "tid": index}
            yield {"name": "thread_name", "args": {"name": f"{role}-{index}"}, **about}

    def _note(self) -> str:
        """What was left out."""
        parts = []
        if self._spans.shortest_s:
            short_ms = round(self._spans.shortest_s * 1000)
            parts.append(f"phases shorter than {short_ms} ms went into their neighbours")
        for name, thinned in (
            ("adoptions, commits and evaluations", self._often),
            ("other marks", self._marks),
            ("counts", self._counts),
        ):
            if thinned.one_of > 1:
                parts.append(f"one of {thinned.one_of} {name} is shown")
        return "; ".join(parts) or "complete"


def _mark(event: Mapping[str, Any], track: tuple[str, int]) -> dict[str, Any]:
    kind = event["kind"]
    return {
        "name": f"{kind} {event['version']}" if "version" in event else kind,
        "cat": "event",
        "ph": "i",
        "s": "g" if kind in OF_ALL else "t",
        "args": {name: event[name] for name in KINDS[kind].fields if name in event},
        **_place(track, event["time_s"]),
    }


def _place(track: tuple[str, int], at_s: float) -> dict[str, Any]:
    role, index = track
    return {"pid": ROLES[role], "tid": index, "ts": round(at_s * 1e6)}


def read_trace(metrics_file: Path) -> dict[str, Any]:
    """The trace of a run's events. Lines that were cut as a driver was killed are left out."""
    trace = Trace()
    for event in events(metrics_file):
        trace.hear(event)
    return trace.as_json()


def write_trace(run_dir: Path, out: Path | None = None) -> Path:
    """From metrics.jsonl to `out`, default trace.json beside it. Raises OSError."""
    out = out or run_dir / "trace.json"
    out.write_text(json.dumps(read_trace(run_dir / "metrics.jsonl")) + "\n", encoding="utf-8")
    return out
