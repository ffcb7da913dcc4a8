"""Puts a rollout worker together from the job file: engine, scoring processes, loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rollout_worker.receiver import ObjectStoreReceiver, WaitNewer
from rollout_worker.reward_pool import RewardPool
from rollout_worker.vllm_engine import VllmEngine
from rollout_worker.worker import RolloutWorker
from slipstream.config.job import JobConfig
from slipstream.protocols import ReplayForWorkers
from slipstream.telemetry import EventLog
from slipstream.text import decoder, eos_token_ids, load_tokenizer


def build_worker(
    job: JobConfig,
    name: str,
    incarnation: int,
    *,
    replay: ReplayForWorkers,
    wait_newer: WaitNewer,
    get: Callable[[Any], Any],
    events: EventLog,
) -> RolloutWorker:
    """A worker whose engine runs where `import_vllm` has said."""
    rewards = RewardPool(job.reward)
    tokenizer = load_tokenizer(job.model)
    engine = VllmEngine(
        job.model,
        job.rollout,
        max_tokens=job.data.max_prompt_tokens + job.rollout.max_new_tokens,
        eos_token_ids=eos_token_ids(job.model, tokenizer),
        seed=job.seed,
        transport=job.weights.transport,
    )
    rewards.wait_ready()
    return RolloutWorker(
        job,
        name,
        incarnation,
        engine=engine,
        replay=replay,
        receiver=ObjectStoreReceiver(wait_newer, get),
        rewards=rewards,
        decode=decoder(tokenizer),
        events=events,
    )
