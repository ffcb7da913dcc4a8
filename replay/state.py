"""What the facts so far add up to: the buffer's state, without its decisions. Pure.

    Leased ─▶ running ── Accepted ─▶ shelf ── Taken ─▶ batch ── Trained ─▶ ledger
                 │ Refused, Lost       │ stale            └─ Discarded ─▶ ledger
    requeued ◀───┴───── Reissued ──────┘                (Dropped, at any time) ─▶ ledger
       └─▶ Leased                                       (Outgrown: used, and too old for more)

The same `apply` serves the live buffer and one that is brought back from its journal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from replay.facts import (
    Accepted,
    Discarded,
    Dropped,
    Fact,
    Killed,
    Leased,
    Lost,
    Outgrown,
    Refused,
    Reissued,
    Stopped,
    Taken,
    Trained,
    Use,
)
from replay.ledger import Ledger
from replay.shelf import Shelf
from replay.tally import Tally
from slipstream.records import Batch, BatchGroup, DropReason, Group, RefusalReason, Stop

# Ended leases whose outcome is remembered, for a put that is repeated as its answer got lost.
NUM_REMEMBERED = 2_000


@dataclass(frozen=True, slots=True)
class Ended:
    """What came of a lease under which a group was put."""

    by: tuple[str, int]  # worker and incarnation
    refused: RefusalReason | None


class ReplayState:
    """What follows from the facts applied since `restore`, or since the beginning; `timeline` does
    not, a new one begins with a state of its own."""

    def __init__(self) -> None:
        self.version = 0
        self.timeline = 0  # a higher one begins whenever the run goes back to a commit
        self.next_lease_id = 0
        self.ledger = Ledger()
        self.tally = Tally()
        self.requeued: set[int] = set()  # ordinals that wait to be leased again
        self.running: dict[int, Leased] = {}  # by lease id
        self.shelf = Shelf()
        self.batch: Batch | None = None  # fixed for `version`
        self.num_taken = 0  # batches, over all timelines
        self._leaving: list[int] = []  # ordinals that train for the last time in it
        self.stop: Stop | None = None  # asked for
        self.ended: dict[int, Ended] = {}  # by lease id, in the order of their end
        self.lost: dict[str, int] = {}  # worker -> its newest incarnation that is gone for good
        # Ordinal -> engines that died with it since a group of it was last accepted. One that was
        # dropped for it stays known: going back makes it pending again.
        self.kills: dict[int, int] = {}

    def apply(self, fact: Fact) -> None:
        match fact:
            case Leased():
                self._leased(fact)
            case Accepted():
                self.tally.generated(fact.group)
                self.shelf.add(fact.group)
                self._end(fact.lease_id, None)
                self.kills.pop(fact.group.ordinal, None)
            case Refused():
                self.tally.refused(fact.reason, fact.failures)
                if fact.ends_lease:
                    self.ledger.pending[fact.ordinal].num_failed += 1
                    self._end(fact.lease_id, fact.reason)
            case Reissued():
                self.tally.reissues[fact.cause] += 1
                self._set_free(fact.ordinal)
                self.requeued.add(fact.ordinal)
            case Dropped():
                self._issue(fact.ordinal)
                self._set_free(fact.ordinal)
                self.ledger.dropped(fact.ordinal, fact.reason)
                if fact.reason is not DropReason.QUARANTINED:
                    self.kills.pop(fact.ordinal, None)
            case Taken():
                groups = tuple(self._batch_group(use) for use in fact.uses)
                self.batch = Batch(version=fact.version, number=self.num_taken, groups=groups)
                self.num_taken += 1
                self._leaving = [use.ordinal for use in fact.uses if use.is_last]
            case Trained():
                self._trained(fact.version)
            case Discarded():
                self._discarded()
            case Outgrown():
                self.shelf.remove(fact.ordinal)
            case Stopped():
                self.stop = Stop(reason=fact.reason)
            case Lost():
                self.lost[fact.worker] = fact.incarnation
            case Killed():
                self.kills[fact.ordinal] = fact.num_kills

    def _leased(self, fact: Leased) -> None:
        self._issue(fact.ordinal)
        self.requeued.discard(fact.ordinal)
        self.ledger.pending[fact.ordinal].num_leased = fact.attempt + 1
        self.running[fact.lease_id] = fact
        self.next_lease_id = fact.lease_id + 1

    def _issue(self, ordinal: int) -> None:
        if ordinal == self.ledger.num_issued:
            self.ledger.issue()

    def _end(self, lease_id: int, refused: RefusalReason | None) -> None:
        self.ended[lease_id] = Ended(self.running.pop(lease_id).by, refused)
        if len(self.ended) > NUM_REMEMBERED:
            del self.ended[next(iter(self.ended))]

    def _set_free(self, ordinal: int) -> None:
        """Neither leased nor buffered nor waiting any more."""
        for leased in [leased for leased in self.running.values() if leased.ordinal == ordinal]:
            del self.running[leased.lease_id]
        self.shelf.remove(ordinal)
        self.requeued.discard(ordinal)

    def _batch_group(self, use: Use) -> BatchGroup:
        group = self.shelf.entries[use.ordinal].group
        return BatchGroup(group=group, lag=use.lag, use=use.use, weight=use.weight)

    def _trained(self, version: int) -> None:
        assert self.batch is not None, "nothing was taken"
        for entry in self.batch.groups:
            is_first = entry.use == 1
            self.tally.trained(entry.group, lag=entry.lag, first_use=is_first)
            if is_first:
                self.ledger.trained(entry.group.ordinal)
            self.shelf.use(entry.group.ordinal)
        for ordinal in self._leaving:
            self.shelf.remove(ordinal)
        self.batch = None
        self.version = version

    def _discarded(self) -> None:
        assert self.batch is not None, "nothing was taken"
        for entry in self.batch.groups:
            self.shelf.remove(entry.group.ordinal)
            if entry.use == 1:
                self.ledger.dropped(entry.group.ordinal, DropReason.NOT_FINITE)
        self.batch = None

    # --- snapshots ------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """JSON-able, at a step boundary; the buffered groups themselves are not in it."""
        assert self.batch is None, "a batch is under way"
        return {
            "version": self.version,
            "timeline": self.timeline,
            "next_lease_id": self.next_lease_id,
            "num_taken": self.num_taken,
            "ledger": self.ledger.snapshot(),
            "tally": self.tally.snapshot(),
            "stop": None if self.stop is None else self.stop.reason,
            "running": [asdict(leased) for leased in self.running.values()],
            # [lease id, worker, incarnation, reason of the refusal or None]
            "ended": [[lease, *ended.by, ended.refused] for lease, ended in self.ended.items()],
            "lost": self.lost.copy(),
            # [ordinal, kills]
            "kills": [list(entry) for entry in self.kills.items()],
            # [ordinal, lease id, uses]
            "buffered": [
                [ordinal, entry.group.lease_id, entry.uses]
                for ordinal, entry in self.shelf.entries.items()
            ],
        }

    @classmethod
    def restore(cls, snapshot: Mapping[str, Any], group_of: Callable[[int], Group]) -> Self:
        """The state of which `snapshot` was made. `group_of` a lease id: buffered ones."""
        state = cls()
        state.version = snapshot["version"]
        state.timeline = snapshot["timeline"]
        state.next_lease_id = snapshot["next_lease_id"]
        state.num_taken = snapshot.get("num_taken", 0)  # older commits know of none of the three
        state.lost = dict(snapshot.get("lost", {}))
        state.kills = dict(snapshot.get("kills", []))
        state.ledger = Ledger.restore(snapshot["ledger"])
        state.tally = Tally.restore(snapshot["tally"])
        state.running = {lease["lease_id"]: Leased(**lease) for lease in snapshot["running"]}
        if snapshot["stop"] is not None:
            state.stop = Stop(reason=snapshot["stop"])
        for lease_id, worker, incarnation, refused in snapshot["ended"]:
            reason = None if refused is None else RefusalReason(refused)
            state.ended[lease_id] = Ended((worker, incarnation), reason)
        for _ordinal, lease_id, uses in snapshot["buffered"]:
            state.shelf.add(group_of(lease_id), uses)
        known = {leased.ordinal for leased in state.running.values()} | set(state.shelf.entries)
        state.requeued = set(state.ledger.pending) - known
        return state
