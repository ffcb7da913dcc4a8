"""Rewards that raise, hang, die or lie: a typed failure each, and the others' scores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rollout_worker.reward_pool import RewardPool
from rollout_worker.rewards import build_reward
from slipstream.config.job import ExactMatchReward, FunctionReward, ReasoningGymReward
from slipstream.errors import SlipstreamError
from slipstream.records import FailureReason, RolloutFailure

MODULE = """
import os, sys, time

def reward(prompt, answer, item):
    if answer == "raise":
        raise KeyError("no")
    if answer == "sleep":
        time.sleep(60)
    if answer == "spin":
        sum(range(10**12))
    if answer == "die":
        os._exit(7)
    if answer == "exit":
        sys.exit(3)
    if answer == "nan":
        return float("nan")
    if answer == "text":
        return "much"
    return float(len(prompt) + len(answer) + item["bonus"])
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardPool]:
    directory = tmp_path_factory.mktemp("rewards")
    (directory / "my_rewards.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(directory))
        pool = RewardPool(FunctionReward(kind="function", path="my_rewards:reward", timeout_s=2))
        pool.wait_ready()
        yield pool
        pool.close()


def reason(score: Any) -> FailureReason:
    assert isinstance(score, RolloutFailure)
    return score.reason


def test_scores_come_in_order(pool: RewardPool) -> None:
    assert pool.score("ab", ["", "c", "dd"], {"bonus": 10}).result(timeout=20) == [12, 13, 14]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("raise", FailureReason.REWARD_ERROR),
        ("text", FailureReason.REWARD_ERROR),
        ("nan", FailureReason.REWARD_NOT_FINITE),
        ("sleep", FailureReason.REWARD_TIMEOUT),
        ("spin", FailureReason.REWARD_TIMEOUT),
        ("die", FailureReason.REWARD_ERROR),
        ("exit", FailureReason.REWARD_ERROR),
    ],
)
def test_one_bad_answer_costs_only_itself_its_reward(
    pool: RewardPool, answer: str, expected: FailureReason
) -> None:
    first, bad, last = pool.score("", ["a", answer, "bc"], {"bonus": 0}).result(timeout=60)
    assert (first, last) == (1, 2)
    assert reason(bad) is expected


def test_a_slow_import_is_on_nobodys_time(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "slow_rewards.py").write_text("import time\ntime.sleep(1.5)\n" + MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    pool = RewardPool(FunctionReward(kind="function", path="slow_rewards:reward", timeout_s=1))
    pool.wait_ready()
    hangs = pool.score("", ["sleep"], {"bonus": 0}).result(timeout=60)  # its process is killed
    assert reason(hangs[0]) is FailureReason.REWARD_TIMEOUT
    assert pool.score("", ["abc"], {"bonus": 0}).result(timeout=60) == [3]
    pool.close()


def test_it_survives_the_death_of_an_idle_process(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "idle_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    pool = RewardPool(FunctionReward(kind="function", path="idle_rewards:reward", timeout_s=5))
    pool.wait_ready()
    for child in psutil.Process().children(recursive=True):
        if "spawn_main" in " ".join(child.cmdline()):
            child.kill()
    deadline_s = time.monotonic() + 30
    scores: list[Any] = [None]
    while scores != [3]:  # what is asked while the pool notices may fail, by name
        scores = pool.score("", ["abc"], {"bonus": 0}).result(timeout=60)
        assert scores == [3] or reason(scores[0]) is FailureReason.REWARD_ERROR
        assert time.monotonic() < deadline_s
    pool.close()


def test_a_reward_that_cannot_be_imported_says_so(tmp_path: Path) -> None:
    for path in ("no_such_module:reward", "json:no_such_function", "json:__doc__"):
        with pytest.raises(SlipstreamError, match="reward.path"):
            build_reward(FunctionReward(kind="function", path=path))


def test_exact_match_strips() -> None:
    reward = build_reward(ExactMatchReward(kind="exact_match", answer_field="a"))
    assert reward("", " 7\n", {"a": 7}) == 1.0
    assert reward("", "8", {"a": 7}) == 0.0


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_reasoning_gym_verifies_its_own_items() -> None:
    import reasoning_gym

    item = reasoning_gym.create_dataset("chain_sum", size=1, seed=0)[0]
    reward = build_reward(ReasoningGymReward(kind="reasoning_gym"))
    assert reward("", item["answer"], item) == 1.0
    assert reward("", item["answer"] + "0", item) < 1.0
