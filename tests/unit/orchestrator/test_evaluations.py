from __future__ import annotations

from typing import Any

from orchestrator.evaluations import MAX_DEATHS, Evaluations, UnderWay


class Workers:
    """Those that can be asked, and what was asked of whom."""

    def __init__(self, *names: str) -> None:
        self.present = list(names)
        self.asked: list[tuple[int, str]] = []

    def ask(self, version: int) -> str | None:
        if not self.present:
            return None
        self.asked.append((version, self.present[0]))
        return self.present[0]


def test_what_was_done_with_weights_that_are_gone_is_asked_for_again() -> None:
    asked: list[int] = []

    def ask(version: int) -> str:
        asked.append(version)
        return "rollout-1 0"

    evaluations = Evaluations(ask)
    evaluations.want(7)
    evaluations.tick({"rollout-1 0"})
    evaluations.missed("rollout-10")
    evaluations.tick({"rollout-1 0"})
    assert asked == [7]
    evaluations.missed("rollout-1")
    evaluations.tick({"rollout-1 0"})
    assert asked == [7, 7]


def test_each_is_asked_for_once() -> None:
    workers = Workers("a", "b")
    evaluations = Evaluations(workers.ask)
    for version in (0, 0, 4, 2):  # 2 is older than what was wanted
        evaluations.want(version)
        evaluations.tick(workers.present)
    assert workers.asked == [(0, "a"), (4, "a")]
    assert not evaluations.is_done
    evaluations.heard({"version": 4})
    evaluations.want(4)
    evaluations.tick(workers.present)
    assert evaluations.is_done
    assert len(workers.asked) == 2


def test_another_one_is_asked_when_the_one_that_was_is_gone() -> None:
    workers = Workers("a", "b")
    evaluations = Evaluations(workers.ask)
    evaluations.want(3)
    evaluations.tick(workers.present)
    workers.present = ["b"]
    evaluations.tick(workers.present)
    evaluations.tick(workers.present)
    assert workers.asked == [(3, "a"), (3, "b")]


def test_what_will_never_be_is_forgotten_and_the_last_version_is_evaluated() -> None:
    workers = Workers("a")
    evaluations = Evaluations(workers.ask)
    evaluations.want(10)  # in advance
    evaluations.tick(workers.present)
    evaluations.finish(7)  # where the job was stopped
    evaluations.tick(workers.present)
    assert workers.asked == [(10, "a"), (7, "a")]


def test_after_the_last_weights_nothing_is_waited_for() -> None:
    workers = Workers("a")
    evaluations = Evaluations(workers.ask)
    evaluations.want(10)
    evaluations.finish(7)  # where the job was stopped
    evaluations.want(10)  # the next multiple, as the driver wants at every look
    evaluations.tick(workers.present)
    assert workers.asked == [(7, "a")]
    evaluations.heard({"version": 7})
    assert evaluations.is_done


def test_nobody_can_be_asked_for_a_while() -> None:
    workers = Workers()
    evaluations = Evaluations(workers.ask)
    evaluations.want(0)
    evaluations.tick(workers.present)
    assert not evaluations.is_done
    workers.present = ["a"]
    evaluations.tick(workers.present)
    evaluations.tick(workers.present)
    assert workers.asked == [(0, "a")]


def test_newer_weights_answer_for_older_ones() -> None:
    workers = Workers("a")
    evaluations = Evaluations(workers.ask)
    for version in (2, 4, 6):
        evaluations.want(version)
    evaluations.heard({"version": 5})
    evaluations.tick(workers.present)
    assert workers.asked == [(6, "a")]
    evaluations.heard({"version": 4})
    assert not evaluations.is_done
    evaluations.heard({"version": 6})
    assert evaluations.is_done


def test_weights_that_are_gone_are_not_evaluated_and_those_that_come_instead_are() -> None:
    workers = Workers("a")
    evaluations = Evaluations(workers.ask)
    for version in (4, 6):
        evaluations.want(version)
    evaluations.tick(workers.present)
    evaluations.forget_after(5)
    evaluations.heard({"version": 4})
    assert evaluations.is_done, "6 is gone"
    evaluations.want(4)
    assert evaluations.is_done, "4 is still there, and was evaluated"
    evaluations.want(6)
    evaluations.tick(workers.present)
    assert workers.asked == [(4, "a"), (6, "a"), (6, "a")]


def test_what_workers_die_of_again_and_again_is_given_up() -> None:
    workers = Workers("a 0")
    evaluations = Evaluations(workers.ask)
    evaluations.want(10)
    given_up: list[int] = []
    for incarnation in range(MAX_DEATHS):
        assert not given_up
        evaluations.tick(workers.present)
        assert evaluations.died("b 0", 10) == [], "another one"
        assert evaluations.died(f"a {incarnation}", 9) == [], "older weights, not this evaluation"
        given_up = evaluations.died(f"a {incarnation}", 10)
        workers.present = [f"a {incarnation + 1}"]
    assert given_up == [10]
    assert evaluations.is_done
    evaluations.want(20)
    assert not evaluations.is_done


def test_an_evaluation_gets_on_while_its_worker_makes_tokens() -> None:
    under_way = UnderWay()

    def hear(kind: str, index: int, time_s: float, **fields: Any) -> tuple[list[int], float]:
        under_way.heard({"kind": kind, "index": index, "time_s": time_s, **fields})
        return list(under_way.versions.values()), under_way.worked_at_s

    assert hear("busy", 0, 1.0, num_tokens=9) == ([], 0.0)
    assert hear("eval_started", 0, 2.0, version=10) == ([10], 2.0)
    assert hear("busy", 0, 3.0, num_tokens=9) == ([10], 3.0)
    assert hear("busy", 0, 4.0, num_tokens=0) == ([10], 3.0)
    assert hear("busy", 1, 5.0, num_tokens=9) == ([10], 3.0), "of another worker"
    for kind in ("eval", "eval_dropped", "worker_died", "worker_left"):
        hear("eval_started", 0, 6.0, version=10)
        assert hear(kind, 0, 7.0) == ([], 6.0)
