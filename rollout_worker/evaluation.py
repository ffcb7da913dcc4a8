"""Held-out evaluation on the worker's own engine, beside the training rollouts.

Every prompt is answered once greedily and `eval.num_samples` times sampled (temperature 1,
seeded). The worker adopts no version while an evaluation runs, so all answers are of one policy.
How many of them run at once is the caller's to say (`submit`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from rollout_worker.engine import GREEDY, Engine, Generation, GenerationRequest
from rollout_worker.groups import num_answers
from rollout_worker.pass_at import mean_pass_at
from rollout_worker.reward_pool import RewardPool, Score
from slipstream.config.job import JobConfig
from slipstream.records import Prompt, RolloutFailure
from slipstream.telemetry import EventLog
from slipstream.text import Decode

PREFIX = "eval"
SAMPLED = 1.0  # the temperature of all answers but the first
RIGHT = 1.0  # a reward of at least this counts as a right answer
SEED_STEP = 1_000_003  # between the seeds of one prompt's answers: more than there are prompts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """Answer the prompts of each set with `version`, or with the newest where that one is gone."""

    version: int
    sets: Mapping[str, Sequence[Prompt]]


@dataclass(slots=True)
class _Question:
    """A prompt, and what was answered: first greedily, then sampled."""

    set_name: str
    place: int  # in its set
    prompt: Prompt
    answers: dict[int, str] = field(default_factory=dict)  # by number, 0 the greedy one
    scores: Future[list[Score]] | None = None


@dataclass(slots=True)
class _Running:
    evaluation: Evaluation
    timeline: int
    version: int  # that answers
    start_s: float
    questions: list[_Question]
    waiting: deque[tuple[int, int]]  # question and number of the answer, to be submitted
    num_running: int = 0  # submitted and not answered


class Evaluator:
    """One evaluation at a time, of the newest version that is due."""

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
        self._num_answers = 1 + job.eval.num_samples
        # Another thread appends to it, so it is emptied in place.
        self._requested: list[Evaluation] = []
        self._running: _Running | None = None

    @property
    def generating(self) -> bool:
        """Whether answers are being sampled, so that the version must not change."""
        return self.wants_slots or self.num_running > 0

    @property
    def wants_slots(self) -> bool:
        """Whether answers wait to be submitted."""
        return self._running is not None and bool(self._running.waiting)

    @property
    def num_running(self) -> int:
        """Answers in the engine."""
        return 0 if self._running is None else self._running.num_running

    @property
    def idle(self) -> bool:
        return self._running is None and not self.due

    @property
    def due(self) -> bool:
        """Whether an evaluation waits for nothing but its turn."""
        return any(wanted.version <= self._engine.version for wanted in self._requested)

    def request(self, evaluation: Evaluation) -> None:
        """A version that is asked for already, as in another timeline, is evaluated once. For any
        thread."""
        if all(evaluation.version != other.version for other in self._requested):
            self._requested.append(evaluation)

    def start_if_due(self, timeline: int) -> None:
        """Begin the newest one that is due; older ones that still wait are skipped."""
        if self._running is not None or not self.due:
            return
        version = self._engine.version
        due = sorted((e for e in self._requested if e.version <= version), key=lambda e: e.version)
        for wanted in due:
            self._requested.remove(wanted)
        *skipped, evaluation = due
        for other in skipped:
            self._events.emit("eval_skipped", version=other.version, instead=version)
        questions = [
            _Question(name, place, prompt)
            for name, prompts in evaluation.sets.items()
            for place, prompt in enumerate(prompts)
        ]
        self._running = _Running(
            evaluation=evaluation,
            timeline=timeline,
            version=version,
            start_s=time.perf_counter(),
            questions=questions,
            waiting=deque((q, a) for q in range(len(questions)) for a in range(self._num_answers)),
        )
        self._events.emit("eval_started", timeline=timeline, version=version)

    def submit(self, num_free: int) -> None:
        """Submit up to `num_free` answers."""
        running = self._running
        while running is not None and running.waiting and num_free > 0:
            question, number = running.waiting.popleft()
            self._engine.submit(self._request(running.questions[question], question, number))
            running.num_running += 1
            num_free -= 1

    def take(self, generation: Generation) -> bool:
        """Whether the generation was an evaluation's; it is then being scored."""
        if not generation.request_id.startswith(PREFIX):
            return False
        running = self._running
        if running is None:
            return True  # dropped
        running.num_running -= 1
        _, question_number, number = generation.request_id.split("/")
        question = running.questions[int(question_number)]
        question.answers[int(number)] = self._decode(generation.token_ids)
        if len(question.answers) == self._num_answers:
            answers = [question.answers[n] for n in range(self._num_answers)]
            prompt = question.prompt
            question.scores = self._rewards.score(prompt.text, answers, prompt.item)
        return True

    def finish_if_scored(self) -> None:
        """Tell what came of an evaluation once every answer has its reward, set by set."""
        running = self._running
        if running is None or self.generating:
            return
        if not all(q.scores is not None and q.scores.done() for q in running.questions):
            return
        scores: dict[str, list[list[Score]]] = {name: [] for name in running.evaluation.sets}
        for question in running.questions:
            assert question.scores is not None
            scores[question.set_name].append(question.scores.result())
        # All of them before any is told of: the last one tells that it is over.
        found = {name: figures(of_set, self._job.eval.pass_at) for name, of_set in scores.items()}
        for name, of_set in found.items():
            self._events.emit(
                "eval",
                timeline=running.timeline,
                version=running.version,
                set=name,
                **of_set,
                seconds=time.perf_counter() - running.start_s,
            )
        self._running = None

    def drop(self) -> None:
        """Forget what is asked for and what runs; nobody evaluates it then."""
        dropped = []
        if running := self._running:
            dropped.append(running.evaluation)
            questions, numbers = range(len(running.questions)), range(self._num_answers)
            self._engine.abort([_request_id(q, n) for q in questions for n in numbers])
            self._running = None
        while self._requested:
            dropped.append(self._requested.pop(0))
        for evaluation in dropped:
            self._events.emit("eval_dropped", version=evaluation.version)

    def _request(self, question: _Question, index: int, number: int) -> GenerationRequest:
        return GenerationRequest(
            request_id=_request_id(index, number),
            prompt_token_ids=question.prompt.token_ids,
            max_new_tokens=self._job.rollout.max_new_tokens,
            temperature=GREEDY if number == 0 else SAMPLED,
            top_p=1.0,
            seed=self._job.seed + question.place + SEED_STEP * max(0, number - 1),
        )


