"""What became of every ordinal, judged from the journal alone. Pure.

    rows, in order ─▶ audit ─▶ fates, pending, uses, lags, lengths; and every broken promise

Written apart from the buffer and its ledger, none of whose code it shares, so that a mistake
there shows here. A commit's snapshot marks a place in the history; a rollback to it undoes all
fates, uses and groups since, except that groups named in its state's `buffered` came along. What
was issued stays issued, no lease outlives a rollback, and kills stay counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from replay.findings import Audit, Breach, Finding, Lengths, Rollback
from replay.rows import FactRow, Row, SnapshotRow

TRAINED = "trained"
NOT_FINITE, QUARANTINED = "not_finite", "quarantined"
BEFORE = "a fate from before the journal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The job's rules that the history is held to, from one launch or return to the next."""

    max_uses: int
    max_staleness: int | None  # None: `clip`, which gives the bound up
    max_kills: int | None = None  # None: of a journal from before there were quarantines


def audit(rows: Iterable[Row]) -> Audit:
    """Judge a whole journal. Raises ValueError for a row that has no meaning."""
    fold = _Fold()
    for row in rows:
        try:
            if isinstance(row, SnapshotRow):
                fold.snapshot(row)
            else:
                fold.fact(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"row {row.seq} cannot be understood: {error!r}") from error
    return fold.result()


class _Group(NamedTuple):
    """An accepted group. A rollback does not unmake it."""

    seq: int  # of its acceptance
    ordinal: int
    oldest_version: int
    newest_version: int
    num_tokens: Sequence[int]  # of each rollout
    num_cut: int


class _Item(NamedTuple):
    """What is known of one ordinal. Replaced as a whole, so that it can be put back."""

    fate: str | None = None
    lease_id: int | None = None  # of its group, which is buffered or has trained
    num_uses: int = 0


class _Mark(NamedTuple):
    """A place in the history to which the run may go back."""

    num_changes: int
    num_lags: int
    num_steps: int
    version: int


class _Batch(NamedTuple):
    version: int
    last_seq: int
    uses: list[tuple[int, int]]  # ordinal, lag as stated


