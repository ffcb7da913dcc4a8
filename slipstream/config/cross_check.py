"""Combinations of settings that cannot work, each in words with its remedy. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from slipstream.config.algorithm import GeometricMask, IcepopCorrection
from slipstream.config.job import JobConfig, PlacementConfig

Finding = tuple[str, str]  # dotted key, message
MIN_CALL_TIMEOUT_S = 5.0


def cross_check(job: JobConfig) -> list[Finding]:
    """Everything that single fields cannot tell."""
    checks = (_devices, _staleness, _precision, _algorithm, _batches, _weights, _times)
    return [finding for check in checks for finding in check(job)]


def _devices(job: JobConfig) -> Iterator[Finding]:
    rollout, learner = job.rollout, job.learner
    if not rollout.colocate:
        return
    if rollout.placement != PlacementConfig():
        yield (
            "rollout.placement",
            "shared devices are placed by learner.placement; set that instead",
        )
    if rollout.gpus != learner.gpus_per_rank:
        yield (
            "rollout.colocate",
            f"engines with {rollout.gpus} GPUs cannot share the devices of ranks with "
            f"{learner.gpus_per_rank}; make rollout.gpus and learner.gpus_per_rank equal",
        )
    if rollout.gpus and rollout.num_workers != learner.num_ranks:
        yield (
            "rollout.num_workers",
            f"{rollout.num_workers} workers cannot share the GPUs of {learner.num_ranks} ranks one "
            "to one; make the numbers equal, or set rollout.colocate: false",
        )


def _staleness(job: JobConfig) -> Iterator[Finding]:
    replay = job.replay
    if job.rollout.colocate and replay.max_staleness > 0:
        yield (
            "replay.max_staleness",
            f"is {replay.max_staleness}, but on shared devices generation and training take turns, "
            "so nothing is ever stale; set it to 0, or set rollout.colocate: false",
        )
    if replay.on_stale == "clip" and job.algorithm.correction.kind == "none":
        yield (
            "replay.on_stale",
            "clip trains groups past the bound, which needs truncated importance weights; set "
            "algorithm.correction: {kind: truncated}",
        )
    if replay.whole_batches and replay.select != "fifo":
        yield (
            "replay.select",
            "whole batches go in the order of the stream; set it to fifo, or set "
            "replay.whole_batches: false",
        )
    if replay.whole_batches and replay.max_uses > 1:
        yield (
            "replay.max_uses",
            "whole batches of consecutive prompts are never reused; set it to 1, or set "
            "replay.whole_batches: false",
        )
    if job.rollout.colocate and replay.max_uses > 1:
        yield "replay.max_uses", "needs devices of its own; set rollout.colocate: false"


def _precision(job: JobConfig) -> Iterator[Finding]:
    if job.model.dtype == "bfloat16" and job.learner.zero_stage == 0:
        yield (
            "learner.zero_stage",
            "bfloat16 gradients are summed in float32 under ZeRO 1 to 3 only; set it to 1",
        )


def _algorithm(job: JobConfig) -> Iterator[Finding]:
    algorithm, kl, entropy = job.algorithm, job.algorithm.kl, job.algorithm.entropy
    if kl.adaptive is not None and kl.coefficient == 0:
        yield "algorithm.kl.adaptive", "starts from algorithm.kl.coefficient; set that above 0"
    if entropy.target is not None and entropy.coefficient == 0:
        yield (
            "algorithm.entropy.target",
            "starts from algorithm.entropy.coefficient; set that above 0",
        )
    if algorithm.overlong.buffer_tokens > job.rollout.max_new_tokens:
        yield (
            "algorithm.overlong.buffer_tokens",
            f"{algorithm.overlong.buffer_tokens} is more than the longest answer "
            f"({job.rollout.max_new_tokens} tokens, rollout.max_new_tokens); lower it",
        )
    for key, band in (("correction", algorithm.correction), ("mask", algorithm.mask)):
        if isinstance(band, IcepopCorrection | GeometricMask) and band.low >= band.high:
            yield (
                f"algorithm.{key}.low",
                f"{band.low:g} is not below high ({band.high:g}), so no token would train",
            )
    one_update = algorithm.epochs * algorithm.minibatches == 1
    if algorithm.max_kl is not None and one_update:
        yield (
            "algorithm.max_kl",
            "ends the passes over a batch early, and there is only one; raise algorithm.epochs or "
            "algorithm.minibatches",
        )
    if algorithm.rate is not None and algorithm.rate.kind == "kl" and one_update:
        yield (
            "algorithm.rate",
            "KL to pi_old is 0 where a step is one update; raise algorithm.epochs or "
            "algorithm.minibatches, or set kind: lag",
        )
    if kl.reference_step > 0 and kl.coefficient == 0:
        yield "algorithm.kl.reference_step", "no reference without algorithm.kl.coefficient above 0"


def _batches(job: JobConfig) -> Iterator[Finding]:
    rollout, learner, algorithm = job.rollout, job.learner, job.algorithm
    num_answers = rollout.group_size + algorithm.needs_greedy
    if rollout.num_slots < num_answers:
        yield (
            "rollout.num_slots",
            f"{rollout.num_slots} slots do not hold one group of {num_answers}; raise it to at "
            "least that",
        )
    if rollout.group_size == 1 and algorithm.advantage.kind in ("grpo", "rloo"):
        yield (
            "rollout.group_size",
            f"with one rollout a group, every {algorithm.advantage.kind} advantage is 0; use 2 or "
            "more, or algorithm.advantage: {kind: reinforce}",
        )
    if rollout.group_size == 1 and job.replay.dynamic_sampling:
        yield (
            "replay.dynamic_sampling",
            "drops groups of equal rewards, which a group of one always is; raise "
            "rollout.group_size",
        )
    if algorithm.minibatches > learner.groups_per_batch:
        yield (
            "algorithm.minibatches",
            f"{learner.groups_per_batch} groups cannot be cut into {algorithm.minibatches} parts; "
            "lower it to at most learner.groups_per_batch",
        )
    if learner.warmup_steps >= learner.num_steps:
        yield (
            "learner.warmup_steps",
            f"{learner.warmup_steps} steps of warm-up leave none of {learner.num_steps}; lower it",
        )


def _weights(job: JobConfig) -> Iterator[Finding]:
    weights = job.weights
    if weights.transport == "nccl" and not (job.rollout.gpus and job.learner.gpus_per_rank):
        yield (
            "weights.transport",
            "nccl needs GPUs on both sides; use object_store, or set rollout.gpus and "
            "learner.gpus_per_rank",
        )
    if weights.transport == "object_store" and job.rollout.gpus > 1:
        yield (
            "weights.transport",
            f"an engine on {job.rollout.gpus} GPUs takes weights over nccl only; set it to nccl, "
            "or set rollout.gpus to 1",
        )
    if weights.transport == "nccl" and job.rollout.colocate:
        yield (
            "weights.transport",
            "nccl cannot connect two processes on one GPU; use object_store on shared devices",
        )
    if weights.probe and job.model.dtype == "bfloat16" and weights.max_probe_error < 0.05:
        yield (
            "weights.max_probe_error",
            f"{weights.max_probe_error:g} is less than two bfloat16 programs differ by anyhow; "
            "set it to 0.3",
        )


def _times(job: JobConfig) -> Iterator[Finding]:
    watchdog_s = job.telemetry.watchdog_s
    if job.replay.call_timeout_s < MIN_CALL_TIMEOUT_S:
        yield (
            "replay.call_timeout_s",
            f"replay may hold a call for a second before it answers; set it to "
            f"{MIN_CALL_TIMEOUT_S:g} or more",
        )
    scoring_s = (1 + job.rollout.group_size) * job.reward.timeout_s
    if job.replay.lease_timeout_s <= scoring_s:
        yield (
            "replay.lease_timeout_s",
            f"{job.replay.lease_timeout_s:g} s is less than a group of hanging answers takes to "
            f"score, {scoring_s:g} s (reward.timeout_s for the group and each answer); raise it",
        )
    for key, deadline_s in (
        ("replay.lease_timeout_s", job.replay.lease_timeout_s),
        ("replay.call_timeout_s", job.replay.call_timeout_s),
        ("learner.start_timeout_s", job.learner.start_timeout_s),
        ("weights.timeout_s", job.weights.timeout_s),
        ("reward.timeout_s", job.reward.timeout_s),
    ):
        if watchdog_s <= deadline_s:
            yield (
                "telemetry.watchdog_s",
                f"{watchdog_s:g} s would end the job before {key} ({deadline_s:g} s) does its "
                "work; raise it above",
            )
