"""Every metric that Slipstream exports. docs/metrics.md is made of this list.

Ray puts `ray_` before each name, and tags of its own beside ours. Totals are gauges, fed from
replay's ledger: a counter of Ray would begin at 0 again with the process that counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "slipstream_"
Unit = Literal["", "seconds", "bytes", "tokens", "tokens/s", "nats", "share"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One name. Every one has the tag `run`, the job's name, before its own `tags`."""

    name: str
    help: str
    unit: Unit = ""  # "": a plain number
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()  # of a histogram; a gauge has none

    @property
    def kind(self) -> Literal["gauge", "histogram"]:
        return "histogram" if self.boundaries else "gauge"

    @property
    def series(self) -> tuple[str, ...]:
        """Its names in Prometheus."""
        name = f"ray_{PREFIX}{self.name}"
        endings = ("_bucket", "_sum", "_count") if self.boundaries else ("",)
        return tuple(name + ending for ending in endings)


ROLE = ("role", "index")

# --- training ---------------------------------------------------------------------

VERSION = Metric(name="version", help="Newest policy version")
GOAL_VERSION = Metric(name="goal_version", help="The version with which the job ends")
TIMELINE = Metric(name="timeline", help="Goes up when the run goes back or on")
REWARD = Metric(name="reward", help="Mean reward of the newest batch")
LOSS = Metric(name="loss", help="Loss of the newest step, mean over its updates")
LEARNING_RATE = Metric(name="learning_rate", help="Learning rate of the newest step")
GRAD_NORM = Metric(name="grad_norm", help="Norm of the gradient before it is clipped")
ENTROPY = Metric(name="entropy", unit="nats", help="Entropy of the policy, mean per token")
KL_OLD = Metric(
    name="kl_old", unit="nats", help="KL of the policy to the one that the step began with"
)
KL_REFERENCE = Metric(
    name="kl_reference", unit="nats", help="KL of the policy to the reference model, where one is"
)
RATIO = Metric(name="ratio", help="Mean of pi / pi_old per token")
CLIP_SHARE = Metric(
    name="clip_share", unit="share", help="Tokens whose ratio was clipped, where the loss clips"
)
MU_MISMATCH = Metric(
    name="mu_mismatch",
    unit="nats",
    help="Mean |log pi_old - log mu| per token: how far the learner's policy is from the sampling",
)
CORRECTION_WEIGHT = Metric(
    name="correction_weight", help="Mean weight of tokens that corrects for the mismatch"
)
PADDING_SHARE = Metric(name="padding_share", unit="share", help="Padding in the microbatches")
SKIPPED_UPDATES = Metric(
    name="skipped_updates", help="Updates of the newest step whose gradient was not finite"
)
LAG = Metric(
    name="lag",
    help="Versions between the oldest token of a group and the learner that trained on it",
    boundaries=(0.5, 1.5, 2.5, 3.5, 4.5, 6.5, 8.5, 12.5, 16.5, 32.5, 64.5),
)
LENGTH_RATIO = Metric(
    name="length_ratio", help="Mean length of trained answers by that of generated ones"
)
REWARD_DIFFERENCE = Metric(
    name="reward_difference", help="Mean reward of trained groups less that of generated ones"
)

# --- held-out evaluation ----------------------------------------------------------

GREEDY_ACCURACY = Metric(
    name="greedy_accuracy", unit="share", tags=("set",), help="Right greedy answers"
)
GREEDY_REWARD = Metric(name="greedy_reward", tags=("set",), help="Mean reward of greedy answers")
SAMPLED_REWARD = Metric(
    name="sampled_reward", tags=("set",), help="Mean reward of one sampled answer a prompt"
)
PASS_AT = Metric(
    name="pass_at",
    unit="share",
    tags=("set", "k"),
    help="Prompts with a right one among k sampled answers, where it is asked for",
)
EVAL_VERSION = Metric(name="eval_version", tags=("set",), help="Version of the newest evaluation")

# --- replay: what there is, and totals of the whole run ---------------------------

