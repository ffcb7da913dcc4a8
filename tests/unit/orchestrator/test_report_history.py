"""What a run's events add up to."""

from __future__ import annotations

import json

import numpy as np
import pytest

from orchestrator.report.history import History
from orchestrator.report.spans import Spans
from tests.helpers.run_files import START_S, Event, about_worker, busy, evaluated, step, went_back


def history(*events: Event) -> History:
    found = History()
    found.read(json.dumps(event).encode() + b"\n" for event in events)
    found.finish()
    return found


def rewards(found: History) -> dict[int, float | None]:
    return {version: step.reward for version, step in found.steps.items()}


def test_a_return_to_a_commit_undoes_later_steps_and_evaluations() -> None:
    found = history(
        *(step(1, 1, 0.1), step(2, 2, 0.2), step(3, 3, 0.3)),
        *(evaluated(1, 1, 0.4), evaluated(3, 3, 0.6)),
        went_back(1, 1, 4),
        *(step(2, 7, 0.7), step(3, 8, 0.8)),
    )
    assert rewards(found) == {1: 0.1, 2: 0.7, 3: 0.8}
    assert [e.accuracy for e in found.evals.values()] == [0.4]
    assert found.num_undone_steps == 2
    assert found.lags == {0: 3, 1: 3}  # of three steps, not of five
    assert sum(found.trained[1]) == 500  # the tokens were trained all the same


def test_an_evaluation_of_weights_that_are_gone_comes_too_late() -> None:
    found = history(
        step(1, 1), step(2, 2), went_back(1, 1, 3), evaluated(2, 4, 0.9), evaluated(1, 5, 0.5)
    )
    assert [(e.version, e.accuracy) for e in found.evals.values()] == [(1, 0.5)]


def test_a_launch_that_goes_on_from_a_commit_replaces_what_it_trains_again() -> None:
    found = history(step(1, 1, 0.1), step(2, 2, 0.2), step(3, 3, 0.3), step(2, 60, 0.9))
    assert rewards(found) == {1: 0.1, 2: 0.9}


def test_a_launch_undoes_what_came_after_the_commit_that_it_goes_on_from() -> None:
    launch = {"kind": "launched", "role": "driver", "index": 0}
    found = history(
        {**launch, "time_s": START_S, "timeline": 0, "version": 0},
        *(step(1, 1, 0.1), step(2, 2, 0.2), evaluated(2, 2, 0.9)),
        {**launch, "time_s": START_S + 50, "timeline": 1, "version": 1},
    )
    assert (rewards(found), found.evals, found.num_undone_steps) == ({1: 0.1}, {}, 1)
    assert [mark.text for mark in found.marks] == ["from version 0", "from version 1"]


def test_training_is_from_the_first_step_of_a_launch_to_its_last() -> None:
    launch = {"kind": "launched", "role": "driver", "index": 0, "timeline": 0}
    found = history(
        {**launch, "time_s": START_S, "version": 0},
        *(busy(9), step(1, 10), busy(11), step(2, 14), went_back(1, 1, 15), step(2, 18)),
        {**launch, "time_s": START_S + 1000, "version": 2},
        *(step(3, 1010), busy(1011), step(4, 1014), busy(1020)),
    )
    assert found.training_s == 12.0  # from 10 to 18, and from 1010 to 1014
    times, tokens = found.while_training(found.trained)
    assert (times, tokens) == ([4.0, 8.0, 12.0], [100.0] * 3)  # the undone step among them
    assert found.while_training(found.generated) == ([1.0, 9.0], [50.0, 50.0])
    assert [found.trained_for_s(START_S + at_s) for at_s in (0, 10, 500, 1012)] == [0, 0, 8, 10]


def test_a_line_being_written_is_left_out_and_a_damaged_one_is_counted() -> None:
    whole = json.dumps(step(1, 1)).encode() + b"\n"
    found = History()
    found.read([whole, b"not json\n", b'{"kind": "step"}\n', b"[1]\n", whole[:40]])
    assert list(found.steps) == [1]
    assert found.num_unreadable == 3


