"""What the audit of a journal finds: the fates of all ordinals, and every broken promise."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class Breach(StrEnum):
    """How the promise can be broken."""

    TWO_FATES = "two_fates"  # something happened to an ordinal after its final fate
    NEVER_ACCEPTED = "never_accepted"  # trained, or gone back to, without a group
    TOO_MANY_USES = "too_many_uses"
    GAP = "gap"  # an ordinal that was passed over
    STEP_ORDER = "step_order"  # a step twice, skipped, or without its batch
    LAG = "lag"  # above the bound
    LEASED_TWICE = "leased_twice"  # an ordinal that is leased or buffered already
    NO_LEASE = "no_lease"  # a group under a lease that was not running
    TWO_GROUPS = "two_groups"  # of one lease
    LOST_WORKER = "lost_worker"  # something was leased to it, or taken from it, after it was lost
    KILLS = "kills"  # miscounted, or too few of them for a quarantine
    ROLLBACK = "rollback"  # to a place, or with a group, that cannot be
    SNAPSHOT = "snapshot"  # its state is not what the facts add up to


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One breach of the promise."""

    breach: Breach
    seq: int  # of the row at which it shows
    ordinal: int | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """The run went back: the rows after `from_seq` and before `seq` are undone."""

    seq: int
    at_s: float
    timeline: int  # the one that begins
    from_seq: int  # 0 where the journal does not know the commit
    from_version: int
    to_version: int
    num_came_along: int  # groups accepted since the commit

    def undoes(self, seq: int) -> bool:
        return self.from_seq < seq < self.seq


@dataclass(slots=True)
class Lengths:
    """Of some rollouts, as far as the journal has them."""

    num_rollouts: int = 0
    num_tokens: int = 0
    num_cut: int = 0


@dataclass(slots=True, kw_only=True)
class Audit:
    """All is of the line that survives, except what says otherwise."""

    version: int = 0
    num_steps: int = 0  # that the journal saw
    num_issued: int = 0
    fates: Counter[str] = field(default_factory=Counter)  # trained or a drop's reason -> ordinals
    num_leased: int = 0  # these three are pending
    num_buffered: int = 0
    num_waiting: int = 0
    frontier: int = 0  # every ordinal below has its fate
    num_uses: int = 0
    num_duplicates: int = 0  # ordinals that trained more than max_uses times, undone or not
    num_gaps: int = 0
    lags: Counter[int] = field(default_factory=Counter)  # lag -> uses
    trained: Lengths = field(default_factory=Lengths)
    generated: Lengths = field(default_factory=Lengths)  # accepted ever, undone or not
    refusals: Counter[str] = field(default_factory=Counter)  # reason -> groups, ever
    reissues: Counter[str] = field(default_factory=Counter)  # cause -> prompts, ever
    rollbacks: list[Rollback] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
