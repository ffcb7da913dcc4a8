"""From events to metrics, with figures worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.metrics import catalog
from orchestrator.metrics.catalog import METRICS, Metric
from orchestrator.metrics.export import Exporter
from orchestrator.metrics.figures import OF_EVAL, OF_STEP, Figures, cause_of
from orchestrator.run_state import RunState
from orchestrator.status import RoleStatus

REPLAY = {
    "num_buffered": 3,
    "num_running": 2,
    "num_requeued": 1,
    "num_issued": 40,
    "num_trained": 30,
    "paused": False,
    "oldest_lease_s": None,
    "drops": {"stale": 4},
    "refusals": {"failed_rollout": 2},
    "failures": {"reward_timeout": 5},
    "lengths": {
        "generated_tokens": 900,
        "generated_rollouts": 90,
        "trained_tokens": 480,
        "trained_rollouts": 60,
    },
    "rewards": {
        "generated_groups": 36,
        "generated_sum": 9.0,
        "generated_equal": 6,
        "trained_groups": 30,
        "trained_sum": 15.0,
    },
}


def step(time_s: float, version: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "kind": "step",
        "role": "learner",
        "index": 0,
        "time_s": time_s,
        "version": version,
        "loss": -0.5,
        "reward": 0.25,
        "lags": {0: 3, 2: 1},
        "num_groups": 4,
        "num_answer_tokens": 120,
        "seconds": {"wait": 1.0, "train": 2.0, "publish": 0.5},
        "metrics": {"entropy": 1.5, "clip_share": 0.1, "updates_skipped": 1},
        **fields,
    }


def busy(time_s: float, index: int = 0, **seconds: float) -> dict[str, Any]:
    place = {"kind": "busy", "role": "rollout", "index": index, "time_s": time_s}
    return {**place, "seconds": seconds, "num_tokens": 60, "num_running": 4, "version": 1}


def role(name: str, state: str = "serving", version: int | None = 1) -> RoleStatus:
    return RoleStatus(
        name=name,
        state=state,
        version=version,
        incarnation=0,
        num_restarts=0,
        node="",
        since_s=0.0,
    )


def value(figures: Figures, metric: Metric, *tags: str) -> float | None:
    return figures.gauges.get((metric, tags))


def test_a_step_gives_the_learners_figures() -> None:
    figures = Figures()
    figures.hear(step(100.0))
    assert value(figures, catalog.REWARD) == 0.25
    assert value(figures, catalog.LOSS) == -0.5
    assert value(figures, catalog.ENTROPY) == 1.5
    assert value(figures, catalog.SKIPPED_UPDATES) == 1
    assert value(figures, catalog.KL_REFERENCE) is None, "there is no reference model"
    assert value(figures, catalog.TRAINING_RATE) is None, "since when is not known yet"
    figures.hear(step(104.0, 2))
    assert value(figures, catalog.STEP_SECONDS) == 4.0
    assert value(figures, catalog.TRAINING_RATE) == 30.0
    assert value(figures, catalog.BUSY_SHARE, "learner", "0") == 2.5 / 4
    assert value(figures, catalog.PHASE_SHARE, "learner", "0", "wait") == 0.25
    assert figures.take_lags() == {0: 6, 2: 2}
    assert figures.take_lags() == {}


def test_a_workers_report_gives_its_rate_and_what_it_did() -> None:
    figures = Figures()
    figures.hear(busy(10.0, adopt=0.5, generate=0.5))
    figures.hear(busy(12.0, generate=1.0, wait=1.0))
    assert value(figures, catalog.GENERATION_RATE, "0") == 30.0
    assert value(figures, catalog.BUSY_SHARE, "rollout", "0") == 0.5
    figures.hear(busy(14.0, wait=2.0))
    assert value(figures, catalog.PHASE_SHARE, "rollout", "0", "generate") == 0, "not any more"
    assert value(figures, catalog.PHASE_SHARE, "rollout", "0", "wait") == 1.0


def test_the_figures_of_weight_sync_are_those_of_both_ends() -> None:
    figures = Figures()
    place = {"role": "learner", "index": 0, "version": 3, "timeline": 0}
    sent = {"gather_s": 0.1, "publish_s": 0.2, "num_bytes": 4000}
    figures.hear({"kind": "published", **place, **sent})
    taken = {"pause_s": 0.4, "wire_s": 0.3, "load_s": 0.25, "since_published_s": 0.7}
    adopted = {"kind": "adopted", "role": "rollout", "index": 1, **taken, "probe_error": None}
    figures.hear(adopted)
    assert value(figures, catalog.SYNC_BYTES) == 4000
    assert value(figures, catalog.SYNC_GATHER) == 0.1
    assert value(figures, catalog.SYNC_PAUSE, "1") == 0.4
    assert value(figures, catalog.SYNC_WIRE, "1") == 0.3
    assert value(figures, catalog.PROBE_ERROR, "1") is None, "there is no probe"


def test_an_evaluation_is_told_by_held_out_set() -> None:
    figures = Figures()
    shares = {"greedy_accuracy": 0.5, "greedy_reward": 0.6, "sampled_reward": 0.4}
    figures.hear({"kind": "eval", "version": 7, **shares, "set": "hard", "pass_at": {"4": 0.9}})
    assert value(figures, catalog.GREEDY_ACCURACY, "hard") == 0.5
    assert value(figures, catalog.PASS_AT, "hard", "4") == 0.9
    figures.hear({"kind": "eval", "version": 8, **shares})
    assert value(figures, catalog.EVAL_VERSION, "eval") == 8
    figures.hear({"kind": "went_back", "version": 7, "cause": "x"})
    evaluated = {tags[0] for metric, tags in figures.gauges if metric in OF_EVAL.values()}
    assert evaluated == {"hard"}, "version 8 is gone"


def test_totals_come_from_replay_and_are_0_before_they_happen() -> None:
    figures = Figures()
    state = RunState(num_steps=9, version=4, timeline=2, replay=REPLAY)
    figures.look(state, [])
    assert value(figures, catalog.BUFFERED_GROUPS) == 3
    assert value(figures, catalog.OLDEST_LEASE) == 0.0
    assert value(figures, catalog.DROPPED_PROMPTS, "stale") == 4
    assert value(figures, catalog.DROPPED_PROMPTS, "quarantined") == 0
    assert value(figures, catalog.REFUSED_GROUPS, "failed_rollout") == 2
    assert value(figures, catalog.FAILED_ROLLOUTS, "reward_timeout") == 5
    assert value(figures, catalog.TRAINED_TOKENS) == 480
    # 480 / 60 tokens of a trained answer, 900 / 90 of a generated one; 15 / 30 less 9 / 36.
    assert value(figures, catalog.LENGTH_RATIO) == 0.8
    assert value(figures, catalog.REWARD_DIFFERENCE) == 0.25
    assert value(figures, catalog.RESTARTS, "learner", "hangs") == 0


def test_roles_are_counted_by_state_and_what_a_gone_one_told_is_forgotten() -> None:
    figures = Figures()
    state = RunState(num_steps=9)
    for time_s in (10.0, 11.0):
        figures.hear(busy(time_s, 0, generate=1.0))
        figures.hear(busy(time_s, 1, generate=1.0))
    figures.look(state, [role("learner-0"), role("rollout-0"), role("rollout-1", "syncing", 0)])
    assert value(figures, catalog.ROLES, "rollout", "syncing") == 1
    assert value(figures, catalog.ROLES, "rollout", "dead") == 0
    assert value(figures, catalog.ROLE_VERSION, "rollout", "1") == 0
    figures.look(state, [role("learner-0"), role("rollout-1", "starting", None)])
    assert value(figures, catalog.ROLES, "rollout", "starting") == 1
    told = {tags for metric, tags in figures.gauges if metric.tags[:1] in (("index",), ("role",))}
    assert not any("1" in tags or tags[:2] == ("rollout", "0") for tags in told)
    figures.hear(busy(60.0, 1, generate=1.0))
    assert value(figures, catalog.GENERATION_RATE, "1") is None, "it did not work all that time"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("rollout-0 does not answer for 8 s (health.heartbeat_timeout_s)", "silent"),
        ("learner-0 hangs: train has taken 61 s (learner.step_timeout_s)", "hangs"),
        ("rollout-1 died: The actor died unexpectedly\n\tpid: 3", "died"),
        ("learner-0: its gradient is not finite", "failed"),
        ("", "failed"),
    ],
)
def test_a_death_has_one_of_few_causes(text: str, cause: str) -> None:
    assert cause_of(text) == cause


def test_restarts_are_counted_by_role_and_cause() -> None:
    figures = Figures()
    died = {"kind": "worker_died", "role": "rollout", "index": 0, "cause": "rollout-0 died: x"}
    for _ in range(2):
        figures.hear(died)
    figures.hear({"kind": "went_back", "version": 3, "cause": "learner-1 does not answer"})
    assert value(figures, catalog.RESTARTS, "rollout", "died") == 2
    lost = "replay died: it is process 7 now"
    figures.hear({"kind": "restarted", "role": "replay", "index": 0, "cause": lost})
    silent = "weights does not answer: silent for 31 s, killed"
    figures.hear({"kind": "restarted", "role": "weights", "index": 0, "cause": silent})
    assert value(figures, catalog.RESTARTS, "learner", "silent") == 1
    assert value(figures, catalog.RESTARTS, "replay", "died") == 1
    assert value(figures, catalog.RESTARTS, "weights", "silent") == 1


def test_every_metric_is_set_by_something() -> None:
    """Those of which an event tells, by the events above and a run that has all of them."""
    figures = Figures()
    everything = dict.fromkeys(OF_STEP, 1.0)
    for time_s in (1.0, 2.0):
        figures.hear(step(time_s, metrics=everything))
        figures.hear(busy(time_s, generate=1.0))
    sent = {"gather_s": 1, "publish_s": 1, "num_bytes": 1}
    figures.hear({"kind": "published", "role": "learner", "index": 0, **sent})
    taken = dict.fromkeys(("pause_s", "wire_s", "load_s", "since_published_s", "probe_error"), 1)
    figures.hear({"kind": "adopted", "role": "rollout", "index": 0, **taken})
    figures.hear({"kind": "commit", "seconds": 1, "pause_s": 1, "version": 1})
    figures.hear({"kind": "commit_failed", "version": 1, "message": "full"})
    shares = {"greedy_accuracy": 1, "greedy_reward": 1, "sampled_reward": 1, "version": 1}
    figures.hear({"kind": "eval", **shares, "pass_at": {1: 1}})
    roles = [role("learner-0"), role("rollout-0")]
    figures.look(RunState(num_steps=9, replay=REPLAY), roles)
    assert {metric for metric, _ in figures.gauges} == set(METRICS) - {catalog.LAG}
    assert figures.take_lags() == {0: 6, 2: 2}


def test_a_broken_exporter_says_so_once_and_the_run_goes_on() -> None:
    said: list[str] = []
    exporter = Exporter("run", said.append)
    exporter.hear({"kind": "step"})
    exporter.hear({"kind": "step"})
    exporter.tick(RunState(num_steps=1), [])
    assert said == ["no metrics any more: KeyError: 'metrics'"]


def test_names_say_their_units() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.endswith("_seconds") == (metric.unit == "seconds")
        assert metric.name.endswith("_bytes") == (metric.unit == "bytes")
        assert not metric.name.endswith("_total"), "that is how counters end"
    assert catalog.LAG.series[0] == "ray_slipstream_lag_bucket"
