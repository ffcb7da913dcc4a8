"""Evaluations beside training rollouts, with a scripted engine and replay in this process."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from replay.scripted import scripted_prompt
from rollout_worker.engine import GREEDY, Generation, GenerationRequest
from rollout_worker.evaluation import figures, num_eval_slots
from rollout_worker.pass_at import mean_pass_at, pass_at
from rollout_worker.scripted_engine import ScriptedEngine
from slipstream.records import FailureReason, Prompt, RolloutFailure
from tests.helpers.jobs import make_job
from tests.helpers.workers import World

FAILED = RolloutFailure(reason=FailureReason.REWARD_ERROR, detail="no")


class Watched(ScriptedEngine):
    """Notes what was asked for, what runs, and by which version answers were made."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[GenerationRequest] = []
        self.steps: list[Counter[bool]] = []  # of each: how many are an evaluation's, and not
        self.versions: set[int] = set()  # of evaluations' answers
        self._running: set[str] = set()

    def submit(self, request: GenerationRequest) -> None:
        self.requests.append(request)
        self._running.add(request.request_id)
        super().submit(request)

    def step(self) -> list[Generation]:
        self.steps.append(Counter(name.startswith("eval") for name in self._running))
        done = super().step()
        for generation in done:
            self._running.discard(generation.request_id)
            if generation.request_id.startswith("eval"):
                self.versions |= {span.version for span in generation.spans}
        return done


def watched(world: World, **sections: Any) -> Watched:
    engine = Watched()
    world.job = make_job(**sections)
    world.engine = engine
    world.worker = world.make_worker()
    return engine


def prompts(count: int) -> list[Prompt]:
    return [scripted_prompt(ordinal) for ordinal in range(count)]


def finished(world: World) -> list[dict[str, Any]]:
    """Every event up to the end of an evaluation."""
    found: list[dict[str, Any]] = []

    def is_over() -> bool:
        found.extend(map(dict, world.events.drain()))
        return any(event["kind"] == "eval" for event in found)

    world.turn_until(is_over)
    return found


# --- pass@k -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "num_samples", "num_right", "chance"),
    [
        (1, 4, 1, 0.25),
        (2, 4, 1, 0.5),  # 1 - C(3, 2) / C(4, 2) = 1 - 3/6
        (4, 4, 1, 1.0),
        (3, 5, 2, 0.9),  # 1 - C(3, 3) / C(5, 3) = 1 - 1/10
        (2, 6, 0, 0.0),
        (1, 1, 1, 1.0),
    ],
)
def test_pass_at_k_by_hand(k: int, num_samples: int, num_right: int, chance: float) -> None:
    assert pass_at(k, num_samples, num_right) == pytest.approx(chance)


def test_prompts_with_too_few_rewards_do_not_count() -> None:
    assert mean_pass_at(2, [(4, 1), (2, 2), (1, 1)]) == pytest.approx((0.5 + 1.0) / 2)
    assert mean_pass_at(2, [(1, 1)]) is None


def test_the_figures_of_a_set_by_hand() -> None:
    scores = [
        [1.0, 0.0, 1.0, 0.0, 0.0],  # right greedily, and 1 of 4
        [0.5, 1.0, 1.0, FAILED, 0.0],  # not right, and 2 of 3
        [FAILED, 0.0, 0.0, 0.0, 0.0],
    ]
    assert figures(scores, (1, 4)) == {
        "num_prompts": 3,
        "num_failures": 2,
        "greedy_accuracy": 0.5,
        "greedy_reward": 0.75,
        "sampled_reward": pytest.approx(3 / 11),
        "pass_at": {1: pytest.approx((1 / 4 + 2 / 3 + 0) / 3), 4: pytest.approx((1 + 0) / 2)},
    }
    assert figures([[1.0, FAILED]], (1,))["pass_at"] == {}


def test_a_figure_of_no_reward_is_none_and_not_zero() -> None:
    found = figures([[FAILED, FAILED]], (1,))
    assert (found["num_failures"], found["pass_at"]) == (2, {})
    assert {found[key] for key in ("greedy_accuracy", "greedy_reward", "sampled_reward")} == {None}


# --- slots ------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "slots"), [(0.25, 4), (0.01, 1), (0.99, 12), (1.0, 16)])
def test_the_share_leaves_room_for_a_group(share: float, slots: int) -> None:
    assert num_eval_slots(make_job(eval={"slot_share": share})) == slots  # of 16, groups of 4


def test_without_room_for_a_group_it_takes_all_slots() -> None:
    assert num_eval_slots(make_job(rollout={"num_slots": 4, "group_size": 4})) == 4
    world = World(num_steps=50)
    engine = watched(world, rollout={"num_slots": 4, "group_size": 4}, eval={"num_samples": 3})
    world.receiver.publish(0)
    world.worker.request_evaluation(0, {"eval": prompts(8)})
    finished(world)
    assert max(step[True] for step in engine.steps) == 4


