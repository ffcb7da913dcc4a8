"""Seconds of one step's parts: generating, training, handing weights over. Formulas: docs/plan.md.

B sequences, T tokens, P parameters, V words, H hidden, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.estimate.devices import Device
from orchestrator.estimate.lengths import Work
from orchestrator.estimate.shape import ModelShape
from slipstream.config.job import JobConfig

PREFIX_BLOCK = 16  # tokens; whole blocks of a prompt are shared by the answers of its group


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Of one batch, by all workers side by side."""

    concurrency: float  # answers decoded at once by one engine
    alone_s: float  # from nothing to the last answer: the longest ones are waited for
    flow_s: float  # where the next batch's answers fill the slots that come free


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """Of one version's weights."""

    num_bytes: float
    publish_s: float  # the learner is held up
    wire_s: float  # on the way, while both sides go on, except where they wait for it
    adopt_s: float  # an engine is held up


def decode_step_s(
    job: JobConfig, shape: ModelShape, device: Device, num_sequences: float, context: float
) -> float:
    """One token for each sequence: the weights, read or multiplied, whichever takes longer; the
    cache, read; and what calls cost."""
    costs = device.costs
    size = 2 if job.model.dtype == "bfloat16" else 4
    params = shape.num_layers * shape.layer_params + shape.head_params
    bytes_per_s = device.memory_bytes_per_s * costs.bandwidth_share
    rate = device.peak(job.model.dtype) * costs.decode_share
    weights_s = max(size * params / bytes_per_s, 2 * num_sequences * params / rate)
    cache_s = size * num_sequences * context * shape.kv_numbers_per_token / bytes_per_s
    calls_s = costs.engine_step_s + shape.num_layers * costs.layer_s
    return (weights_s + cache_s) / _width(job, device) + calls_s + num_sequences * costs.token_s


def _width(job: JobConfig, device: Device) -> int:
    """Devices of one engine."""
    return job.rollout.cpus if device.is_core else job.rollout.gpus


def generation_of(
    job: JobConfig, shape: ModelShape, work: Work, device: Device, *, most_sequences: int
) -> Generation:
    """`most_sequences`: that an engine's slots and KV cache hold."""
    answers = work.num_answers / job.rollout.num_workers  # of one engine
    concurrency = max(1.0, min(most_sequences, answers))
    context = work.prompt_tokens + work.answer_tokens / 2
    flow_steps = answers * work.answer_tokens / concurrency
    tail_steps = max(0.0, work.longest_answer - work.answer_tokens)
    steps = flow_steps + tail_steps
    begin_s = _prompts_s(job, shape, work, device) + answers * device.costs.request_s

    def decoding_s(num_sequences: float) -> float:
        return decode_step_s(job, shape, device, num_sequences, context)

    return Generation(
        concurrency=concurrency,
        alone_s=begin_s + steps * decoding_s(answers * work.answer_tokens / steps),
        flow_s=begin_s + flow_steps * decoding_s(concurrency),
    )


def _prompts_s(job: JobConfig, shape: ModelShape, work: Work, device: Device) -> float:
    """To read the prompts of one engine; their whole blocks once for all answers of a group."""
    shared = max(0, int(work.prompt_tokens - 1)) // PREFIX_BLOCK * PREFIX_BLOCK
    tokens = work.num_groups * shared + work.num_answers * (work.prompt_tokens - shared)
    flops = 2 * tokens * (shape.num_layers * shape.layer_params) + 2 * tokens * (
        work.prompt_tokens * device.costs.causal_share * _attention_width(shape)
    )
    rate = device.peak(job.model.dtype) * device.costs.prompt_share * _width(job, device)
    return flops / rate / job.rollout.num_workers


