"""Figures of events, by hand."""

from __future__ import annotations

from typing import Any

from orchestrator.trackers.curves import Curves, Figures


def event(kind: str, at_s: float, role: str = "rollout", **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "role": role, "index": 1, "time_s": at_s, **fields}


def step(version: int, at_s: float, num_tokens: int = 100) -> dict[str, Any]:
    return event(
        "step",
        at_s,
        role="learner",
        version=version,
        loss=0.5,
        reward=0.25,
        lags={"0": 3, "2": 1},
        num_groups=4,
        num_rollouts=8,
        num_answer_tokens=num_tokens,
        tokens_sha256="ab",
        seconds={"train": 1.5},
        metrics={"grad_norm": 2.0},
    )


def values(figures: Figures | None) -> dict[str, float]:
    assert figures is not None
    return dict(figures.values)


def test_a_step() -> None:
    figures = Curves().hear(step(3, 10.0))
    assert figures is not None
    assert (figures.version, figures.at_s, figures.is_return) == (3, 10.0, False)
    assert figures.values == {
        "train/loss": 0.5,
        "train/reward": 0.25,
        "train/lag": 0.5,
        "train/answer_tokens": 12.5,
        "learner/grad_norm": 2.0,
        "seconds/train": 1.5,
    }


def test_rates_are_counted_from_step_to_step_over_some_seconds() -> None:
    curves = Curves()
    curves.hear(event("busy", 9.0, num_tokens=1000))  # before the first step
    curves.hear(step(1, 10.0))
    curves.hear(event("busy", 11.0, num_tokens=300))
    assert "throughput/step_s" not in values(curves.hear(step(2, 12.0)))
    curves.hear(event("busy", 19.0, num_tokens=500))
    found = values(curves.hear(step(3, 20.0, num_tokens=60)))
    assert found["throughput/step_s"] == 5.0
    assert found["throughput/generated_tokens_per_s"] == 80.0
    assert found["throughput/trained_tokens_per_s"] == 16.0


def test_after_a_return_rates_begin_anew() -> None:
    curves = Curves()
    curves.hear(step(1, 10.0))
    back = curves.hear(event("went_back", 15.0, "driver", version=0, timeline=1, cause="x"))
    assert back == Figures(version=0, at_s=15.0, is_return=True)
    assert "throughput/step_s" not in values(curves.hear(step(1, 30.0)))


def test_every_set_and_every_worker_has_curves_of_its_own() -> None:
    curves = Curves()
    held_out = event("eval", 1.0, version=5, timeline=0, greedy_accuracy=0.5, num_prompts=20)
    assert values(curves.hear(held_out)) == {"eval/greedy_accuracy": 0.5, "eval/num_prompts": 20.0}
    named = {**held_out, "set": "hard", "pass_at": {"1": 0.25, "8": 0.75}}
    assert values(curves.hear(named)) == {
        "eval/hard/greedy_accuracy": 0.5,
        "eval/hard/num_prompts": 20.0,
        "eval/hard/pass_at_1": 0.25,
        "eval/hard/pass_at_8": 0.75,
    }
    adopted = event("adopted", 1.0, version=5, timeline=0, load_s=0.5, probe_error=None)
    assert values(curves.hear(adopted)) == {"sync/rollout-1/load_s": 0.5}


def test_other_events_have_no_figures() -> None:
    curves = Curves()
    assert curves.hear(event("sample", 1.0, ordinal=3)) is None
    assert curves.hear(event("worker_died", 1.0, cause="x")) is None
