"""An evaluation of a model's own weights, in this process: no other role, and every slot for it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rollout_worker.build import build_engine
from rollout_worker.engine import Engine
from rollout_worker.evaluation import Evaluation, Evaluator
from rollout_worker.reward_pool import RewardPool
from slipstream.config.job import JobConfig
from slipstream.records import Prompt
from slipstream.telemetry import EventLog
from slipstream.text import decoder, load_tokenizer

SCORING_S = 0.01  # between two looks at answers that are being scored


def evaluate_alone(
    job: JobConfig, sets: Mapping[str, Sequence[Prompt]], cores: Sequence[int]
) -> list[dict[str, Any]]:
    """The `eval` events of the model that `job` names, one for each set.

    Raises SlipstreamError where the reward or the tokenizer cannot be loaded.
    """
    if job.rollout.engine == "vllm":
        from rollout_worker.vllm_engine import import_vllm

        import_vllm(job.rollout, cores)
    rewards = RewardPool(job.reward)
    try:
        rewards.wait_ready()
        tokenizer = load_tokenizer(job.model)
        events = EventLog("eval", 0)
        engine = build_engine(job, tokenizer, "eval")
        try:
            evaluator = Evaluator(job, engine, rewards, decoder(tokenizer), events)
            evaluator.request(Evaluation(version=engine.version, sets=sets))
            _run(evaluator, engine, job.rollout.num_slots)
        finally:
            engine.close()
    finally:
        rewards.close()
    return [event for event in events.drain() if event["kind"] == "eval"]


def _run(evaluator: Evaluator, engine: Engine, num_slots: int) -> None:
    evaluator.start_if_due(timeline=0)
    while not evaluator.idle:
        evaluator.submit(num_slots - engine.num_running)
        if engine.num_running:
            for generation in engine.step():
                evaluator.take(generation)
        else:
            time.sleep(SCORING_S)
        evaluator.finish_if_scored()