def training_s(job: JobConfig, shape: ModelShape, work: Work, device: Device) -> float:
    """One learner step, without the wait for its batch and without publishing."""
    learner, algorithm, costs = job.learner, job.algorithm, device.costs
    cores = learner.cpus_per_rank if device.is_core else 1
    rate = device.peak(job.model.dtype) * costs.train_share * cores
    forward = _forward_flops(shape, work, device, learner.num_ranks)
    passes = algorithm.epochs * (4 if learner.gradient_checkpointing else 3)
    ahead = (algorithm.pi_leaves_pi_old or algorithm.kl_in_reward) + algorithm.has_reference
    if algorithm.has_own_critic:
        passes, ahead = 2 * passes, ahead + 1
    num_forwards = ahead + algorithm.epochs * (2 if algorithm.has_own_critic else 1)
    microbatches_s = work.num_microbatches * num_forwards * costs.microbatch_s
    num_models = 2 if algorithm.has_own_critic else 1  # that are updated
    updates = algorithm.epochs * algorithm.minibatches * num_models
    update_s = costs.update_s + updates * _optimizer_s(job, shape, device)
    links_s = algorithm.epochs * num_models * _links_s(job, shape, work, device)
    return forward * (passes + ahead) / rate + microbatches_s + update_s + links_s


def _forward_flops(shape: ModelShape, work: Work, device: Device, num_ranks: int) -> float:
    """Of one rank and one forward over its rows; the output layer sees the answers alone."""
    layers = 2 * work.rank_tokens * shape.num_layers * shape.layer_params
    attention = 2 * work.rank_squares * device.costs.causal_share * _attention_width(shape)
    head = 2 * work.trained_tokens / num_ranks * shape.head_params
    return layers + attention + head


def _attention_width(shape: ModelShape) -> int:
    """Multiply-adds of one query and key in all layers: the score, and the weighted value."""
    return 2 * shape.num_layers * shape.num_heads * shape.head_dim


def _optimizer_s(job: JobConfig, shape: ModelShape, device: Device) -> float:
    """Adam reads gradient, weight and two moments and writes three, 4 bytes each, then the norm."""
    parts = job.learner.num_ranks if job.learner.zero_stage else 1
    return 32 * shape.params / parts / (device.memory_bytes_per_s * device.costs.bandwidth_share)


def _links_s(job: JobConfig, shape: ModelShape, work: Work, device: Device) -> float:
    """What the ranks exchange in one epoch: gradients once an update, under ZeRO 2 every
    microbatch, under ZeRO 3 also the weights, for the forward and for the backward pass."""
    ranks, stage = job.learner.num_ranks, job.learner.zero_stage
    if ranks == 1:
        return 0.0
    size = 2 if job.model.dtype == "bfloat16" else 4
    updates = job.algorithm.minibatches
    whole = size * shape.params * (ranks - 1) / ranks
    match stage:
        case 3:
            volume = 3 * whole * work.num_microbatches
        case 2:
            volume = whole * work.num_microbatches + whole * updates
        case _:
            volume = 2 * whole * updates
    return volume / (device.link_bytes_per_s * device.costs.link_share)


def handover_of(
    job: JobConfig, shape: ModelShape, learner: Device, rollout: Device, *, across_nodes: bool
) -> Handover:
    """Of one version, from rank 0 to every engine."""
    size = 2 if job.model.dtype == "bfloat16" else 4
    num_bytes = float(size * shape.sent_params)
    link = learner.nic_bytes_per_s if across_nodes else learner.link_bytes_per_s
    wire_s = num_bytes / (link * learner.costs.link_share)
    gather_s = 0.0
    if job.learner.zero_stage == 3 and job.learner.num_ranks > 1:
        gather_s = num_bytes / (learner.link_bytes_per_s * learner.costs.link_share)
    publish_s, adopt_s = learner.costs.publish_s + gather_s, rollout.costs.adopt_s
    if job.weights.transport == "nccl":  # from device to device, and both sides wait
        return Handover(
            num_bytes=num_bytes, publish_s=publish_s + wire_s, wire_s=0.0, adopt_s=adopt_s + wire_s
        )
    return Handover(
        num_bytes=num_bytes,
        # To the host, packed, and into the store; from the store to the device.
        publish_s=publish_s + 2 * num_bytes / learner.host_bytes_per_s,
        wire_s=wire_s if across_nodes else 0.0,
        adopt_s=adopt_s + num_bytes / rollout.host_bytes_per_s,
    )
