"""Held-out evaluation on the worker's own engine, beside the training rollouts.

Every prompt is answered once greedily and once sampled (temperature 1, seeded). The worker
adopts no version while an evaluation runs, so all of its answers are of one policy.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from rollout_worker.engine import GREEDY, Engine, Generation, GenerationRequest
from rollout_worker.reward_pool import RewardPool, Score
from slipstream.config.job import JobConfig
from slipstream.records import Prompt, RolloutFailure
from slipstream.telemetry import EventLog
from slipstream.text import Decode

PREFIX = "eval"
SAMPLED = 1.0  # the temperature of the second answer
RIGHT = 1.0  # a reward of at least this counts as a right answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Answer `prompts` with `version`, or with the newest where that one is gone."""

    version: int
    prompts: tuple[Prompt, ...]


@dataclass(slots=True)
class _Running:
    evaluation: Evaluation
    timeline: int
    version: int  # that answers
    start_s: float
    missing: int
    answers: dict[int, dict[float, str]] = field(default_factory=dict)  # place -> by temperature
    calls: list[Future[list[Score]]] = field(default_factory=list)  # [greedy, sampled] each


class Evaluator:
    """One evaluation at a time, in the order asked for."""

    def __init__(
        self,
        job: JobConfig,
        engine: Engine,
        rewards: RewardPool,
        decode: Decode,
        events: EventLog,
    ) -> None:
        self._job = job
        self._engine = engine
        self._rewards = rewards
        self._decode = decode
        self._events = events
        self._requested: list[Evaluation] = []
        self._running: _Running | None = None

    @property
    def generating(self) -> bool:
        """Whether answers are being sampled, so that the version must not change."""
        return self._running is not None and self._running.missing > 0

    @property
    def idle(self) -> bool:
        return self._running is None and not self.due

    @property
    def due(self) -> bool:
        """Whether an evaluation waits for nothing but its turn."""
        return any(wanted.version <= self._engine.version for wanted in self._requested)

    def request(self, evaluation: Evaluation) -> None:
        """A version that is asked for already, as in another timeline, is evaluated once."""
        if all(evaluation.version != other.version for other in self._requested):
            self._requested.append(evaluation)

    def start_if_due(self, timeline: int) -> None:
        if self._running is not None or not self.due:
            return
        # When the run goes back, one of a later version may have been asked for before.
        evaluation = min(self._requested, key=lambda wanted: wanted.version)
        self._requested.remove(evaluation)
        self._running = _Running(
            evaluation=evaluation,
            timeline=timeline,
            version=self._engine.version,
            start_s=time.perf_counter(),
            missing=2 * len(evaluation.prompts),
        )
        for place, prompt in enumerate(evaluation.prompts):
            for temperature in (GREEDY, SAMPLED):
                self._engine.submit(self._request(prompt, place, temperature))

    def take(self, generation: Generation) -> bool:
        """Whether the generation was an evaluation's; it is then being scored."""
        if not generation.request_id.startswith(PREFIX):
            return False
        running = self._running
        if running is None:
            return True  # dropped
        _, place, temperature = generation.request_id.split("/")
        answers = running.answers.setdefault(int(place), {})
        answers[float(temperature)] = self._decode(generation.token_ids)
        if len(answers) == 2:
            prompt = running.evaluation.prompts[int(place)]
            pair = [answers[GREEDY], answers[SAMPLED]]
            running.calls.append(self._rewards.score(prompt.text, pair, prompt.item))
        running.missing -= 1
        return True

    def finish_if_scored(self) -> None:
        running = self._running
        if running is None or running.missing or not all(call.done() for call in running.calls):
            return
        pairs = [call.result() for call in running.calls]
        greedy, sampled = (_rewards(pair[which] for pair in pairs) for which in (0, 1))
        self._events.emit(
            "eval",
            timeline=running.timeline,
            version=running.version,
            num_prompts=len(pairs),
            num_failures=2 * len(pairs) - len(greedy) - len(sampled),
            greedy_accuracy=sum(reward >= RIGHT for reward in greedy) / max(1, len(greedy)),
            greedy_reward=sum(greedy) / max(1, len(greedy)),
            sampled_reward=sum(sampled) / max(1, len(sampled)),
            seconds=time.perf_counter() - running.start_s,
        )
        self._running = None

    def drop(self) -> None:
        """Forget what is asked for and what runs; nobody evaluates it then."""
        dropped, self._requested = self._requested, []
        if running := self._running:
            dropped.insert(0, running.evaluation)
            places = range(len(running.evaluation.prompts))
            self._engine.abort([_request_id(p, t) for p in places for t in (GREEDY, SAMPLED)])
            self._running = None
        for evaluation in dropped:
            self._events.emit("eval_dropped", version=evaluation.version)

    def _request(self, prompt: Prompt, place: int, temperature: float) -> GenerationRequest:
        return GenerationRequest(
            request_id=_request_id(place, temperature),
            prompt_token_ids=prompt.token_ids,
            max_new_tokens=self._job.rollout.max_new_tokens,
            temperature=temperature,
            top_p=1.0,
            seed=self._job.seed + place,
        )


def _request_id(place: int, temperature: float) -> str:
    return f"{PREFIX}/{place}/{temperature}"


def _rewards(scores: Iterable[Score]) -> list[float]:
    return [score for score in scores if not isinstance(score, RolloutFailure)]
