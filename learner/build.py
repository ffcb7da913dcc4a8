"""Puts a learner rank together from the job file: process group, model, engine, loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from learner import checkpoint
from learner.commit_writer import CommitWriter
from learner.contents import LEARNER, MIB, Contents
from learner.engine import LearnerEngine
from learner.loop import LearnerLoop
from learner.nccl import CallWorkers, NcclPublisher
from learner.policy import Policy, load_critic, load_policy
from learner.ranks import join, limit_collectives
from learner.step import LearnerStep
from learner.weights import ObjectStorePublisher, Prober
from slipstream.config.job import JobConfig
from slipstream.errors import SlipstreamError
from slipstream.protocols import ReplayForLearners, WeightPublisher
from slipstream.records import WeightUpdate
from slipstream.telemetry import EventLog


def build_loop(
    job: JobConfig,
    *,
    replay: ReplayForLearners,
    put: Callable[[Any], Any],
    announce: Callable[[WeightUpdate], None],
    call_workers: CallWorkers,
    rendezvous: tuple[str, int],
    checkpoints: Path,
    timeline: int,
    commit_dir: Path | None,
    events: EventLog,
) -> LearnerLoop:
    """This rank's loop; RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set.

    `commit_dir`: of the verified commit to go on from, the same on every rank.
    """
    torch.manual_seed(job.seed)
    device = join(job)
    policy = load_policy(job.model, has_value_head=job.algorithm.has_value_head)
    engine = LearnerEngine(policy, job, device)
    critic, reference = _critic(job, _vocabulary(engine), device), _reference(job, device)
    step = LearnerStep(job, engine, reference, critic)
    contents = Contents(job=job, engine=engine, critic=critic, reference=reference, step=step)
    version = 0
    if commit_dir is not None:
        version = checkpoint.read_manifest(commit_dir)["version"]
        contents.restore(commit_dir / LEARNER)
    limit_collectives(job.learner.step_timeout_s)
    return LearnerLoop(
        job,
        rank=engine.rank,
        timeline=timeline,
        version=version,
        is_new=commit_dir is None,
        step=step,
        replay=replay,
        publisher=_publisher(job, engine, put, announce, call_workers, rendezvous),
        prober=_prober(job, engine),
        barrier=engine.barrier,
        commits=_commits(job, contents, checkpoints, timeline, replay, events),
        events=events,
    )


def _reference(job: JobConfig, device: torch.device) -> Policy | None:
    """The start model, whole on every rank; only where a KL term needs it."""
    if not job.algorithm.has_reference:
        return None
    reference = load_policy(job.model).to(device).eval().requires_grad_(False)
    return reference.float() if job.algorithm.reference_moves else reference


def _critic(job: JobConfig, vocabulary: int, device: torch.device) -> LearnerEngine | None:
    if not job.algorithm.has_own_critic:
        return None
    path = job.algorithm.critic.path
    critic = load_critic(job.model, path)
    known = critic.hf.config.get_text_config().vocab_size
    if known < vocabulary:
        raise SlipstreamError(
            f"algorithm.critic.path: {path} knows {known} tokens, the policy {vocabulary}; use a "
            "model with the same tokenizer"
        )
    return LearnerEngine(critic, job, device)


def _vocabulary(engine: LearnerEngine) -> int:
    return int(engine.model.hf.config.get_text_config().vocab_size)


def _prober(job: JobConfig, engine: LearnerEngine) -> Prober | None:
    if not job.weights.probe:
        return None
    context = job.data.max_prompt_tokens + job.rollout.max_new_tokens
    return Prober(
        engine,
        vocabulary=_vocabulary(engine),
        max_tokens=context - 1,  # an engine also samples one token
        seed=job.seed,
    )


def _publisher(
    job: JobConfig,
    engine: LearnerEngine,
    put: Callable[[Any], Any],
    announce: Callable[[WeightUpdate], None],
    call_workers: CallWorkers,
    rendezvous: tuple[str, int],
) -> WeightPublisher:
    bucket_bytes = job.weights.bucket_mib * MIB
    match job.weights.transport:
        case "object_store":
            return ObjectStorePublisher(
                engine, bucket_bytes=bucket_bytes, put=put, announce=announce
            )
        case "nccl":
            return NcclPublisher(
                job,
                engine,
                bucket_bytes=bucket_bytes,
                call_workers=call_workers,
                rendezvous=rendezvous,
            )


def _commits(
    job: JobConfig,
    contents: Contents,
    root: Path,
    timeline: int,
    replay: ReplayForLearners,
    events: EventLog,
) -> CommitWriter:
    engine = contents.engine

    def rank_0_says(answer: bool) -> bool:
        said = torch.tensor(float(answer and engine.rank == 0), device=engine.device)
        return bool(engine.all_sum(said))

    def committed(version: int) -> None:
        replay.committed(version, timeline).result(job.replay.call_timeout_s)

    return CommitWriter(
        job,
        root,
        timeline=timeline,
        rank=engine.rank,
        copy=contents.copy,
        rank_0_says=rank_0_says,
        events=events,
        on_committed=committed,
    )
