"""Which commit is the best, and that it stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from learner import best
from learner.checkpoint import name_of, steps, version_of
from learner.commit_files import prune
from orchestrator.best import BestKeeper
from slipstream.config.job import JobConfig
from tests.helpers.jobs import make_job

SOURCE = {"kind": "reasoning_gym", "task": "chain_sum", "size": 10}


def job(metric: str | None = "greedy_accuracy", **checkpoint: Any) -> JobConfig:
    return make_job(
        data={"eval": SOURCE, "eval_sets": {"hard": SOURCE}, "eval_every_steps": 10},
        checkpoint={"keep_best": metric, "keep_last": 1, **checkpoint},
    )


def commit(root: Path, *versions: int, timeline: int = 0) -> None:
    for version in versions:
        (root / name_of(version, timeline)).mkdir(parents=True)


def evaluated(
    version: int, accuracy: float | None, *, set_name: str = "eval", num_failures: int = 0
) -> dict[str, Any]:
    sampled = None if accuracy is None else -accuracy
    figures = {"greedy_accuracy": accuracy, "greedy_reward": 0.0, "sampled_reward": sampled}
    counts = {"num_prompts": 10, "num_failures": num_failures}  # of 20 answers
    return {"kind": "eval", "index": 0, "version": version, "set": set_name, **figures, **counts}


def started(version: int, worker: int = 0) -> dict[str, Any]:
    return {"kind": "eval_started", "index": worker, "version": version}


def committed(version: int) -> dict[str, Any]:
    return {"kind": "commit", "version": version}


def versions(root: Path) -> list[int]:
    return sorted(version_of(path) for path in steps(root))


def pruned(root: Path) -> list[int]:
    prune(root, 1, best.kept(root))
    return versions(root)


def test_a_commit_is_the_best_where_it_is_better_than_all_before(tmp_path: Path) -> None:
    keeper = BestKeeper(job(), tmp_path)
    commit(tmp_path, 0, 10, 20, 30)
    told = [
        (event["version"], event["value"], event["set"], event["path"])
        for version, accuracy in ((0, 0.2), (10, 0.5), (20, 0.5), (30, 0.4))
        for event in keeper.heard(evaluated(version, accuracy))
    ]
    path = tmp_path / name_of(10, 0)
    assert told == [
        (0, 0.2, "eval", str(tmp_path / name_of(0, 0))),
        (10, 0.5, "eval", str(path)),
    ]
    found = best.read_best(tmp_path)
    assert found is not None
    assert (found.commit, found.value, found.metric) == (path.name, 0.5, "greedy_accuracy")
    assert keeper.heard(evaluated(30, 0.9, set_name="hard")) == []


def test_the_set_and_the_metric_are_those_asked_for(tmp_path: Path) -> None:
    keeper = BestKeeper(job("sampled_reward", best_set="hard"), tmp_path)
    commit(tmp_path, 0, 10)
    events = [evaluated(0, 0.5, set_name="hard"), evaluated(10, 0.25, set_name="hard")]
    told = [event["value"] for heard in events for event in keeper.heard(heard)]
    assert told == [-0.5, -0.25]
    assert keeper.heard(evaluated(10, -1.0)) == []


def test_an_evaluation_waits_for_its_commit_and_no_longer(tmp_path: Path) -> None:
    keeper = BestKeeper(job(), tmp_path)
    assert keeper.heard(evaluated(7, 0.9)) == []
    assert keeper.heard(evaluated(10, 0.8)) == []
    commit(tmp_path, 10)
    assert [event["version"] for event in keeper.heard(committed(10))] == [10]
    commit(tmp_path, 7)  # cannot be; it was given up
    assert keeper.heard(committed(20)) == []


def test_the_best_and_what_is_not_decided_outlive_pruning(tmp_path: Path) -> None:
    keeper = BestKeeper(job(), tmp_path)
    commit(tmp_path, 0, 10, 20)
    assert pruned(tmp_path) == [0, 10, 20], "the driver has not said anything yet"
    for event in (evaluated(0, 0.1), evaluated(10, 0.9)):
        keeper.heard(event)
    keeper.heard(started(20))
    commit(tmp_path, 30, 40, 45, 50)
    keeper.tick(50)
    assert pruned(tmp_path) == [10, 20, 40, 50], "best, running, and the newest multiples"
    commit(tmp_path, 60)
    assert pruned(tmp_path) == [10, 20, 40, 50, 60]
    keeper.heard(evaluated(20, 0.2))
    keeper.tick(60)
    assert pruned(tmp_path) == [10, 50, 60]
    keeper.heard(evaluated(50, 0.95))
    commit(tmp_path, 70, 80)
    keeper.tick(80)
    assert pruned(tmp_path) == [50, 70, 80]


def test_every_commit_that_is_evaluated_stays(tmp_path: Path) -> None:
    keeper = BestKeeper(job(), tmp_path)
    commit(tmp_path, 0, 10, 20, 30, 40, 50)
    for worker, version in enumerate((0, 10, 20)):
        keeper.heard(started(version, worker))
    keeper.heard({"kind": "worker_died", "index": 0})
    keeper.tick(50)
    assert pruned(tmp_path) == [10, 20, 40, 50]
    for kind, worker in (("eval_dropped", 1), ("worker_left", 2)):
        keeper.heard({"kind": kind, "index": worker, "version": 0})
    keeper.tick(50)
    assert pruned(tmp_path) == [40, 50]


def test_evaluations_that_failed_are_never_the_best(tmp_path: Path) -> None:
    keeper = BestKeeper(job(), tmp_path)
    commit(tmp_path, 0, 10)
    assert keeper.heard(evaluated(0, None, num_failures=2)) == []
    assert keeper.heard(evaluated(0, 0.9, num_failures=3)) == []
    assert [event["value"] for event in keeper.heard(evaluated(10, 0.5, num_failures=2))] == [0.5]


def test_without_it_nothing_is_written(tmp_path: Path) -> None:
    keeper = BestKeeper(job(None), tmp_path)
    commit(tmp_path, 0)
    keeper.heard(evaluated(0, 0.5))
    keeper.tick(10)
    keeper.go_back(0)
    assert [path.name for path in tmp_path.iterdir()] == [name_of(0, 0)]


def test_it_is_still_known_when_the_run_goes_on(tmp_path: Path) -> None:
    commit(tmp_path, 0, 10)
    BestKeeper(job(), tmp_path).heard(evaluated(10, 0.5))
    resumed = BestKeeper(job(), tmp_path)
    known = resumed.event
    assert known is not None
    assert (known["version"], known["value"]) == (10, 0.5)
    commit(tmp_path, 20, timeline=1)
    assert resumed.heard(evaluated(20, 0.4)) == []
    other = BestKeeper(job("greedy_reward"), tmp_path)
    assert best.read_best(tmp_path) is None, "it was chosen by something else"
    assert [event["version"] for event in other.heard(evaluated(20, 0.4))] == [20]


def test_weights_that_are_gone_are_not_the_best(tmp_path: Path) -> None:
    keeper = BestKeeper(job(), tmp_path)
    commit(tmp_path, 0, 10, 20)
    for event in (evaluated(0, 0.1), evaluated(20, 0.9), evaluated(25, 0.95)):
        keeper.heard(event)
    (tmp_path / name_of(20, 0)).rename(tmp_path / f"aside-{name_of(20, 0)}")
    keeper.go_back(10)
    assert best.read_best(tmp_path) is None
    assert not (tmp_path / best.BEST).exists()
    commit(tmp_path, 25, timeline=1)
    assert keeper.heard(committed(25)) == [], "another version 25 was evaluated"
    assert [event["version"] for event in keeper.heard(evaluated(25, 0.3))] == [25]


def test_the_best_stays_where_the_run_goes_back_to_a_later_commit(tmp_path: Path) -> None:
    keeper = BestKeeper(job(), tmp_path)
    commit(tmp_path, 0, 10, 20)
    keeper.heard(evaluated(10, 0.9))
    keeper.go_back(20)
    assert keeper.heard(evaluated(20, 0.5)) == []
    assert pruned(tmp_path) == [10, 20]


def test_files_that_are_no_such_files_name_no_commit(tmp_path: Path) -> None:
    commit(tmp_path, 0)
    for content in ("", "[]", '{"commit": "../x"}', '{"commit": 1}'):
        (tmp_path / best.BEST).write_text(content)
        (tmp_path / best.UNDECIDED).write_text("no JSON")
        assert best.read_best(tmp_path) is None
        assert [path.name for path in best.kept(tmp_path)] == [name_of(0, 0)]
