"""The job file as frozen pydantic models. Unknown keys are refused.

Each section is one class; the field comments are the reference documentation. A mode is a
preset over these fields (`presets.py`), applied before validation, so that a resolved job
holds plain values and every one of them can be set by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from slipstream.config.algorithm import AlgorithmConfig
from slipstream.config.section import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
)

WITH_CRITIC, WITHOUT_CRITIC = "one with a critic", "one without a critic"
MOVING, FROZEN = "with a reference that moves", "without a reference that moves"
Beta = Annotated[float, Field(ge=0, lt=1)]
Mode = Literal["sync", "split", "buffered", "multinode"]
Dtype = Literal["float32", "bfloat16"]
OnStale = Literal["wait", "requeue", "drop", "clip"]
# When replay answers a call: once its outcome is on the disk (commit: not even a power failure
# loses it), once the operating system has it (flush: replay may die), or at once (off: no journal).
Durability = Literal["commit", "flush", "off"]
Select = Literal["fifo", "freshest", "priority", "random"]
TrackerName = Literal["wandb", "mlflow", "trackio"]
MAIN_SET = "eval"  # the held-out set of data.eval
SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
BestBy = Literal["greedy_accuracy", "greedy_reward", "sampled_reward"]  # fields of an `eval` event
PriorityBy = Literal["reward_spread", "advantage", "age"]


class ModelConfig(Section):
    path: str  # a directory, or a Hugging Face name
    revision: str | None = None  # branch, tag or commit of a named model
    tokenizer: str | None = None  # default: the model's own
    chat_template: Path | None = None  # a Jinja file; default: the tokenizer's own
    dtype: Dtype = "float32"  # of generation and training; on GPUs bfloat16
    # Run Python code that the model brings; of a named model whose revision is a commit.
    trust_remote_code: bool = False

    @property
    def code(self) -> dict[str, Any]:
        """What loaders are told of the model's own code: none of it, or that of one commit."""
        if not self.trust_remote_code:
            return {"trust_remote_code": False}
        return {"trust_remote_code": True, "code_revision": self.revision}


# --- data -------------------------------------------------------------------------


class Source(Section):
    """What all kinds of data share. A prompt is a string or a list of chat messages."""

    prompt_field: str = "prompt"  # the item's field that holds the prompt
    prompt_template: str | None = None  # str.format over the item's fields, instead of a field
    chat: bool = False  # wrap a string prompt as one user message, use the chat template
    system_prompt: str | None = None  # put before the messages; needs a chat


class JsonlSource(Source):
    kind: Literal["jsonl"]
    path: Path


class ParquetSource(Source):
    kind: Literal["parquet"]
    path: Path


class HubSource(Source):
    kind: Literal["hub"]
    name: str  # a data set on the Hugging Face hub, or a local directory of one
    config: str | None = None
    split: str = "train"
    revision: str | None = None


class ReasoningGymSource(Source):
    kind: Literal["reasoning_gym"]
    task: str  # e.g. chain_sum
    size: PositiveInt
    seed: int = 0
    params: dict[str, Any] = Field(default_factory=dict)  # the task's own parameters
    prompt_field: str = "question"


DataSource = Annotated[
    JsonlSource | ParquetSource | HubSource | ReasoningGymSource, Field(discriminator="kind")
]


class DataConfig(Section):
    train: DataSource
    eval: DataSource | None = None  # a held-out set, which is named "eval"
    eval_sets: dict[SetName, DataSource] = Field(default_factory=dict)  # more of them, by name
    shuffle: bool = True  # a new seeded permutation each epoch
    max_prompt_tokens: PositiveInt = 1024  # longer prompts are dropped, counted, reported
    eval_every_steps: NonNegativeInt = 0  # 0: only before the first and after the last step
    eval_num_prompts: PositiveInt = 500  # the first n items of each held-out set

    @property
    def held_out(self) -> dict[str, DataSource]:
        """Every held-out set by name, the one of `data.eval` first."""
        return {**({} if self.eval is None else {MAIN_SET: self.eval}), **self.eval_sets}


class EvalConfig(Section):
    """How held-out prompts are answered (docs/evaluation.md); `data` says which, and how often."""

    slot_share: Annotated[float, Field(gt=0, le=1)] = 0.25  # of a worker that also rolls out
    num_samples: PositiveInt = 1  # answers of each prompt at temperature 1, beside the greedy one
    pass_at: tuple[PositiveInt, ...] = (1,)  # the k of pass@k, each at most num_samples


# --- reward -----------------------------------------------------------------------