def figures(scores: Sequence[Sequence[Score]], ks: Iterable[int]) -> dict[str, object]:
    """Of one set: for each prompt the score of its greedy answer, then those of the sampled ones.

    An answer without a reward counts for nothing; a figure of no reward at all is None.
    """
    greedy = _rewards(one[0] for one in scores)
    by_prompt = [_rewards(one[1:]) for one in scores]
    sampled = [reward for rewards in by_prompt for reward in rewards]
    counts = [(len(rewards), sum(r >= RIGHT for r in rewards)) for rewards in by_prompt]
    return {
        "num_prompts": len(scores),
        "num_failures": sum(isinstance(score, RolloutFailure) for one in scores for score in one),
        "greedy_accuracy": _mean([float(reward >= RIGHT) for reward in greedy]),
        "greedy_reward": _mean(greedy),
        "sampled_reward": _mean(sampled),
        "pass_at": {k: mean for k in ks if (mean := mean_pass_at(k, counts)) is not None},
    }


def num_eval_slots(job: JobConfig) -> int:
    """How many answers of an evaluation run at once beside training rollouts: `eval.slot_share`,
    at least one, and leaving room for one group; all of them where there is no such room."""
    slots, share = job.rollout.num_slots, job.eval.slot_share
    num_for_others = slots - num_answers(job)
    if share == 1 or num_for_others < 1:
        return slots
    return max(1, min(int(share * slots), num_for_others))


def _request_id(question: int, number: int) -> str:
    return f"{PREFIX}/{question}/{number}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rewards(scores: Iterable[Score]) -> list[float]:
    return [score for score in scores if not isinstance(score, RolloutFailure)]
