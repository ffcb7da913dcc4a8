"""Puts an estimate together: the job, the model's shape, the devices and the mean lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from orchestrator.estimate import memory as memories
from orchestrator.estimate.lengths import work_of
from orchestrator.estimate.memory import GIB, Cache, Memory
from orchestrator.estimate.modes import MODES, Balance, Parts, balance_of, mode_time
from orchestrator.estimate.report import Estimate, Machine, Mean
from orchestrator.estimate.shape import ModelShape
from orchestrator.estimate.speed import generation_of, handover_of, training_s
from slipstream.config.job import JobConfig
from slipstream.config.presets import PRESETS

# What a rank keeps while engines work on its GPU.
KEPT = ("weights", "gradients", "optimizer", "buckets", "reference")


def estimate(
    job: JobConfig, shape: ModelShape, machine: Machine, *, prompt: Mean, answer: Mean
) -> Estimate:
    """Everything, from the job, the model's shape, the devices and the mean lengths."""
    work = work_of(
        job, prompt_tokens=prompt.tokens, answer_tokens=answer.tokens, hidden=shape.hidden
    )
    rollout, learner = machine.rollout, machine.learner
    rank = memories.rank_memory(
        job,
        shape,
        work,
        device_bytes=learner.memory_bytes or machine.memory_bytes,
        is_gpu=not learner.is_core,
    )
    engine, cache = memories.engine_memory(
        job, shape, work, device_bytes=rollout.memory_bytes or machine.memory_bytes
    )
    most = max(1, min(job.rollout.num_slots, cache.sequences_at_mean))
    parts = Parts(
        generation=generation_of(job, shape, work, rollout, most_sequences=most),
        training_s=training_s(job, shape, work, learner),
        handover=handover_of(job, shape, learner, rollout, across_nodes=False),
        host_s=learner.costs.group_s * work.num_groups + learner.costs.version_s,
        between_s=learner.costs.handover_s,
    )
    far = handover_of(job, shape, learner, rollout, across_nodes=True)
    on_cores = rollout.is_core and learner.is_core
    modes = tuple(
        mode_time(
            mode,
            replace(parts, handover=far) if mode == "multinode" else parts,
            max_staleness=_staleness(job, mode),
            num_cores=machine.num_cores * learner.costs.crowd_share if on_cores else None,
        )
        for mode in MODES
    )
    return Estimate(
        job=job,
        shape=shape,
        machine=machine,
        prompt=prompt,
        answer=answer,
        work=work,
        rank=rank,
        engine=engine,
        cache=cache,
        parts=parts,
        modes=modes,
        balance=_balance(job, parts),
        advice=tuple(_advice(job, machine, rank, engine, cache)),
    )


def _staleness(job: JobConfig, mode: str) -> int:
    """The job's own in its mode. In others what they set, and no less than the job allows."""
    if mode == job.mode:
        return job.replay.max_staleness
    preset = int(PRESETS[mode]["replay"]["max_staleness"])
    return max(preset, job.replay.max_staleness) if mode != "sync" else 0


def _balance(job: JobConfig, parts: Parts) -> Balance | None:
    rollout, learner = job.rollout, job.learner
    if rollout.colocate:
        return None  # each device does both
    return balance_of(
        parts.generation.flow_s + parts.handover.adopt_s,
        parts.training_s + parts.handover.publish_s,
        num_rollout=rollout.num_workers * (rollout.gpus or rollout.cpus),
        num_learner=learner.num_ranks * (learner.gpus_per_rank or learner.cpus_per_rank),
    )


def _advice(
    job: JobConfig, machine: Machine, rank: Memory, engine: Memory, cache: Cache
) -> Iterator[str]:
    yield from memories.advice_for_rank(job, rank)
    yield from memories.advice_for_engine(job, engine, cache)
    if job.rollout.gpus and job.rollout.colocate:
        kept = sum(rank.parts.get(name, 0.0) for name in KEPT)
        free = 1 - kept / machine.learner.memory_bytes
        if job.rollout.gpu_memory_share > free:
            yield (
                f"rollout.gpu_memory_share={max(0.05, free - 0.05):.2f}: on shared GPUs the ranks "
                f"keep {kept / GIB:.1f} GiB while engines work"
            )
    if machine.learner.is_core and machine.rollout.is_core:
        learner, rollout = job.learner, job.rollout
        total = learner.num_ranks * rank.total_bytes + rollout.num_workers * engine.total_bytes
        if rank.fits and engine.fits and total > machine.memory_bytes:
            yield (
                f"all roles together need {total / GIB:.1f} GiB, this machine has "
                f"{machine.memory_bytes / GIB:.1f}: lower rollout.kv_cache_gib, "
                "rollout.num_workers or learner.num_ranks"
            )