def test_training_groups_are_finished_within_their_slots_while_it_runs() -> None:
    world = World(max_staleness=9, num_steps=50)
    engine = watched(world, replay={"max_staleness": 9})
    world.receiver.publish(0)
    world.worker.request_evaluation(0, {"eval": prompts(40)})
    finished(world)
    shared = [step for step in engine.steps if step[False]]
    assert max(step[True] for step in shared) == 4, "a quarter of 16 slots"
    assert max(step[False] for step in shared if step[True] == 4) == 12, "groups have the others"
    assert max(step.total() for step in engine.steps) == 16
    assert world.buffer.stats()["num_buffered"] > 8


def test_it_takes_the_slots_that_nobody_else_can_use() -> None:
    world = World(max_staleness=1)  # 8 groups, then replay has nothing more
    engine = watched(world)
    world.receiver.publish(0)
    world.worker.request_evaluation(0, {"eval": prompts(200)})
    finished(world)
    assert world.buffer.stats()["num_buffered"] == 8
    assert all(step[True] <= 4 for step in engine.steps if step[False])
    assert max(step[True] for step in engine.steps) == 16


def test_groups_come_back_while_it_has_more_than_its_share() -> None:
    world = World(max_staleness=1, num_steps=50)
    engine = watched(world)
    world.receiver.publish(0)
    world.worker.request_evaluation(0, {"eval": prompts(400)})
    world.turn_until(lambda: bool(engine.steps) and engine.steps[-1][True] == 16)
    batch = world.batch(0)
    world.buffer.discard(0, number=batch.number)  # room for more, of the same version
    since = len(engine.steps)
    world.turn_until(lambda: engine.steps[-1][False] >= 12)
    world.turn_until(lambda: engine.steps[-1][True] <= 4, turns=60)
    assert len(engine.steps) - since < 60
    assert world.worker.version == 0


# --- versions ---------------------------------------------------------------------


def test_every_answer_is_of_one_version_though_newer_ones_come() -> None:
    world = World(max_staleness=9, num_steps=50)
    engine = watched(world, eval={"num_samples": 3, "pass_at": [1, 3]})
    world.receiver.publish(0)
    world.worker.request_evaluation(0, {"first": prompts(3), "second": prompts(2)})
    world.turn_until(lambda: bool(engine.steps))
    world.receiver.publish(1)
    events = finished(world)
    assert [(e["kind"], e["version"]) for e in events if e["kind"].startswith("eval")] == [
        ("eval_started", 0),
        ("eval", 0),
        ("eval", 0),
    ]
    assert engine.versions == {0}
    told = [event for event in events if event["kind"] == "eval"]
    assert [(event["set"], event["num_prompts"]) for event in told] == [("first", 3), ("second", 2)]
    assert all(set(event["pass_at"]) == {1, 3} for event in told)
    world.turn_until(lambda: world.engine.version == 1)


def test_each_prompt_is_answered_once_greedily_and_by_different_seeds() -> None:
    world = World()
    engine = watched(world, eval={"num_samples": 3})
    world.receiver.publish(0)
    world.worker.request_evaluation(0, {"eval": prompts(5)})
    finished(world)
    asked = [request for request in engine.requests if request.request_id.startswith("eval")]
    greedy = [request for request in asked if request.temperature == GREEDY]
    sampled = [request for request in asked if request.temperature == 1.0]
    assert (len(greedy), len(sampled), len(asked)) == (5, 15, 20)
    assert len({request.seed for request in sampled}) == 15


def test_while_it_runs_nothing_is_leased_that_needs_newer_weights() -> None:
    world = World(max_staleness=1, num_steps=50)
    watched(world)
    world.receiver.publish(0)
    world.batch(0)
    world.buffer.trained(1)  # which this worker has not adopted
    world.turn_until(lambda: any(r.min_version == 1 for r in world.buffer.state.running.values()))
    world.worker.request_evaluation(0, {"eval": prompts(100)})
    world.turn_until(lambda: world.buffer.stats()["reissues"].get("pinned", 0) > 0)
    other = world.buffer.lease("rollout-1", 0, 4, 0.0)
    assert other.leases, "others get them"
    finished(world)
    running = world.buffer.state.running.values()
    assert all(r.min_version == 0 for r in running if r.worker == "rollout-0")


def test_of_those_that_waited_too_long_the_newest_is_evaluated() -> None:
    world = World()
    watched(world)
    world.receiver.publish(3)
    for version in (1, 3, 2, 9):
        world.worker.request_evaluation(version, {"eval": prompts(1)})
    events = [e for e in finished(world) if e["kind"].startswith("eval")]
    skipped = [(e["version"], e["instead"]) for e in events if e["kind"] == "eval_skipped"]
    assert skipped == [(1, 3), (2, 3)]
    assert [e["version"] for e in events if e["kind"] == "eval"] == [3]


def test_it_is_dropped_where_the_run_goes_back() -> None:
    world = World(max_staleness=9, num_steps=50)
    watched(world)
    world.receiver.publish(0)
    world.worker.request_evaluation(0, {"eval": prompts(1000)})
    world.turn_until(lambda: world.engine.num_running > 4)
    world.buffer.state.timeline = 1
    world.receiver.publish(0, timeline=1)
    world.turn_until(lambda: bool(world.events_of("eval_dropped")))
    world.turn_until(lambda: world.worker.beat().timeline == 1)
