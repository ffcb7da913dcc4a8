"""The records that cross a process boundary.

All are frozen, slotted, keyword-only dataclasses. Token-level data are NumPy arrays
(one dimension, T tokens); everything else is plain Python. The learner turns them into
tensors in one place (`learner/tensors.py`).

Vocabulary (docs/architecture.md): a *prompt* has an *ordinal*; its G *rollouts* form a
*group*; the groups of one learner step form a *batch*; the *policy version* counts the
learner steps whose weights were published. When the run goes back to a commit, a new *timeline*
begins: its versions above the commit's are other weights than those of the same number before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pickle import PickleBuffer
from typing import Any

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int32]
LogProbs = npt.NDArray[np.float32]


class FinishReason(StrEnum):
    """Why a rollout ended."""

    EOS = "eos"  # the end-of-sequence token was sampled; it is the answer's last token
    LENGTH = "length"  # cut at rollout.max_new_tokens (or the context's end)


class FailureReason(StrEnum):
    """Why a rollout has no reward. Never turned into a reward of 0."""

    REWARD_ERROR = "reward_error"
    REWARD_TIMEOUT = "reward_timeout"
    REWARD_NOT_FINITE = "reward_not_finite"


class RefusalReason(StrEnum):
    """Why replay refused a group at its door."""

    UNKNOWN_LEASE = "unknown_lease"  # expired, already completed, or never granted
    STALE_INCARNATION = "stale_incarnation"  # pushed by a worker that was replaced
    WRONG_PROMPT = "wrong_prompt"  # ordinal, attempt or prompt tokens differ from the lease
    WRONG_GROUP_SIZE = "wrong_group_size"
    EMPTY_ANSWER = "empty_answer"
    LENGTH_MISMATCH = "length_mismatch"  # tokens, log-probs and spans disagree
    BAD_LOGPROB = "bad_logprob"  # not finite, or above 0
    BAD_REWARD = "bad_reward"  # not finite
    BAD_SPANS = "bad_spans"  # gaps, overlaps, or versions that go down
    UNKNOWN_VERSION = "unknown_version"  # a version that was never published
    OLD_VERSION = "old_version"  # tokens from before the lease's min_version
    FAILED_ROLLOUT = "failed_rollout"  # a typed failure of one of its rollouts


class DropReason(StrEnum):
    """Why a prompt ended without being trained."""

    PROMPT_TOO_LONG = "prompt_too_long"
    STALE = "stale"
    ZERO_VARIANCE = "zero_variance"  # dynamic sampling: all rewards of the group equal
    FAILED = "failed"  # every attempt was refused or failed
    QUARANTINED = "quarantined"  # engines died of it again and again
    NOT_FINITE = "not_finite"  # its batch's gradient was not finite, so that no weight changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One item of the data stream."""

    ordinal: int  # place in the endless seeded stream, from 0
    epoch: int
    item_index: int  # row of the data set
    item: Mapping[str, Any]  # the data set's row, handed to the reward
    text: str  # as rendered, before tokenization
    token_ids: TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Tokens [start, stop) of an answer were sampled by this policy version."""

    version: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled answer."""

    token_ids: TokenIds  # (T,) the answer, with its EOS where there is one
    logprobs: LogProbs  # (T,) behaviour log-probs mu, after temperature and top-p
    spans: tuple[VersionSpan, ...]  # cover [0, T) without gaps, versions ascending
    finish_reason: FinishReason
    reward: float

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def oldest_version(self) -> int:
        return self.spans[0].version


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFailure:
    """A rollout that has no reward."""

    reason: FailureReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Permission to roll out one prompt once."""

    lease_id: int
    prompt: Prompt
    attempt: int  # 0 at first; counts re-issues of the same ordinal
    num_failed: int  # of these attempts; another one of the same prompt samples other tokens
    worker: str
    incarnation: int  # of the worker; a replaced worker's pushes are refused
    timeline: int  # the worker must hold weights of this one,
    min_version: int  # and of at least this version, before it starts
    expires_at_s: float  # on replay's own clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The G rollouts of one prompt, pushed by a rollout worker under a lease."""

    lease_id: int
    worker: str
    incarnation: int
    ordinal: int
    attempt: int
    prompt_token_ids: TokenIds  # (P,)
    rollouts: tuple[Rollout, ...]
    greedy_reward: float | None = None  # of one more answer, which does not train; for ReMax
    failures: tuple[RolloutFailure, ...] = ()
    # Where it came from elsewhere: its bytes, of which its arrays are views. Never encoded again.
    encoded: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def oldest_version(self) -> int:
        return min(rollout.oldest_version for rollout in self.rollouts)

    @property
    def newest_version(self) -> int:
        return max(rollout.spans[-1].version for rollout in self.rollouts)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Between processes as one byte string: that is quicker than to pickle every array,
        and whoever gets it owns its memory."""
        from slipstream.codec import encode, receive

        try:
            data = encode(self)
        except TypeError:  # arrays of a wrong type: replay will refuse it, and say why
            names = [field.name for field in fields(self) if field.init]
            return _group_of, ({name: getattr(self, name) for name in names},)
        # Protocol 5 can leave the bytes where they are.
        return receive, (PickleBuffer(data) if protocol >= 5 else data,)


def _group_of(values: Mapping[str, Any]) -> Group:
    return Group(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchGroup:
    """A group as the learner gets it."""

    group: Group
    lag: int  # learner version at the take, minus the version of the oldest token
    use: int  # 1 at first use; above 1 where replay.max_uses allows reuse
    weight: float = 1.0  # factor on its loss: the importance weight of one drawn by priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The groups of one learner step, by ascending ordinal."""

    version: int  # the learner's version at the take; the step makes version + 1
    number: int = 0  # how many batches the run had before it, discarded ones and lost ones too
    groups: tuple[BatchGroup, ...]

    @property
    def num_rollouts(self) -> int:
        return sum(len(entry.group.rollouts) for entry in self.groups)

    @property
    def num_answer_tokens(self) -> int:
        return sum(r.num_tokens for entry in self.groups for r in entry.group.rollouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySnapshot:
    """Replay at a step boundary, for a commit."""

    state: Mapping[str, Any]  # JSON-able
    groups: Mapping[int, bytes]  # the buffered ones by ordinal, in replay's own encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing to hand out yet; ask again. `reason` is for people."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Finish what you do and leave: the job is over, or others take your place."""

    reason: str
    replaced: bool = False  # over for this worker alone: another has its name


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReply:
    """What a worker gets when it asks for prompts."""

    leases: tuple[Lease, ...]
    revoked: tuple[int, ...]  # leases that the worker holds and that run no more
    timeline: int  # a higher one begins whenever the run goes back to a commit
    version: int  # newest published version
    yield_device: bool  # shared devices: it is the learner's turn, release them
    stop: Stop | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PutReply:
    """The answer to a pushed group: None means accepted."""

    refused: RefusalReason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of a weight update."""

    name: str  # Hugging Face parameter name
    dtype: str  # "float32", "bfloat16", "float16"
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Fixed tokens and the learner's log-probs of them at one version (temperature 1)."""

    token_ids: TokenIds  # (N,)
    logprobs: LogProbs  # (N - 1,) of tokens 1..N-1 given those before


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdate:
    """Announces one whole published version; switched to as a whole or not at all.

    `buckets` are opaque to all but the transport: for `object_store`, one reference per
    bucket, each holding the tensors of `bucket_specs` at the same index back to back as
    one byte array; for `nccl` empty, the tensors are sent GPU to GPU.
    """

    timeline: int
    version: int
    bucket_specs: tuple[tuple[TensorSpec, ...], ...]
    buckets: tuple[Any, ...]
    probe: Probe | None
    published_at_s: float  # time.time()

    @property
    def order(self) -> tuple[int, int]:
        """Updates are adopted in this order: another timeline outdates every version before."""
        return self.timeline, self.version
