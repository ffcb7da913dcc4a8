"""Combinations of settings that cannot work, each in words with its remedy. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from slipstream.config.algorithm import CriticConfig, GeometricMask, IcepopCorrection
from slipstream.config.job import MAIN_SET, JobConfig, PlacementConfig, PriorityConfig

Finding = tuple[str, str]  # dotted key, message
MIN_CALL_TIMEOUT_S = 5.0
COMMIT = r"[0-9a-f]{40}"


def cross_check(job: JobConfig) -> list[Finding]:
    """Everything that single fields cannot tell."""
    checks = (
        _code,
        _devices,
        _engine,
        _workers,
        _autoscale,
        _staleness,
        _precision,
        _terms,
        _policies,
        _batches,
        _evaluation,
        _weights,
        _times,
        _telemetry,
    )
    return [finding for check in checks for finding in check(job)]


def _code(job: JobConfig) -> Iterator[Finding]:
    model = job.model
    if not model.trust_remote_code:
        return
    if not re.fullmatch(COMMIT, model.revision or ""):
        yield (
            "model.trust_remote_code",
            "runs the Python code of whoever may change the model; set model.revision to a commit "
            "that you have read, 40 hexadecimal digits",
        )
    if model.tokenizer is not None:
        yield "model.tokenizer", "model.revision does not pin its code; remove it"
    if job.algorithm.has_own_critic and job.algorithm.critic.path is not None:
        yield "algorithm.critic.path", "model.revision does not pin its code; remove it"


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


def _engine(job: JobConfig) -> Iterator[Finding]:
    if job.rollout.engine != "scripted":
        return
    if job.weights.probe:
        yield (
            "weights.probe",
            "the scripted engine has no model whose log-probs could be the learner's; set it to "
            "false",
        )
    if job.rollout.gpus:
        yield "rollout.gpus", "the scripted engine has no use for GPUs; set it to 0"


def _workers(job: JobConfig) -> Iterator[Finding]:
    fewest, num_workers = job.rollout.quorum, job.rollout.num_workers
    if fewest is not None and fewest > num_workers:
        yield (
            "rollout.quorum",
            f"training would wait for {fewest} workers, and only {num_workers} are started; lower "
            "it, or raise rollout.num_workers",
        )


def _autoscale(job: JobConfig) -> Iterator[Finding]:
    scale, num_workers = job.rollout.autoscale, job.rollout.num_workers
    if scale is None:
        return
    if not scale.min_workers <= num_workers <= scale.max_workers:
        yield (
            "rollout.autoscale",
            f"the job starts with rollout.num_workers, {num_workers}, which must lie within "
            f"min_workers and max_workers, {scale.min_workers} to {scale.max_workers}",
        )
    if job.rollout.colocate:
        yield (
            "rollout.autoscale",
            "on shared devices the workers are as many as the devices; remove it, or set "
            "rollout.colocate: false",
        )
    if job.weights.transport == "nccl":
        yield (
            "rollout.autoscale",
            "with weights.transport: nccl the engines are one group, which nobody joins or leaves; "
            "remove it, or set weights.transport: object_store",
        )


def _staleness(job: JobConfig) -> Iterator[Finding]:
    replay = job.replay
    other = "choose mode: buffered" if job.mode != "buffered" else "set {key}: false"
    if job.rollout.colocate and replay.max_staleness > 0:
        yield (
            "replay.max_staleness",
            f"is {replay.max_staleness}, but in mode {job.mode} generation and training take turns "
            "on shared devices, so nothing is ever stale; set it to 0, or "
            + other.format(key="rollout.colocate"),
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
            f"mode {job.mode} hands over whole batches in the order of the stream; set it to fifo, "
            "or " + other.format(key="replay.whole_batches"),
        )
    if replay.priority != PriorityConfig() and replay.select != "priority":
        yield (
            "replay.priority",
            f"nothing is drawn by priority with replay.select: {replay.select}; set that to "
            "priority, or remove this",
        )
    if replay.whole_batches and replay.max_uses > 1:
        yield (
            "replay.max_uses",
            f"mode {job.mode} hands over whole batches, each of which trains once; set it to 1, or "
            + other.format(key="replay.whole_batches"),
        )
    if job.rollout.colocate and replay.max_uses > 1:
        yield "replay.max_uses", "needs devices of its own; set rollout.colocate: false"


def _precision(job: JobConfig) -> Iterator[Finding]:
    if job.model.dtype == "bfloat16" and job.learner.zero_stage == 0:
        yield (
            "learner.zero_stage",
            "bfloat16 gradients are summed in float32 under ZeRO 1 to 3 only; set it to 1",
        )


def _terms(job: JobConfig) -> Iterator[Finding]:
    """KL, entropy, shaping."""
    algorithm, kl, entropy = job.algorithm, job.algorithm.kl, job.algorithm.entropy
    if kl.adaptive is not None and not algorithm.has_reference:
        yield "algorithm.kl.adaptive", "starts from algorithm.kl.coefficient; set that above 0"
    if kl.reference_step > 0 and not algorithm.has_reference:
        yield "algorithm.kl.reference_step", "no reference without algorithm.kl.coefficient above 0"
    num_rollouts = job.learner.groups_per_batch * job.rollout.group_size
    if kl.adaptive is not None and kl.adaptive.horizon < num_rollouts:
        yield (
            "algorithm.kl.adaptive.horizon",
            f"{kl.adaptive.horizon} is less than the {num_rollouts} rollouts of one step, so that "
            "the coefficient would jump; raise it",
        )
    if algorithm.has_reference and (kl.estimator, kl.place) == ("k1", "loss"):
        yield (
            "algorithm.kl.estimator",
            "k1 as a term of the loss has no gradient on average; set it to k2 or k3, or set "
            "place: reward",
        )
    if algorithm.kl_in_reward and algorithm.overlong.filter:
        yield (
            "algorithm.kl.place",
            "KL of answers that algorithm.overlong.filter leaves out is not computed, and their "
            "rewards would be better than the others'; set it to loss",
        )
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
    if algorithm.critic != CriticConfig() and not algorithm.has_critic:
        yield (
            "algorithm.critic",
            f"{algorithm.advantage.kind} has no critic; use algorithm.advantage: {{kind: gae}}, or "
            "remove it",
        )
    if algorithm.has_value_head:
        if algorithm.critic.path is not None:
            yield "algorithm.critic.path", "a shared critic starts from the policy; remove it"
        if algorithm.critic.learning_rate != CriticConfig().learning_rate:
            yield (
                "algorithm.critic.learning_rate",
                "a shared critic learns at learner.learning_rate; remove it, or set coefficient",
            )
        if algorithm.critic.warmup_steps:
            yield (
                "algorithm.critic.warmup_steps",
                "the policy cannot stand still while a shared critic learns; set it to 0, or set "
                "shared: false",
            )


def _policies(job: JobConfig) -> Iterator[Finding]:
    """What compares pi, pi_old and mu where two of them are the same."""
    algorithm = job.algorithm
    for key, band in (("correction", algorithm.correction), ("mask", algorithm.mask)):
        if isinstance(band, IcepopCorrection | GeometricMask) and band.low >= band.high:
            yield (
                f"algorithm.{key}.low",
                f"{band.low:g} is not below high ({band.high:g}), so no token would train",
            )
    if algorithm.old_logprobs == "behaviour":
        same = "with algorithm.old_logprobs: behaviour pi_old is what sampled"
        if algorithm.mask is not None and algorithm.mask.kind == "geometric":
            yield "algorithm.mask", f"{same}, and nothing is ever masked; set that to learner"
        if algorithm.loss.kind == "policy_gradient":
            yield "algorithm.loss", f"{same}, which this loss leaves out; set that to learner"
        if algorithm.trust_region is not None:
            yield (
                "algorithm.trust_region",
                f"{same}, and old samples are outside before any update; set that to learner",
            )
    elif not algorithm.pi_leaves_pi_old:
        alone = (
            "KL to pi_old is 0 where a step has one update; raise algorithm.epochs or .minibatches"
        )
        if algorithm.max_kl is not None:
            yield "algorithm.max_kl", alone
        if algorithm.rate is not None and algorithm.rate.kind == "kl":
            yield "algorithm.rate", f"{alone}, or set kind: lag"
        if algorithm.loss.kind == "ppo_kl" and algorithm.loss.target is not None:
            yield "algorithm.loss.target", f"{alone}, or leave it out"


def _batches(job: JobConfig) -> Iterator[Finding]:
    rollout, learner, algorithm = job.rollout, job.learner, job.algorithm
    num_answers = rollout.group_size + algorithm.needs_greedy
    if rollout.num_slots < num_answers:
        yield (
            "rollout.num_slots",
            f"{rollout.num_slots} slots do not hold one group of {num_answers}; raise it to at "
            "least that",
        )
    advantage = algorithm.advantage
    baseline = getattr(advantage, "baseline", None)
    if rollout.group_size == 1 and (
        advantage.kind in ("grpo", "rloo") or baseline in ("optimal", "group_mean")
    ):
        yield (
            "rollout.group_size",
            f"with one rollout a group, every {advantage.kind} advantage is 0; use 2 or more, or "
            "algorithm.advantage: {kind: reinforce, baseline: batch_mean}",
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


def _evaluation(job: JobConfig) -> Iterator[Finding]:
    data, checkpoint, most = job.data, job.checkpoint, max(job.eval.pass_at, default=0)
    if most > job.eval.num_samples:
        yield (
            "eval.pass_at",
            f"pass@{most} needs as many answers of each prompt, and eval.num_samples is "
            f"{job.eval.num_samples}; raise that, or lower this",
        )
    if MAIN_SET in data.eval_sets:
        yield "data.eval_sets", f"{MAIN_SET} is the name of the set of data.eval; choose another"
    if checkpoint.keep_best is not None and not data.held_out:
        yield (
            "checkpoint.keep_best",
            "there is no held-out set to say which is the best; set data.eval, or remove this",
        )
    if checkpoint.best_set is None:
        return
    if checkpoint.keep_best is None:
        yield "checkpoint.best_set", "needs checkpoint.keep_best; set that, or remove this"
    elif data.held_out and checkpoint.best_set not in data.held_out:
        yield (
            "checkpoint.best_set",
            f"no held-out set is named {checkpoint.best_set}; there is {', '.join(data.held_out)}",
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
    if job.health.call_timeout_s < MIN_CALL_TIMEOUT_S:
        yield (
            "health.call_timeout_s",
            f"a weight board that does not answer for half of it is killed; set it to "
            f"{MIN_CALL_TIMEOUT_S:g} or more",
        )
    num_answers = job.rollout.group_size + job.algorithm.needs_greedy
    scoring_s = (1 + num_answers) * job.reward.timeout_s
    if job.replay.lease_timeout_s <= scoring_s:
        yield (
            "replay.lease_timeout_s",
            f"{job.replay.lease_timeout_s:g} s is less than a group of hanging answers takes to "
            f"score, {scoring_s:g} s (reward.timeout_s for the group and each answer); raise it",
        )
    deadlines_s = {
        "replay.lease_timeout_s": job.replay.lease_timeout_s,
        "replay.call_timeout_s": job.replay.call_timeout_s,
        "rollout.start_timeout_s": job.rollout.start_timeout_s,
        "rollout.step_timeout_s": job.rollout.step_timeout_s,
        "rollout.grace_s": job.rollout.grace_s,
        "learner.start_timeout_s": job.learner.start_timeout_s,
        "learner.step_timeout_s": job.learner.step_timeout_s,
        "weights.timeout_s": job.weights.timeout_s,
        "reward.timeout_s": job.reward.timeout_s,
        "health.heartbeat_timeout_s": job.health.heartbeat_timeout_s,
        "health.call_timeout_s": job.health.call_timeout_s,
    }
    key, longest_s = max(deadlines_s.items(), key=lambda item: item[1])
    if watchdog_s <= longest_s:
        yield (
            "telemetry.watchdog_s",
            f"{watchdog_s:g} s would end the job before {key}, {longest_s:g} s, is over; raise it "
            "above that, or lower that",
        )


def _telemetry(job: JobConfig) -> Iterator[Finding]:
    if job.telemetry.trackers and not job.telemetry.enabled:
        yield (
            "telemetry.trackers",
            "trackers get nothing with telemetry.enabled: false; set one or the other",
        )
