"""What happens to prompts, in the order in which it happens: the history behind the ledger.

The buffer decides and states its decision as a fact; its state is what the facts so far add up
to. So the facts written down (`journal`) bring back a buffer whose process died, and tell the
story of every ordinal (`audit`).
"""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.records import DropReason, FailureReason, Group, RefusalReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """A prompt was given out. An ordinal that was never leased before leaves the stream here."""

    ordinal: int
    attempt: int
    num_failed: int  # of the attempts before this one
    lease_id: int
    worker: str
    incarnation: int
    min_version: int

    @property
    def by(self) -> tuple[str, int]:
        return self.worker, self.incarnation


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A group entered the buffer, and its lease is over."""

    lease_id: int
    group: Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A group was turned away. `ends_lease`: it came under its running lease, which is over."""

    ordinal: int
    lease_id: int
    reason: RefusalReason
    failures: tuple[FailureReason, ...]
    ends_lease: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reissued:
    """The prompt waits to be leased again; its lease, or its group in the buffer, is gone."""

    ordinal: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A final fate. Over-long prompts leave the stream here."""

    ordinal: int
    reason: DropReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A group's place in a batch; see `slipstream.records.BatchGroup`."""

    ordinal: int
    lag: int
    use: int
    weight: float = 1.0
    is_last: bool = True  # after it the group leaves the buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The batch of `version` is fixed."""

    version: int
    uses: tuple[Use, ...]  # by ascending ordinal


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The batch of `version - 1` has changed the weights, which are published as `version`."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Discarded:
    """The batch of `version` gave no finite gradient, and changed no weight. Its groups leave the
    buffer: those that never trained are dropped as not finite. The version stays."""

    version: int
    number: int  # of the batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgrown:
    """A group that has trained at least once is too old to train again."""

    ordinal: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """Nothing is leased any more, and the batch under way is the last one."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A worker is gone for good, in this incarnation and any before it."""

    worker: str
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """An engine died while it had this prompt under a lease, and may have died of it."""

    ordinal: int
    num_kills: int  # this one among them, since a group of the prompt was last accepted


Fact = (
    Leased
    | Accepted
    | Refused
    | Reissued
    | Dropped
    | Taken
    | Trained
    | Discarded
    | Outgrown
    | Stopped
    | Lost
    | Killed
)
