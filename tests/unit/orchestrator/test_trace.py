"""The trace of events, against the Trace Event Format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.event_kinds import KINDS
from orchestrator.trace import Spans, Thinned, Trace, read_trace, write_trace
from slipstream import telemetry

START_S = 1_700_000_000.0
FIELDS = {"X": {"name", "cat", "ts", "dur"}, "i": {"name", "cat", "ts", "s"}, "C": {"name", "ts"}}


def event(kind: str, at_s: float, role: str = "driver", index: int = 0, **rest: Any) -> Any:
    return {"kind": kind, "role": role, "index": index, "time_s": START_S + at_s, **rest}


def busy(index: int, *spans: tuple[str, float, float]) -> Any:
    found = [[phase, START_S + start_s, seconds] for phase, start_s, seconds in spans]
    return event("busy", 1.0, "rollout", index, spans=found, num_tokens=1, seconds={})


def step(version: int, at_s: float, *spans: tuple[str, float, float]) -> Any:
    found = [[phase, START_S + start_s, seconds] for phase, start_s, seconds in spans]
    return event("step", at_s, "learner", version=version, spans=found)


EVENTS = [
    event("launched", 0.0, version=0, timeline=0),
    event("replay", 0.5, num_buffered=3, num_running=8),
    busy(0, ("generate", 0.5, 0.25), ("wait", 0.75, 0.25)),
    busy(1, ("generate", 0.5, 0.5)),
    step(1, 2.0, ("wait", 1.0, 0.4), ("train", 1.4, 0.6)),
    event("adopted", 2.1, "rollout", 1, version=1, timeline=0, load_s=0.05),
    event("commit", 2.5, "learner", version=1, path="x", seconds=0.1, pause_s=0.01),
    event("worker_died", 3.0, "rollout", 0, incarnation=0, cause="killed", blame=True),
    event("scaled", 3.5, "rollout", num_before=2, num_after=3),
    event("restarted", 3.7, "replay", cause="replay died: it is process 7 now"),
    event("went_back", 4.0, version=0, timeline=1, cause="rank 0 died"),
    event("eval", 5.0, "rollout", 1, version=0, timeline=1, greedy_accuracy=0.5),
    event("sample", 5.0, "rollout", 1, ordinal=0),
]


def traced(events: list[Any], **settings: Any) -> dict[str, Any]:
    trace = Trace(**settings)
    for one in events:
        trace.hear(one)
    found: dict[str, Any] = json.loads(json.dumps(trace.as_json()))
    assert_is_valid(found)
    return found


def assert_is_valid(trace: dict[str, Any]) -> None:
    """Every entry has what its phase demands; on a track nothing overlaps; times count up."""
    names, ends_us, before_us = set(), {}, 0
    for entry in trace["traceEvents"]:
        assert isinstance(entry["pid"], int)
        assert isinstance(entry["tid"], int)
        if entry["ph"] == "M":
            names.add((entry["name"], entry["pid"], entry["tid"]))
            continue
        assert FIELDS[entry["ph"]] <= entry.keys()
        assert isinstance(entry["ts"], int)
        assert entry["ts"] >= before_us
        before_us = entry["ts"]
        assert ("process_name", entry["pid"], 0) in names
        track = entry["pid"], entry["tid"]
        if entry["ph"] == "X":
            assert ("thread_name", *track) in names
            assert entry["dur"] >= 0
            assert entry["ts"] >= ends_us.get(track, 0)
            ends_us[track] = entry["ts"] + entry["dur"]
        elif entry["ph"] == "i":
            assert entry["s"] in ("g", "t")
        else:
            assert all(isinstance(value, int) for value in entry["args"].values())


def of(trace: dict[str, Any], ph: str) -> list[dict[str, Any]]:
    return [entry for entry in trace["traceEvents"] if entry["ph"] == ph]


def test_each_role_has_a_track_with_its_phases() -> None:
    trace = traced(EVENTS)
    spans = [(e["pid"], e["tid"], e["name"], e["ts"], e["dur"]) for e in of(trace, "X")]
    assert sorted(spans) == [
        (2, 0, "train", 1_400_000.0, 600_000.0),
        (2, 0, "wait", 1_000_000.0, 400_000.0),
        (3, 0, "generate", 500_000.0, 250_000.0),
        (3, 0, "wait", 750_000.0, 250_000.0),
        (3, 1, "generate", 500_000.0, 500_000.0),
    ]
    tracks = [e["args"]["name"] for e in of(trace, "M") if e["name"] == "thread_name"]
    assert tracks == ["driver-0", "learner-0", "replay-0", "rollout-0", "rollout-1"]
    assert trace["otherData"] == {"start_s": START_S, "note": "complete"}


def test_what_happened_is_marked_where_it_happened() -> None:
    marks = {e["name"]: e for e in of(traced(EVENTS), "i")}
    assert list(marks) == [
        *("launched 0", "adopted 1", "commit 1", "worker_died", "scaled", "restarted"),
        *("went_back 0", "eval 0"),
    ]
    assert (marks["adopted 1"]["pid"], marks["adopted 1"]["tid"]) == (3, 1)
    assert marks["worker_died"]["args"] == {"incarnation": 0, "cause": "killed"}
    assert marks["worker_died"]["s"] == "t"
    assert marks["went_back 0"]["s"] == "g"
    assert marks["eval 0"]["args"] == {"version": 0, "greedy_accuracy": 0.5}


def test_versions_and_groups_are_counted() -> None:
    counts = [(e["name"], e["ts"], e["args"]) for e in of(traced(EVENTS), "C")]
    assert counts == [
        ("version", 0.0, {"version": 0}),
        ("groups", 500_000.0, {"buffered": 3, "rolled out": 8}),
        ("version", 2_000_000.0, {"version": 1}),
        ("version", 4_000_000.0, {"version": 0}),
    ]


def test_spans_that_overlap_by_rounding_do_not_in_the_trace() -> None:
    first, second = ("generate", 0.5, 0.2501), ("wait", 0.75, 0.2)
    spans = of(traced([busy(0, first, second)]), "X")
    assert spans[0]["dur"] == 250_000.0


def test_too_many_spans_are_merged_and_the_trace_says_so() -> None:
    events = [
        busy(0, *[("generate" if i % 2 else "wait", n + i / 100, 0.01) for i in range(100)])
        for n in range(50)
    ]
    trace = traced(events, max_spans=1000)
    spans = of(trace, "X")
    assert len(spans) <= 1000
    assert sum(e["dur"] for e in spans) > 0.99 * 50e6
    assert "ms went into their neighbours" in trace["otherData"]["note"]
    generate_us = sum(e["dur"] for e in spans if e["name"] == "generate")
    assert 0.3 * 50e6 < generate_us < 0.7 * 50e6, "one phase has swallowed the other"


def test_long_spans_outlive_the_merging() -> None:
    spans = Spans(limit=4)
    short = [("score" if i % 2 else "put", 1.0 + i / 128, 1 / 128) for i in range(7)]
    spans.add(("rollout", 0), [("generate", 0.0, 1.0), *short, ("wait", 1.0 + 7 / 128, 3.0)])
    merged = [(s.phase, s.start_s * 128, s.end_s * 128) for s in spans.by_track["rollout", 0]]
    assert spans.shortest_s == 0.02  # 2.56 of them
    assert merged == [
        *(("generate", 0, 128), ("put", 128, 131), ("score", 131, 134)),
        ("wait", 134, 128 + 7 + 3 * 128),  # and the last short one
    ]


def test_thinned_keeps_evenly() -> None:
    thinned = Thinned(4)
    for number in range(20):
        thinned.add({"number": number})
    assert [entry["number"] for entry in thinned.entries] == [0, 8, 16]
    assert thinned.one_of == 8


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    lines = [json.dumps(one) for one in EVENTS]
    text = "\n".join(
        [lines[0], '{"kind": "st', "[1]", '{"kind": "step"}', *lines[1:], '{"kind": "busy", "ro']
    )
    (tmp_path / "metrics.jsonl").write_text(text)
    written = json.loads(write_trace(tmp_path).read_text())
    assert written == read_trace(tmp_path / "metrics.jsonl") == traced(EVENTS)


def test_every_kind_that_is_told_is_one_that_exists() -> None:
    assert telemetry.__doc__ is not None
    assert [kind for kind in KINDS if f"`{kind}`" not in telemetry.__doc__] == []


def test_an_empty_run_has_an_empty_trace() -> None:
    assert of(traced([]), "X") == []


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(EVENTS[0]) + "\n")
    out = tmp_path / "other.json"
    done = CliRunner().invoke(app, ["trace", str(tmp_path), "--out", str(out)])
    assert (done.exit_code, done.stdout.strip()) == (0, str(out))
    assert of(json.loads(out.read_text()), "i")[0]["name"] == "launched 0"
    (tmp_path / "metrics.jsonl").unlink()
    for run, said in ((tmp_path, "no trace"), (tmp_path / "none", "there is no run")):
        done = CliRunner().invoke(app, ["trace", str(run)])
        assert done.exit_code == 2
        assert said in done.stderr
