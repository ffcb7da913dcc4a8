from __future__ import annotations

from collections import Counter

import pytest

from orchestrator.progress import closing_rows, progress_line
from orchestrator.run_state import RunState

STEP = {
    "kind": "step",
    "role": "learner",
    "index": 0,
    "reward": 0.5,
    "num_groups": 4,
    "num_answer_tokens": 100,
}


def state() -> RunState:
    state = RunState(num_steps=4, training_started_at_s=100.0)
    for version, lags in ((1, {0: 4}), (2, {1: 3, 0: 1})):
        seconds = {"wait": 1.0, "train": 3.0, "publish": 1.0}
        event = {"version": version, "time_s": 100.0 + 10 * version, "lags": lags}
        state.fold({**STEP, **event, "seconds": seconds})
    busy = {"kind": "busy", "role": "rollout", "index": 0, "num_tokens": 300, "time_s": 1.0}
    state.fold({**busy, "seconds": {"generate": 10.0, "wait": 10.0}})
    for version, accuracy in ((0, 0.25), (2, 0.5)):
        figures = {"greedy_accuracy": accuracy, "sampled_reward": accuracy / 2, "num_prompts": 8}
        state.fold({"kind": "eval", "timeline": 0, "version": version, "time_s": 0.0, **figures})
    state.fold({"kind": "unknown", "time_s": 0.0})
    return state


def test_each_held_out_set_has_its_rows_and_the_best_commit_one() -> None:
    folded = RunState(num_steps=20)
    for version, share in ((0, 0.25), (10, 0.5)):
        for name in ("eval", "hard"):
            figures = {"greedy_accuracy": share, "sampled_reward": share, "num_prompts": 8}
            event = {"kind": "eval", "timeline": 0, "version": version, "set": name}
            folded.fold({**event, **figures, "pass_at": {1: share, 4: 2 * share}})
    best = {"version": 10, "set": "hard", "metric": "greedy_accuracy", "value": 0.5, "path": "p"}
    folded.fold({"kind": "best", **best})
    rows = dict(closing_rows(folded, 1.0))
    assert rows["held-out hard pass@4"].startswith("50.0% -> 100.0%  (+50.0 points")
    assert rows["held-out accuracy (greedy)"].startswith("25.0% -> 50.0%")
    assert "held-out pass@1" not in rows
    assert rows["best commit"] == "version 10, greedy_accuracy 0.500 on hard: p"
    assert [event["set"] for event in folded.result(1.0)["evals"]] == ["eval", "eval"]
    assert list(folded.result(1.0)["evals_by_set"]) == ["eval", "hard"]
    folded.fold({"kind": "went_back", "timeline": 1, "version": 5, "time_s": 1.0})
    assert folded.best is None


def test_an_evaluation_without_a_reward_shows_no_figure() -> None:
    folded = state()
    figures = {"greedy_accuracy": None, "sampled_reward": None, "num_prompts": 8, "pass_at": {}}
    folded.fold({"kind": "eval", "timeline": 0, "version": 3, "set": "eval", **figures})
    assert "held-out -" in progress_line(folded, 120.0)
    assert not any(name.startswith("held-out accuracy") for name, _ in closing_rows(folded, 1.0))


def test_what_was_measured_of_weights_that_are_gone_does_not_count() -> None:
    folded = RunState(num_steps=20)
    for version in (5, 10):
        folded.fold({"kind": "eval", "timeline": 0, "version": version})
    folded.fold({"kind": "went_back", "timeline": 1, "version": 5, "time_s": 1.0})
    assert (list(folded.evals), folded.version, folded.num_restarts) == ([5], 5, 1)
    folded.fold({"kind": "eval", "timeline": 0, "version": 10})  # it was still being scored
    assert list(folded.evals) == [5]
    folded.fold({"kind": "eval", "timeline": 1, "version": 10})
    assert list(folded.evals) == [5, 10]


@pytest.mark.parametrize(
    ("timeline", "version", "does"),
    [
        (2, 9, True),  # of now
        (2, 0, True),
        (1, 5, True),  # where this timeline began: both have it
        (1, 6, False),  # gone
        (0, 4, True),  # before, in whatever timeline
        (0, 9, False),
    ],
)
def test_an_evaluation_counts_of_weights_that_are_there(
    timeline: int, version: int, does: bool
) -> None:
    folded = RunState(num_steps=20)
    for number, back_to in ((1, 8), (2, 5)):
        back = {"kind": "went_back", "timeline": number, "version": back_to, "time_s": 1.0}
        folded.fold(back)
    assert folded.counts({"kind": "eval", "timeline": timeline, "version": version}) == does


def test_totals() -> None:
    folded = state()
    assert folded.version == 2
    assert folded.num_trained_groups == 8
    assert folded.lags == Counter({0: 5, 1: 3})
    assert folded.training_wall_s == 20.0
    assert folded.busy_share() == {"learner-0": pytest.approx(0.4), "rollout-0": 0.5}
    assert folded.eta_s(120.0) == pytest.approx(20.0)
    result = folded.result(wall_s=30.0)
    assert result["generated_tokens_per_s"] == 15.0
    assert result["trained_tokens_per_s"] == 10.0


def test_the_line_and_the_table() -> None:
    line = progress_line(state(), 120.0)
    for part in ("step 2/4", "reward 0.500", "held-out 50.0%", "lag 0.38", "ETA 20 s"):
        assert part in line
    rows = dict(closing_rows(state(), wall_s=30.0))
    assert rows["held-out accuracy (greedy)"].startswith("25.0% -> 50.0%  (+25.0 points")
    assert rows["held-out reward (sampled)"].startswith("12.5% -> 25.0%")
    assert rows["lag"] == "mean 0.38 versions (0: 62%, 1: 38%)"


def test_bias_of_what_trained() -> None:
    folded = state()
    assert folded.bias() == {}
    folded.replay = {
        "lengths": {
            "generated_rollouts": 40,
            "generated_tokens": 400,
            "generated_cut": 4,
            "trained_rollouts": 20,
            "trained_tokens": 180,
        },
        "rewards": {
            "generated_groups": 10,
            "generated_sum": 5.0,
            "generated_equal": 3,
            "trained_groups": 5,
            "trained_sum": 3.0,
        },
    }
    bias = folded.result(wall_s=30.0)["bias"]
    expected = {"length_ratio": 0.9, "reward_difference": 0.1, "equal_share": 0.3}
    assert bias == pytest.approx(expected)
    text = dict(closing_rows(folded, wall_s=30.0))["bias"]
    assert text == (
        "trained answers are 10.0% shorter than generated ones, their mean reward 0.100 higher; "
        "30% of generated groups had equal rewards"
    )
    folded.replay = {**folded.replay, "drops": {"zero_variance": 3}}
    assert dict(closing_rows(folded, wall_s=30.0))["bias"] == f"{text}, and were dropped"


def test_nothing_yet() -> None:
    assert "ETA -" in progress_line(RunState(num_steps=4), 0.0)
    assert dict(closing_rows(RunState(num_steps=4), 1.0))["dropped prompts"] == "none"
