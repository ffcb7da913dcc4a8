"""Scores answers in processes of their own, with a time limit that kills.

A group is one call. Where that call runs out of time or takes its process with it, each
answer is scored again alone, so that one bad answer costs only itself its reward. Nothing
that goes wrong becomes a number.
"""

from __future__ import annotations

import math
import multiprocessing
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import cache
from typing import Any

from pebble import ProcessExpired, ProcessPool

from rollout_worker.rewards import build_reward
from rollout_worker.semaphores import own_semaphores
from slipstream.config.job import RewardConfig
from slipstream.errors import SlipstreamError
from slipstream.protocols import Reward
from slipstream.records import FailureReason, RolloutFailure

Score = float | RolloutFailure
START_TIMEOUT_S = 120.0


class RewardPool:
    """`config.num_processes` scoring processes, which import the reward at once."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        own_semaphores()
        self._opening = threading.Lock()
        self._pool = self._open()
        self._prepared = self._pool.schedule(_prepare, args=[config], timeout=START_TIMEOUT_S)

    def wait_ready(self) -> None:
        """Until the reward is imported; raises SlipstreamError where that failed."""
        if problem := self._prepared.result():
            raise SlipstreamError(problem)

    def score(
        self, prompt: str, answers: Sequence[str], item: Mapping[str, Any]
    ) -> Future[list[Score]]:
        """One score an answer, in order. The future never raises."""
        scores: Future[list[Score]] = Future()
        try:
            call = self._schedule(prompt, answers, item)
        except RuntimeError as error:  # the pool broke in this moment
            scores.set_result([_failure(error, self._config.timeout_s)] * len(answers))
            return scores

        def on_done(done: Any) -> None:
            try:
                scores.set_result(done.result())
            except BaseException as error:  # the user's code may raise anything; typed below
                if len(answers) == 1:
                    scores.set_result([_failure(error, self._config.timeout_s)])
                else:
                    self._score_singly(prompt, answers, item, scores)

        call.add_done_callback(on_done)
        return scores

    def _open(self) -> ProcessPool:
        """Every process imports the reward as it starts, before any call's time runs."""
        return ProcessPool(
            max_workers=self._config.num_processes,
            context=multiprocessing.get_context("spawn"),
            initializer=_prepare,
            initargs=[self._config],
        )

    def _schedule(self, prompt: str, answers: Sequence[str], item: Mapping[str, Any]) -> Any:
        with self._opening:
            if not self._pool.active:  # it does not survive the death of an idle process
                # Not in this thread, which can be one of the old pool's own.
                threading.Thread(target=_end, args=[self._pool], daemon=True).start()
                self._pool = self._open()
        arguments = [self._config, prompt, list(answers), item]
        return self._pool.schedule(_score, args=arguments, timeout=self._config.timeout_s)

    def close(self) -> None:
        """Kill the processes and wait for them."""
        _end(self._pool)

    def _score_singly(
        self,
        prompt: str,
        answers: Sequence[str],
        item: Mapping[str, Any],
        scores: Future[list[Score]],
    ) -> None:
        singles = [self.score(prompt, [answer], item) for answer in answers]
        missing, counting = len(singles), threading.Lock()

        def on_done(_: Any) -> None:
            nonlocal missing
            with counting:  # a pool that was opened anew has threads of its own
                missing -= 1
                is_last = missing == 0
            if is_last:
                scores.set_result([single.result()[0] for single in singles])

        for single in singles:
            single.add_done_callback(on_done)


def _end(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def _failure(error: BaseException, timeout_s: float) -> RolloutFailure:
    if isinstance(error, FutureTimeoutError):
        return RolloutFailure(
            reason=FailureReason.REWARD_TIMEOUT, detail=f"no reward within {timeout_s} s"
        )
    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, ProcessExpired):
        detail = f"the scoring process died with exit code {error.exitcode}"
    return RolloutFailure(reason=FailureReason.REWARD_ERROR, detail=detail)


# --- in the scoring process -------------------------------------------------------


@cache
def _reward(config_json: str, kind: type[Any]) -> Reward:
    return build_reward(kind.model_validate_json(config_json))


def _prepare(config: RewardConfig) -> str | None:
    try:
        _reward(config.model_dump_json(), type(config))
    except SlipstreamError as error:
        return str(error)
    except BaseException as error:  # pebble ends a process whose initializer raises
        return f"{type(error).__name__}: {error}"
    return None


def _score(
    config: RewardConfig, prompt: str, answers: list[str], item: Mapping[str, Any]
) -> list[Score]:
    reward = _reward(config.model_dump_json(), type(config))
    return [_score_one(reward, prompt, answer, item) for answer in answers]


def _score_one(reward: Reward, prompt: str, answer: str, item: Mapping[str, Any]) -> Score:
    try:
        value = float(reward(prompt, answer, item))
    except BaseException as error:  # the user's code may raise anything, SystemExit too
        return RolloutFailure(
            reason=FailureReason.REWARD_ERROR, detail=f"{type(error).__name__}: {error}"
        )
    if not math.isfinite(value):
        return RolloutFailure(reason=FailureReason.REWARD_NOT_FINITE, detail=str(value))
    return value
