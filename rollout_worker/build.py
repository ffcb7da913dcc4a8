"""Puts a rollout worker together from the job file: engine, scoring processes, loop."""

from __future__ import annotations

import os
from typing import Any

from rollout_worker.engine import Engine
from rollout_worker.receiver import Get, ObjectStoreReceiver, WaitNewer
from rollout_worker.reward_pool import RewardPool
from rollout_worker.scripted_engine import ScriptedEngine
from rollout_worker.vllm_engine import VllmEngine
from rollout_worker.worker import RolloutWorker
from slipstream.config.job import JobConfig
from slipstream.protocols import ReplayForWorkers
from slipstream.telemetry import EventLog
from slipstream.text import decoder, eos_token_ids, load_tokenizer

SCRIPTED_VOCABULARY = 24  # small, so that answers end
SCRIPTED_STEP_S = 0.005
POISON = "SLIPSTREAM_SCRIPTED_POISON"  # an environment variable, for tests of failures


def build_worker(
    job: JobConfig,
    name: str,
    incarnation: int,
    *,
    replay: ReplayForWorkers,
    wait_newer: WaitNewer,
    get: Get,
    events: EventLog,
) -> RolloutWorker:
    """A worker whose engine runs where `import_vllm` has said."""
    rewards = RewardPool(job.reward)
    tokenizer = load_tokenizer(job.model)
    engine = build_engine(job, tokenizer, name)
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


def build_engine(job: JobConfig, tokenizer: Any, name: str) -> Engine:
    """Holds the weights of `model.path` as version -1, until others are loaded."""
    is_measured = job.telemetry.enabled and job.telemetry.engine_metrics
    metrics_name = f"{job.name}/{name}" if is_measured else None
    eos = eos_token_ids(job.model, tokenizer)
    match job.rollout.engine:
        case "vllm":
            return VllmEngine(
                job.model,
                job.rollout,
                max_tokens=job.data.max_prompt_tokens + job.rollout.max_new_tokens,
                eos_token_ids=eos,
                seed=job.seed,
                transport=job.weights.transport,
                metrics_name=metrics_name,
            )
        case "scripted":
            return ScriptedEngine(
                num_slots=job.rollout.num_slots,
                vocabulary=min(SCRIPTED_VOCABULARY, len(tokenizer)),
                eos_token_id=eos[0],
                step_s=SCRIPTED_STEP_S,
                poison=os.environ.get(POISON, ""),
            )