BUFFERED_GROUPS = Metric(name="buffered_groups", help="Groups that wait for the learner")
RUNNING_LEASES = Metric(name="running_leases", help="Prompts that workers roll out")
OLDEST_LEASE = Metric(
    name="oldest_lease_seconds", unit="seconds", help="Age of the lease that runs longest"
)
REQUEUED_PROMPTS = Metric(name="requeued_prompts", help="Prompts that wait to be issued again")
PAUSED = Metric(name="paused", help="1 while the job is paused")
ISSUED_PROMPTS = Metric(name="issued_prompts", help="Prompts that have left the stream, in all")
TRAINED_PROMPTS = Metric(name="trained_prompts", help="Prompts that have trained, in all")
DROPPED_PROMPTS = Metric(
    name="dropped_prompts", tags=("reason",), help="Prompts that were dropped, in all"
)
REFUSED_GROUPS = Metric(
    name="refused_groups", tags=("reason",), help="Groups that replay refused, in all"
)
FAILED_ROLLOUTS = Metric(
    name="failed_rollouts", tags=("reason",), help="Answers that could not be had, in all"
)
GENERATED_TOKENS = Metric(
    name="generated_tokens", unit="tokens", help="Tokens of accepted answers, in all"
)
TRAINED_TOKENS = Metric(
    name="trained_tokens", unit="tokens", help="Tokens of answers that have trained, in all"
)

# --- speed ------------------------------------------------------------------------

GENERATION_RATE = Metric(
    name="generated_tokens_per_second",
    unit="tokens/s",
    tags=("index",),
    help="Of one worker, over its newest report",
)
TRAINING_RATE = Metric(
    name="trained_tokens_per_second",
    unit="tokens/s",
    help="Answer tokens of the newest step, over the time since the step before",
)
STEP_SECONDS = Metric(
    name="step_seconds", unit="seconds", help="From the end of one step to the end of the next"
)
BUSY_SHARE = Metric(
    name="busy_share", unit="share", tags=ROLE, help="Time of a role in which it did not wait"
)
PHASE_SHARE = Metric(
    name="phase_share", unit="share", tags=(*ROLE, "phase"), help="Time of a role by what it did"
)

# --- weight sync ------------------------------------------------------------------

SYNC_GATHER = Metric(
    name="sync_gather_seconds", unit="seconds", help="To gather whole parameters from all ranks"
)
SYNC_PUBLISH = Metric(
    name="sync_publish_seconds", unit="seconds", help="To pack the weights and send them off"
)
SYNC_BYTES = Metric(name="sync_bytes", unit="bytes", help="Size of one published version")
SYNC_WIRE = Metric(
    name="sync_wire_seconds", unit="seconds", tags=("index",), help="To fetch the bytes"
)
SYNC_LOAD = Metric(
    name="sync_load_seconds", unit="seconds", tags=("index",), help="To load them into the engine"
)
SYNC_PAUSE = Metric(
    name="sync_pause_seconds",
    unit="seconds",
    tags=("index",),
    help="In which the engine decoded nothing: load and probe, with nccl the wire too",
)
SYNC_DELAY = Metric(
    name="sync_delay_seconds",
    unit="seconds",
    tags=("index",),
    help="From the publication of a version to the engine that holds it",
)
PROBE_ERROR = Metric(
    name="probe_error",
    unit="nats",
    tags=("index",),
    help="Largest difference of engine and learner in the log-probs of the probe",
)

# --- roles and commits ------------------------------------------------------------

ROLES = Metric(name="roles", tags=("role", "state"), help="Workers and ranks by state")
ROLE_VERSION = Metric(name="role_version", tags=ROLE, help="Version of the weights that it holds")
RESTARTS = Metric(
    name="restarts",
    tags=("role", "cause"),
    help="Of this launch: workers that were replaced, starts of the learner from a commit, "
    "replay and weight board that Ray has started again",
)
COMMIT_SECONDS = Metric(
    name="commit_seconds", unit="seconds", help="To write the newest commit, beside training"
)
COMMIT_PAUSE = Metric(
    name="commit_pause_seconds", unit="seconds", help="In which training stood for that commit"
)
COMMIT_VERSION = Metric(name="commit_version", help="Version of the newest commit")
FAILED_COMMITS = Metric(name="failed_commits", help="Commits that failed, of this launch")

METRICS = tuple(value for value in list(vars().values()) if isinstance(value, Metric))