class RewardBase(Section):
    timeout_s: PositiveFloat = 10.0  # of one call; then its process is killed
    num_processes: PositiveInt = 1  # beside each rollout worker


class FunctionReward(RewardBase):
    """`function(prompt: str, answer: str, item: Mapping) -> float`."""

    kind: Literal["function"]
    path: str = Field(pattern=r"^[\w.]+:[\w.]+$")  # package.module:function


class ExactMatchReward(RewardBase):
    """1.0 where the stripped answer equals the item's field, else 0.0."""

    kind: Literal["exact_match"]
    answer_field: str = "answer"


class ReasoningGymReward(RewardBase):
    """The verifier of the reasoning-gym task that made the item."""

    kind: Literal["reasoning_gym"]


RewardConfig = Annotated[
    FunctionReward | ExactMatchReward | ReasoningGymReward, Field(discriminator="kind")
]


# --- roles ------------------------------------------------------------------------


class PlacementConfig(Section):
    """Which nodes a role may run on."""

    labels: dict[str, str] = Field(default_factory=dict)  # Ray node labels
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)  # Ray custom resources


class AutoscaleConfig(Section):
    """The number of rollout workers follows the learner's need: more where it waits for groups,
    fewer where workers are held back."""

    min_workers: PositiveInt
    max_workers: PositiveInt
    tolerance: Share = 0.1  # a need nearer than this to what there is changes nothing
    steady_s: PositiveFloat = 120.0  # the need must last so long
    cooldown_s: PositiveFloat = 600.0  # from one change to the next; longer than a worker's start


class RolloutConfig(Section):
    # scripted: tokens at random without a model, for tests of failures alone
    engine: Literal["vllm", "scripted"] = "vllm"
    num_workers: PositiveInt = 1
    autoscale: AutoscaleConfig | None = None  # default: there are always num_workers
    group_size: PositiveInt = 8  # G, rollouts of one prompt
    max_new_tokens: PositiveInt = 512
    temperature: Annotated[float, Field(ge=0.01)] = 1.0  # vLLM knows none between this and 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    num_slots: PositiveInt = 64  # rollouts decoded at once by one engine
    colocate: bool = False  # share the learner's devices, in turns
    cpus: PositiveInt = 1  # cores one engine binds
    gpus: NonNegativeInt = 0  # GPUs of one engine; its tensor parallel size
    gpu_memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.85
    kv_cache_gib: PositiveInt = 1  # CPU engines only
    enforce_eager: bool = False  # no graph capture or compilation
    start_timeout_s: PositiveFloat = 600.0
    step_timeout_s: PositiveFloat = 60.0  # of one step of an engine; one that hangs is replaced
    quorum: PositiveInt | None = None  # workers with which training starts; default: all
    max_restarts: NonNegativeInt = 3  # of one worker in a row, without a finished answer in between
    grace_s: PositiveFloat = 30.0  # of a worker that must leave, to finish what it has
    placement: PlacementConfig = PlacementConfig()


class LearnerConfig(Section):
    num_steps: PositiveInt  # learner steps of the whole job
    groups_per_batch: PositiveInt
    num_ranks: PositiveInt = 1
    cpus_per_rank: PositiveInt = 1
    gpus_per_rank: Literal[0, 1] = 0
    zero_stage: Literal[0, 1, 2, 3] = 0
    learning_rate: PositiveFloat = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    max_tokens_per_microbatch: PositiveInt = 8192  # padded tokens of one forward and backward
    gradient_checkpointing: bool = False
    start_timeout_s: PositiveFloat = 600.0  # also of each collective of the ranks until then
    step_timeout_s: PositiveFloat = 600.0  # of one step on every rank, its collectives among it
    max_bad_steps: NonNegativeInt = 3  # in a row with gradients that are not finite; then go back
    max_restarts: NonNegativeInt = 3  # from one and the same commit
    placement: PlacementConfig = PlacementConfig()


class PriorityConfig(Section):
    """Prioritized replay (docs/algorithms.md): chances p^alpha / sum, weights q^-beta / max with q
    the chance to be drawn."""

    by: PriorityBy = "reward_spread"  # what p is: spread of rewards, mean |advantage|, or lag + 1
    alpha: NonNegativeFloat = 0.6  # 0: all groups alike
    beta: Share = 0.4  # of the drawn groups' weights in the loss; 0: they train like any other
    epsilon: PositiveFloat = 1e-3  # p is at least this, so that every group can be drawn