class _Fold:
    """The history so far. `_changes` holds what each change replaced, to go back by."""

    def __init__(self) -> None:
        self._promise: Promise | None = None  # as the last begin or rollback row has it
        self._found = Audit()
        self._is_empty = True
        self._num_known_before = 0  # lower ordinals that are no items have a fate from before
        self._items: dict[int, _Item] = {}
        self._pending: set[int] = set()
        self._changes: list[tuple[int, _Item | None]] = []
        self._marks: dict[int, _Mark] = {}  # by seq
        self._lags: list[int] = []  # of each use
        self._batch: _Batch | None = None
        self._groups: dict[int, _Group] = {}  # by lease id, all there ever were
        self._running: dict[int, int] = {}  # lease id -> ordinal
        self._lease_of: dict[int, int] = {}  # the other way round
        self._ended: set[int] = set()  # lease ids
        self._lost: dict[str, int] = {}  # worker -> newest incarnation that was lost
        self._kills: dict[int, int] = {}  # by ordinal

    # --- facts ----------------------------------------------------------------------

    def fact(self, row: FactRow) -> None:
        self._is_empty = False
        if row.kind == "trained":
            return self._trained(row)
        if row.kind == "discarded":
            return self._discarded(row)
        if row.kind == "lost":
            self._lost[row.data["worker"]] = row.data["incarnation"]
            return None
        if row.kind == "stopped":
            return None  # of no ordinal, and no fate
        ordinal = _int(row.ordinal)
        match row.kind:
            case "leased":
                self._leased(row, ordinal)
            case "accepted":
                self._accepted(row, ordinal)
            case "refused":
                self._found.refusals[row.data["reason"]] += 1
                if row.data["ends_lease"]:
                    self._end_lease_of(ordinal)
            case "reissued":
                self._reissued(row, ordinal)
            case "dropped":
                self._dropped(row, ordinal)
            case "taken":
                self._taken(row, ordinal)
            case "killed":
                self._killed(row, ordinal)
            case "outgrown":
                pass  # it has trained, and that is all that counts here
            case kind:
                raise ValueError(f"unknown kind {kind!r}")
        return None

    def _leased(self, row: FactRow, ordinal: int) -> None:
        self._issue(row, ordinal)
        self._from_lost(row, ordinal)
        lease_id, item = _int(row.lease_id), self._item(ordinal)
        if item.fate is not None:
            self._breach(Breach.TWO_FATES, row, f"leased after its fate, {item.fate}", ordinal)
        elif item.lease_id is not None or ordinal in self._lease_of:
            what = "buffered" if item.lease_id is not None else "leased"
            self._breach(Breach.LEASED_TWICE, row, f"leased while it is {what}", ordinal)
        if lease_id in self._running or lease_id in self._ended:
            self._breach(Breach.LEASED_TWICE, row, f"lease {lease_id} is granted again", ordinal)
        self._end_lease_of(ordinal)
        self._running[lease_id] = ordinal
        self._lease_of[ordinal] = lease_id

    def _accepted(self, row: FactRow, ordinal: int) -> None:
        lease_id, data = _int(row.lease_id), row.data
        self._from_lost(row, ordinal)
        self._kills.pop(ordinal, None)
        if lease_id in self._groups:
            text = f"a second group under lease {lease_id}"
            self._breach(Breach.TWO_GROUPS, row, text, ordinal)
            return
        if self._running.get(lease_id) != ordinal:
            which = "had ended" if lease_id in self._ended else "did not run for it"
            text = f"a group under lease {lease_id}, which {which}"
            self._breach(Breach.NO_LEASE, row, text, ordinal)
        self._groups[lease_id] = group = _Group(
            seq=row.seq,
            ordinal=ordinal,
            oldest_version=_int(row.version),
            newest_version=data["newest_version"],
            num_tokens=data["num_tokens"],
            num_cut=data["num_cut"],
        )
        _add(self._found.generated, group)
        self._end_lease_of(ordinal)
        item = self._item(ordinal)
        if item.fate is None:
            self._change(ordinal, item._replace(lease_id=lease_id))

    def _from_lost(self, row: FactRow, ordinal: int) -> None:
        worker, incarnation = row.data["worker"], row.data["incarnation"]
        if incarnation <= self._lost.get(worker, -1):
            text = f"{row.kind}, but {worker} {incarnation} was lost before"
            self._breach(Breach.LOST_WORKER, row, text, ordinal)

    def _killed(self, row: FactRow, ordinal: int) -> None:
        stated, num_kills = row.data["num_kills"], self._kills.get(ordinal, 0) + 1
        if ordinal not in self._lease_of:
            self._breach(Breach.NO_LEASE, row, "an engine died of it, which had no lease", ordinal)
        if stated != num_kills:
            text = f"kill {stated}, by the facts {num_kills}"
            self._breach(Breach.KILLS, row, text, ordinal)
        self._kills[ordinal] = num_kills

    def _reissued(self, row: FactRow, ordinal: int) -> None:
        self._found.reissues[row.data["cause"]] += 1
        item = self._item(ordinal)
        if item.fate is not None:
            text = f"to be issued again after its fate, {item.fate}"
            self._breach(Breach.TWO_FATES, row, text, ordinal)
            return
        self._end_lease_of(ordinal)
        self._change(ordinal, item._replace(lease_id=None))

    def _dropped(self, row: FactRow, ordinal: int) -> None:
        reason = row.data["reason"]
        if reason == QUARANTINED:
            self._quarantined(row, ordinal)
        self._issue(row, ordinal)
        self._end_lease_of(ordinal)
        item = self._item(ordinal)
        if item.fate is not None:
            text = f"dropped as {reason} after its fate, {item.fate}"
            self._breach(Breach.TWO_FATES, row, text, ordinal)
        else:
            self._change(ordinal, item._replace(fate=reason, lease_id=None))

    def _quarantined(self, row: FactRow, ordinal: int) -> None:
        most = None if self._promise is None else self._promise.max_kills
        num_kills = self._kills.get(ordinal, 0)
        if most is not None and num_kills < most:
            text = f"dropped as quarantined after {num_kills} kills, not {most}"
            self._breach(Breach.KILLS, row, text, ordinal)

    def _taken(self, row: FactRow, ordinal: int) -> None:
        version, batch = _int(row.version), self._batch
        use = (ordinal, row.data["lag"])
        if batch is not None and (batch.version, batch.last_seq + 1) == (version, row.seq):
            batch.uses.append(use)
            self._batch = batch._replace(last_seq=row.seq)
            return
        if batch is not None:
            text = f"a batch of version {version}, while that of {batch.version} is under way"
            self._breach(Breach.STEP_ORDER, row, text)
        elif version != self._found.version:
            text = f"a batch of version {version}, at version {self._found.version}"
            self._breach(Breach.STEP_ORDER, row, text)
        self._batch = _Batch(version, row.seq, [use])

    def _trained(self, row: FactRow) -> None:
        version, batch = _int(row.version), self._batch
        if version <= self._found.version:
            self._breach(Breach.STEP_ORDER, row, f"the step to version {version} trained again")
        elif version != self._found.version + 1:
            text = f"the step to version {version} follows version {self._found.version}"
            self._breach(Breach.STEP_ORDER, row, text)
        elif batch is None or batch.version != version - 1:
            text = f"the step to version {version} had no batch of version {version - 1}"
            self._breach(Breach.STEP_ORDER, row, text)
        if batch is not None:
            for ordinal, lag in batch.uses:
                self._used(row, ordinal, batch_version=batch.version, stated_lag=lag)
        self._batch = None
        self._found.version = max(version, self._found.version)
        self._found.num_steps += 1

    def _discarded(self, row: FactRow) -> None:
        """What never trained has its fate; what has keeps it."""
        version, batch = _int(row.version), self._batch
        if batch is None or batch.version != version:
            text = f"a batch of version {version} was discarded, which was not under way"
            self._breach(Breach.STEP_ORDER, row, text)
            return
        for ordinal, _ in batch.uses:
            item = self._item(ordinal)
            if item.fate not in (None, TRAINED):
                text = f"dropped as {NOT_FINITE} after its fate, {item.fate}"
                self._breach(Breach.TWO_FATES, row, text, ordinal)
            elif item.lease_id is None:
                text = "dropped with its batch, but no group is there"
                self._breach(Breach.NEVER_ACCEPTED, row, text, ordinal)
            elif item.fate is None:
                self._change(ordinal, item._replace(fate=NOT_FINITE, lease_id=None))
        self._batch = None

    def _used(self, row: FactRow, ordinal: int, *, batch_version: int, stated_lag: int) -> None:
        item = self._item(ordinal)
        if item.fate not in (None, TRAINED):
            self._breach(Breach.TWO_FATES, row, f"trained after its fate, {item.fate}", ordinal)
        elif item.lease_id is None:
            self._breach(Breach.NEVER_ACCEPTED, row, "trained, but no group is there", ordinal)
        promise = self._promise
        if promise is None:
            raise ValueError("a step before the row that begins the journal")
        if item.num_uses + 1 > promise.max_uses:
            text = f"trained {item.num_uses + 1} times, at most {promise.max_uses}"
            self._breach(Breach.TOO_MANY_USES, row, text, ordinal)
        lag = self._lag(item, batch_version, stated_lag)
        if lag != stated_lag:
            text = f"trained at a lag of {lag}, which was stated as {stated_lag}"
            self._breach(Breach.LAG, row, text, ordinal)
        bound = promise.max_staleness
        if bound is not None and lag > bound:
            self._breach(Breach.LAG, row, f"trained at a lag of {lag}, at most {bound}", ordinal)
        self._lags.append(lag)
        if item.fate != BEFORE:
            fate = TRAINED if item.fate is None else item.fate
            self._change(ordinal, item._replace(fate=fate, num_uses=item.num_uses + 1))

    def _lag(self, item: _Item, batch_version: int, stated_lag: int) -> int:
        """By the group's oldest token; as stated, where the group came before the journal."""
        group = None if item.lease_id is None else self._groups.get(item.lease_id)
        return stated_lag if group is None else batch_version - group.oldest_version

    # --- snapshots ------------------------------------------------------------------

    def snapshot(self, row: SnapshotRow) -> None:
        if row.kind != "commit":
            self._promise = Promise(**row.state["promise"])
        if row.kind == "rollback":
            self._go_back(row)
        elif self._is_empty:
            self._begin(row.state)
        if row.kind == "rollback" or self._is_empty:
            # Workers come anew; what engines died of stays known, but for what came along.
            self._lost.clear()
            self._kills = dict(row.state.get("kills", []))
        self._is_empty = False
        self._compare(row)
        if row.kind != "rollback":
            self._marks[row.seq] = _Mark(
                num_changes=len(self._changes),
                num_lags=len(self._lags),
                num_steps=self._found.num_steps,
                version=self._found.version,
            )

    def _go_back(self, row: SnapshotRow) -> None:
        from_seq: int | None = row.state.get("from_seq")
        mark = None if from_seq is None else self._marks.get(from_seq)
        from_version, num_came_along = self._found.version, 0
        self._batch = None
        for ordinal in list(self._lease_of):
            self._end_lease_of(ordinal)
        if from_seq is None or mark is None:
            if from_seq is not None:
                text = f"the run went back to row {from_seq}, which is no commit of its line"
                self._breach(Breach.ROLLBACK, row, text)
            self._begin(row.state)
        else:
            self._marks = {seq: mark for seq, mark in self._marks.items() if seq <= from_seq}
            self._undo(mark)
            num_came_along = self._come_along(row, from_seq)
        self._found.rollbacks.append(
            Rollback(
                seq=row.seq,
                at_s=row.at_s,
                timeline=row.timeline,
                from_seq=0 if from_seq is None or mark is None else from_seq,
                from_version=from_version,
                to_version=row.version,
                num_came_along=num_came_along,
            )
        )

    def _undo(self, mark: _Mark) -> None:
        """As at the mark, but what was issued since then stays issued, and is pending."""
        issued_since = []
        while len(self._changes) > mark.num_changes:
            ordinal, before = self._changes.pop()
            self._put(ordinal, before)
            if before is None:
                issued_since.append(ordinal)
        for ordinal in issued_since:
            self._change(ordinal, _Item())
        del self._lags[mark.num_lags :]
        self._found.num_steps = mark.num_steps
        self._found.version = mark.version

    def _come_along(self, row: SnapshotRow, from_seq: int) -> int:
        """Take over which groups are buffered; returns how many of them came since the commit."""
        buffered = {ordinal: lease_id for ordinal, lease_id, _ in row.state["buffered"]}
        num_came_along = 0
        for ordinal in [o for o in self._pending if self._items[o].lease_id is not None]:
            if ordinal not in buffered:
                self._change(ordinal, self._items[ordinal]._replace(lease_id=None))
        for ordinal, lease_id in buffered.items():
            item, group = self._item(ordinal), self._groups.get(lease_id)
            if item.lease_id == lease_id:
                continue
            num_came_along += 1
            if group is None or group.ordinal != ordinal or group.seq < from_seq:
                text = f"went back with the group of lease {lease_id}, which is not there"
                self._breach(Breach.NEVER_ACCEPTED, row, text, ordinal)
            elif group.newest_version > row.version:
                text = f"went back to {row.version} with tokens of version {group.newest_version}"
                self._breach(Breach.ROLLBACK, row, text, ordinal)
            if item.fate is not None:
                text = f"went back with its group after its fate, {item.fate}"
                self._breach(Breach.ROLLBACK, row, text, ordinal)
            else:
                self._change(ordinal, item._replace(lease_id=lease_id))
        return num_came_along

    def _begin(self, state: Mapping[str, Any]) -> None:
        """Start from a state whose history is not in the journal."""
        ledger, found = state["ledger"], self._found
        self._changes.clear()
        self._marks.clear()
        self._lags.clear()
        self._items = {int(ordinal): _Item() for ordinal in ledger["pending"]}
        self._pending = set(self._items)
        self._num_known_before = ledger["num_issued"]
        for ordinal, lease_id, uses in state["buffered"]:
            fate = None if ordinal in self._pending else TRAINED
            self._items[ordinal] = _Item(fate=fate, lease_id=lease_id, num_uses=uses)
        found.fates = Counter(ledger["counts"])
        found.num_issued = max(found.num_issued, ledger["num_issued"])
        found.version, found.num_steps = state["version"], 0

    def _compare(self, row: SnapshotRow) -> None:
        """The state that replay wrote down is the one that follows from the facts."""
        state, found = row.state, self._found
        ledger = state["ledger"]
        if row.version != found.version or state["version"] != found.version:
            text = f"its version is {state['version']}, by the facts {found.version}"
            self._breach(Breach.SNAPSHOT, row, text)
        if ledger["num_issued"] != found.num_issued:
            text = f"{ledger['num_issued']} ordinals issued, by the facts {found.num_issued}"
            self._breach(Breach.SNAPSHOT, row, text)
            self._skip_to(row, ledger["num_issued"])
        if +Counter(ledger["counts"]) != +found.fates:
            text = f"fates {ledger['counts']}, by the facts {dict(+found.fates)}"
            self._breach(Breach.SNAPSHOT, row, text)
        differ = {int(ordinal) for ordinal in ledger["pending"]} ^ self._pending
        if differ:
            text = f"{_some(differ)}: pending here or by the facts, but not both"
            self._breach(Breach.SNAPSHOT, row, text)
        self._compare_groups(row)

    def _compare_groups(self, row: SnapshotRow) -> None:
        state = row.state
        mine = {self._items[o].lease_id for o in self._pending} - {None}
        theirs = {lease_id for o, lease_id, _ in state["buffered"] if o in self._pending}
        if mine != theirs:
            text = f"leases {_some(mine ^ theirs)}: buffered here or by the facts, but not both"
            self._breach(Breach.SNAPSHOT, row, text)
        running = {leased["lease_id"] for leased in state["running"]}
        if running != set(self._running):
            differ = running ^ set(self._running)
            text = f"leases {_some(differ)}: running here or by the facts, but not both"
            self._breach(Breach.SNAPSHOT, row, text)

    # --- ordinals -------------------------------------------------------------------

    def _item(self, ordinal: int) -> _Item:
        known = self._items.get(ordinal)
        if known is not None:
            return known
        return _Item(fate=BEFORE) if 0 <= ordinal < self._num_known_before else _Item()

    def _change(self, ordinal: int, item: _Item) -> None:
        self._changes.append((ordinal, self._items.get(ordinal)))
        self._put(ordinal, item)

    def _put(self, ordinal: int, item: _Item | None) -> None:
        before, fates = self._items.get(ordinal), self._found.fates
        if before is not None and before.fate is not None:
            fates[before.fate] -= 1
        self._pending.discard(ordinal)
        if item is None:
            self._items.pop(ordinal, None)
            return
        self._items[ordinal] = item
        if item.fate is None:
            self._pending.add(ordinal)
        else:
            fates[item.fate] += 1

    def _issue(self, row: Row, ordinal: int) -> None:
        """It leaves the stream, if it has not before."""
        if ordinal not in self._items and ordinal >= self._num_known_before:
            self._skip_to(row, ordinal)
            self._found.num_issued = max(self._found.num_issued, ordinal + 1)
            self._change(ordinal, _Item())

    def _skip_to(self, row: Row, ordinal: int) -> None:
        skipped = range(self._found.num_issued, ordinal)
        if skipped:
            text = f"{_some(set(skipped))} passed over"
            self._breach(Breach.GAP, row, text, skipped[0])
            self._found.num_issued = ordinal

    def _end_lease_of(self, ordinal: int) -> None:
        lease_id = self._lease_of.pop(ordinal, None)
        if lease_id is not None:
            del self._running[lease_id]
            self._ended.add(lease_id)

    def _breach(self, breach: Breach, row: Row, text: str, ordinal: int | None = None) -> None:
        finding = Finding(breach=breach, seq=row.seq, ordinal=ordinal, text=text)
        self._found.findings.append(finding)

    def result(self) -> Audit:
        found, items = self._found, self._items
        gaps = {o for o in range(self._num_known_before, found.num_issued) if o not in items}
        found.fates = +found.fates
        found.num_leased = len(self._pending & set(self._lease_of))
        found.num_buffered = sum(items[o].lease_id is not None for o in self._pending)
        found.num_waiting = len(self._pending) - found.num_leased - found.num_buffered
        found.frontier = min(self._pending | gaps, default=found.num_issued)
        found.num_gaps = len(gaps)
        found.num_uses = len(self._lags)
        found.lags = Counter(self._lags)
        too_often = (f.ordinal for f in found.findings if f.breach is Breach.TOO_MANY_USES)
        found.num_duplicates = len(set(too_often))
        for item in items.values():
            if item.fate == TRAINED and item.lease_id in self._groups:
                _add(found.trained, self._groups[item.lease_id])
        return found


def _add(lengths: Lengths, group: _Group) -> None:
    lengths.num_rollouts += len(group.num_tokens)
    lengths.num_tokens += sum(group.num_tokens)
    lengths.num_cut += group.num_cut


def _int(value: int | None) -> int:
    if value is None:
        raise ValueError("a column is empty")
    return value


def _some(numbers: Collection[int | None]) -> str:
    """At most five of them."""
    first = sorted(number for number in numbers if number is not None)[:5]
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return ", ".join(map(str, first)) + more
