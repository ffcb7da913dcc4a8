"""Bytes that one learner rank and one engine hold, by what they are for, and whether they fit.

Formulas and sources: docs/plan.md. P parameters of the model, N ranks, b bytes of a number.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.estimate.lengths import Work
from orchestrator.estimate.shape import ModelShape
from slipstream.config.job import JobConfig

GIB = 2**30
CHUNK_BYTES = 64 * 2**20  # of float32 logits at a time, see learner/logprobs.py
CHUNK_COPIES = 3  # logits, their exponentials, their gradient
BUCKET_NUMBERS = 5e8  # DeepSpeed's reduce_bucket_size
LIVE_NUMBERS = 1e9  # DeepSpeed's stage3_max_live_parameters
GPU_CONTEXT_BYTES = 1.5 * GIB  # CUDA context, NCCL buffers, library workspaces: assumed
GPU_USABLE = 0.95  # of a GPU's memory in the learner, the rest lost between blocks: assumed
PROCESS_BYTES = 1.5 * GIB  # of a role's process on a CPU host, before its model
ENGINE_BATCH_TOKENS = 8192  # of prompts that vLLM takes in one step
GRAPH_BYTES = 1 * GIB  # of captured graphs, without enforce_eager: assumed


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Of one actor."""

    parts: dict[str, float]  # bytes, by what they are for
    limit_bytes: float  # that it may have; on the CPU the whole machine's

    @property
    def total_bytes(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.limit_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """The KV cache of one engine."""

    bytes_per_token: float  # on all GPUs of the engine together
    num_tokens: int
    context_tokens: int  # the longest prompt and answer
    mean_tokens: float  # prompt and answer of the means given

    @property
    def sequences_at_longest(self) -> int:
        return self.num_tokens // self.context_tokens

    @property
    def sequences_at_mean(self) -> int:
        return int(self.num_tokens // max(1.0, self.mean_tokens))


def number_bytes(job: JobConfig) -> int:
    return 2 if job.model.dtype == "bfloat16" else 4


def rank_memory(
    job: JobConfig, shape: ModelShape, work: Work, *, device_bytes: float, is_gpu: bool
) -> Memory:
    """One learner rank. `device_bytes`: of its GPU, or of this machine."""
    algorithm, learner = job.algorithm, job.learner
    num_models = 1
    if algorithm.has_own_critic:
        num_models = 2  # taken to be as large as the policy
    parts = {
        name: num_models * size for name, size in _states(job, shape.params, learner.num_ranks)
    }
    if algorithm.has_reference:  # whole on every rank, in float32 where it moves
        parts["reference"] = shape.params * (4 if algorithm.reference_moves else number_bytes(job))
    parts["activations"] = _activations(job, shape, work)
    parts["logits"] = _logits(shape, work)
    parts["process"] = GPU_CONTEXT_BYTES if is_gpu else PROCESS_BYTES
    return Memory(parts=parts, limit_bytes=device_bytes * (GPU_USABLE if is_gpu else 1.0))


def _states(job: JobConfig, params: int, ranks: int) -> list[tuple[str, float]]:
    """Weights, gradients, Adam and buffers of one model by ZeRO stage."""
    size, stage = number_bytes(job), job.learner.zero_stage
    part = params / ranks
    if stage == 0:  # float32 alone: the weights are what Adam changes
        return [("weights", size * params), ("gradients", 4 * params), ("optimizer", 8 * params)]
    buckets = size * min(params, BUCKET_NUMBERS)
    # A float32 copy of the weights and two moments. Gradients are summed in float32.
    optimizer = ("optimizer", 12 * part)
    rest: list[tuple[str, float]]
    match stage:
        case 1:
            whole = 4 * params + (size * params if size == 2 else 0)
            rest = [("weights", size * params), ("gradients", whole)]
        case 2:
            rest = [("weights", size * params), ("gradients", 4 * part + size * part)]
        case _:
            gathered = size * (min(params, LIVE_NUMBERS) if ranks > 1 else 0)
            rest = [("weights", size * part), ("gradients", 4 * part), ("gathered", gathered)]
    return [*rest, optimizer, ("buckets", buckets)]


def _activations(job: JobConfig, shape: ModelShape, work: Work) -> float:
    """Of the largest microbatch. Checkpointing keeps each layer's input, and makes one layer's
    rest again at a time."""
    layer = number_bytes(job) * shape.activations_per_token()
    norms = 4 * 2 * shape.hidden if number_bytes(job) == 2 else 0  # computed in float32
    whole = layer + norms
    if job.learner.gradient_checkpointing:
        per_token = shape.num_layers * number_bytes(job) * shape.hidden + whole
    else:
        per_token = shape.num_layers * whole
    return float(work.largest_microbatch * per_token)


def _logits(shape: ModelShape, work: Work) -> float:
    """A chunk at a time, with the float32 gradient of the output layer. All at once would be
    4 x tokens x V, several times over."""
    chunk = min(4 * work.largest_microbatch * shape.vocabulary, CHUNK_BYTES)
    return float(CHUNK_COPIES * chunk + 4 * shape.head_params)


def engine_memory(
    job: JobConfig, shape: ModelShape, work: Work, *, device_bytes: float
) -> tuple[Memory, Cache]:
    """One engine, on each of its GPUs, or on this machine."""
    rollout, size = job.rollout, number_bytes(job)
    kv_bytes = float(size * shape.kv_numbers_per_token)
    limit = device_bytes
    if rollout.gpus:
        width = rollout.gpus
        limit *= rollout.gpu_memory_share
        parts = {
            "weights": size * shape.params / width,
            "working memory": _working_memory(job, shape) / width,
            "process": GPU_CONTEXT_BYTES,
            "graphs": 0.0 if rollout.enforce_eager else float(GRAPH_BYTES),
        }
        kv_space = max(0.0, limit - sum(parts.values())) * width
        kv_bytes *= width / min(width, shape.num_kv_heads)  # heads are repeated, never split
        parts["KV cache"] = kv_space / width
    else:
        kv_space = float(rollout.kv_cache_gib * GIB)
        # Linear layers are repacked, and an update is held whole beside what it replaces.
        parts = {
            "weights": 3.0 * size * shape.sent_params,
            "working memory": float(_working_memory(job, shape)),
            "process": PROCESS_BYTES,
            "KV cache": kv_space,
        }
    cache = Cache(
        bytes_per_token=kv_bytes,
        num_tokens=int(kv_space // kv_bytes),
        context_tokens=job.data.max_prompt_tokens + rollout.max_new_tokens,
        mean_tokens=work.prompt_tokens + work.answer_tokens,
    )
    return Memory(parts=parts, limit_bytes=limit), cache


def _working_memory(job: JobConfig, shape: ModelShape) -> int:
    """Of one step: a layer's intermediate results, and logits in float32 with their softmax."""
    tokens = min(ENGINE_BATCH_TOKENS, job.rollout.num_slots * job.data.max_prompt_tokens)
    layer = number_bytes(job) * tokens * (2 * shape.hidden + 2 * shape.intermediate)
    return layer + 3 * 4 * job.rollout.num_slots * shape.vocabulary


def advice_for_rank(job: JobConfig, memory: Memory) -> list[str]:
    """What to change, the cheapest first, where a rank does not fit."""
    if memory.fits:
        return []
    learner, advice = job.learner, []
    most = max(memory.parts, key=lambda name: memory.parts[name])
    if not learner.gradient_checkpointing:
        advice.append("learner.gradient_checkpointing=true (a third more computation)")
    longest = job.data.max_prompt_tokens + job.rollout.max_new_tokens
    if learner.max_tokens_per_microbatch > longest:
        half = max(longest, learner.max_tokens_per_microbatch // 2)
        advice.append(f"learner.max_tokens_per_microbatch={half}")
    if not learner.gpus_per_rank:  # ranks of one machine share its memory
        return [*advice, "a smaller model, or a machine with more memory"]
    if learner.num_ranks > 1 and learner.zero_stage < 3:
        advice.append("learner.zero_stage=3")
    if job.model.dtype == "float32":
        advice.append("model.dtype=bfloat16 with learner.zero_stage=1 or above")
    advice.append(f"learner.num_ranks={2 * learner.num_ranks} with learner.zero_stage=3")
    if most == "activations":  # no number of ranks makes a microbatch smaller
        advice.sort(key=lambda text: "num_ranks" in text or "zero_stage" in text)
    return advice


def advice_for_engine(job: JobConfig, memory: Memory, cache: Cache) -> list[str]:
    """The same for an engine, whose cache must hold one whole answer at least."""
    if memory.fits and cache.sequences_at_longest >= 1:
        return []
    rollout = job.rollout
    if rollout.gpus == 0:
        return [
            "rollout.kv_cache_gib: lower it where memory is short, raise it where the cache is",
            "lower rollout.max_new_tokens or data.max_prompt_tokens",
        ]
    advice = [f"rollout.gpus={2 * rollout.gpus} (tensor parallel)"]
    if rollout.gpu_memory_share < 0.9 and not rollout.colocate:
        advice.append("rollout.gpu_memory_share=0.9")
    advice.append("lower rollout.max_new_tokens or rollout.num_slots")
    return advice