class ReplayConfig(Section):
    max_staleness: NonNegativeInt  # bound on lag, in policy versions
    # What becomes of a group that would train at a lag above the bound. wait: the learner waits for
    # slow leases, so that there is none; requeue: its prompt is issued again; drop: it is dropped;
    # clip: it trains all the same, under truncated importance weights, and the bound holds no more.
    on_stale: OnStale = "wait"
    # Which groups train first: the oldest prompts, the newest policy's, drawn by priority, or any.
    select: Select = "fifo"
    priority: PriorityConfig = PriorityConfig()  # with select: priority alone
    whole_batches: bool = False  # hand over consecutive prompts only
    max_uses: PositiveInt = 1  # how often one group may train
    dynamic_sampling: bool = False  # drop and refill groups whose rewards are all equal
    max_attempts: PositiveInt = 3  # of one prompt, before it is dropped as failed
    max_kills: PositiveInt = 3  # engines that died with a prompt before it is quarantined
    lease_timeout_s: PositiveFloat = 600.0  # then its prompt is issued again
    # In which it may die and read data and journal anew. Silent for half of it, it is killed.
    call_timeout_s: PositiveFloat = 120.0
    durability: Durability = "commit"  # of replay's journal


class WeightsConfig(Section):
    transport: Literal["object_store", "nccl"] = "object_store"
    bucket_mib: PositiveInt = 256
    probe: bool = True  # compare engine and learner log-probs after every adoption
    max_probe_error: PositiveFloat = 1e-3  # float32; with bfloat16 set 0.3
    timeout_s: PositiveFloat = 300.0  # with nccl longer than an evaluation, which it waits for


class CheckpointConfig(Section):
    dir: Path = Path("runs")  # a run's files lie in <dir>/<name>
    every_steps: NonNegativeInt = 50  # 0: not by steps; there is always one at the end
    every_minutes: NonNegativeFloat = 0.0  # 0: not by time
    keep_last: PositiveInt = 2
    keep_best: BestBy | None = None  # also keep the commit that is best on a held-out set
    best_set: str | None = None  # the name of that set; default: the first


class HealthConfig(Section):
    """How soon a role is taken for dead. A worker is replaced then, the learner starts again.

    One that answers is dead too when its work takes longer than rollout.step_timeout_s,
    learner.step_timeout_s or weights.timeout_s.
    """

    heartbeat_timeout_s: PositiveFloat = 7.0  # without an answer: killed, stopped, or cut off
    probe_every_s: PositiveFloat = 5.0  # an engine without work makes a token that often
    # Of the learner's calls to the weight board, which is killed after half of it, if silent.
    call_timeout_s: PositiveFloat = 60.0
    stop_timeout_s: PositiveFloat = 30.0  # for a role to close, before it is killed


class TelemetryConfig(Section):
    progress_every_s: PositiveFloat = 1.0
    watchdog_s: PositiveFloat = 1800.0  # no learner step for so long ends the job
    enabled: bool = True  # false: nothing of what follows, no spans, curves and trace
    trackers: tuple[TrackerName, ...] = ()  # beside TensorBoard's files; docs/trackers.md
    sample_every_groups: NonNegativeInt = 50  # of so many one is kept for people; 0: none
    max_sample_chars: PositiveInt = 8000  # of such a prompt and of each of its answers
    metrics: bool = True  # hand figures to Ray, for Prometheus (docs/metrics.md)
    engine_metrics: bool = True  # vLLM's own figures of each engine, the same way


class JobConfig(Section):
    """One job. The same file describes a laptop run and a cluster run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    mode: Mode
    seed: NonNegativeInt = 0
    model: ModelConfig
    data: DataConfig
    eval: EvalConfig = EvalConfig()
    reward: RewardConfig
    algorithm: AlgorithmConfig = AlgorithmConfig()
    rollout: RolloutConfig
    learner: LearnerConfig
    replay: ReplayConfig
    weights: WeightsConfig = WeightsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    health: HealthConfig = HealthConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @property
    def layout(self) -> dict[str, Any]:
        """What a commit's files depend on, by key; a run goes on with the same."""
        return {
            "algorithm.advantage": WITH_CRITIC if self.algorithm.has_critic else WITHOUT_CRITIC,
            "algorithm.critic.shared": self.algorithm.has_value_head,
            "algorithm.kl": MOVING if self.algorithm.reference_moves else FROZEN,
        }

    @property
    def best_set(self) -> str | None:
        """The held-out set that says which commit is the best; None where none is kept."""
        if self.checkpoint.keep_best is None:
            return None
        return self.checkpoint.best_set or next(iter(self.data.held_out))

    @property
    def run_dir(self) -> Path:
        return self.checkpoint.dir / self.name