def test_spans_are_kept_to_the_millisecond() -> None:
    spans = [["generate", START_S + 1.0, 0.5], ["wait", START_S + 1.5, 0.25]]
    found = history(busy(2, spans=spans))
    assert found.has_exact_spans
    generate = found.spans["rollout-0"]["generate"]
    assert generate.within(START_S + 1.25, START_S + 9) == [(START_S + 1.25, 0.25)]
    edges = START_S + np.array([1.0, 1.5, 2.0])
    assert generate.share_of(edges) == pytest.approx([1.0, 0.0])
    assert found.spans["rollout-0"]["wait"].share_of(edges) == pytest.approx([0.0, 0.5])


def test_without_spans_seconds_are_spread_over_the_time_they_were_spent_in() -> None:
    found = history(step(1, 4, seconds={"wait": 1.0, "train": 3.0}))
    assert not found.has_exact_spans
    edges = START_S + np.array([0.0, 2.0, 4.0, 6.0])
    shares = found.spans["learner-0"]["wait"].share_of(edges)
    assert shares == pytest.approx([0.25, 0.25, 0.0])


def test_shares_of_overlapping_bins_add_up() -> None:
    spans = Spans()
    for start_s in range(0, 100, 10):
        spans.add(START_S + start_s, 4.0)
    assert spans.share_of(START_S + np.array([0.0, 100.0])) == pytest.approx([0.4])
    assert spans.share_of(START_S + np.array([2.0, 12.0])) == pytest.approx([0.4])
    assert Spans().share_of(np.array([0.0, 1.0])) == [0.0]


def test_faults_say_when_they_were_mended() -> None:
    found = history(
        step(1, 1),
        about_worker("worker_died", 2, 1, cause="hung\nfor 5 s"),
        about_worker("worker_started", 3, 0),
        about_worker("worker_started", 6.5, 1),
        went_back(1, 1, 10),
        step(2, 14),
        about_worker("worker_died", 20, 0, cause="killed"),
        {**about_worker("restarted", 21), "role": "replay", "cause": "replay died: it is new"},
    )
    told = [(mark.kind, mark.who, mark.text, mark.recovered_s) for mark in found.marks]
    assert told == [
        ("worker_died", "rollout-1", "hung", 4.5),
        ("worker_started", "rollout-0", "", None),
        ("worker_started", "rollout-1", "", None),
        ("went_back", "driver", "to version 1: learner-0 died", 4.0),
        ("worker_died", "rollout-0", "killed", None),
        ("restarted", "replay", "replay died: it is new", None),
    ]


def test_parts_of_an_update_of_weights_are_collected() -> None:
    adopted = {"kind": "adopted", "role": "rollout", "index": 0, "time_s": START_S}
    published = {"kind": "published", "role": "learner", "index": 0, "time_s": START_S}
    found = history(
        {**published, "version": 1, "gather_s": 0.5, "publish_s": 0.25, "num_bytes": 10},
        {**adopted, "version": 1, "load_s": 0.1, "wire_s": 0.2, "pause_s": 0.3},
        {**adopted, "version": 2, "load_s": 0.3, "probe_error": 1e-5},
        step(3, 3, metrics={"gather_s": 9.0}),  # which `published` tells already
    )
    assert {name: list(seconds) for name, seconds in found.sync.items()} == {
        "gather_s": [0.5],
        "publish_s": [0.25],
        "wire_s": [0.2],
        "pause_s": [0.3],
        "load_s": [0.1, 0.3],
    }
    assert (found.bytes_published, found.max_probe_error) == (10, 1e-5)


def test_many_events_are_folded_at_once() -> None:
    lines = [json.dumps(busy(i, i % 8)).encode() + b"\n" for i in range(40_000)]
    found = History()
    found.read(lines)
    edges = np.linspace(START_S, START_S + 40_000, 201)
    assert found.spans["rollout-3"]["generate"].share_of(edges) == pytest.approx(0.125)
