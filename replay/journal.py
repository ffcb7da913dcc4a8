"""What happened, on disk: the facts in their order, the groups that may still train, snapshots.

    facts      every fact, for ever          ─▶ `rows`, `story`: what became of each ordinal
    payloads   encoded groups, until `prune` ─▶ `candidates`: what a rollback can bring back
    snapshots  what the facts before add up to
                  └─ the newest, and the facts since ─▶ `latest`: replay whose process died

One SQLite file in WAL mode, of one writing process; any others of the same machine may read
meanwhile. A write is there as a whole or not at all. With `durability` commit it is on the disk
when it returns, with flush it survives the death of the process, and a power failure costs the
newest facts. After a failed write nothing more is written: what is in memory would be ahead.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from heapq import merge
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from replay.facts import Accepted, Fact
from replay.rows import (
    FactRow,
    Row,
    SnapshotKind,
    SnapshotRow,
    columns_of,
    facts_of,
)
from slipstream.codec import decode, encode
from slipstream.config.job import Durability
from slipstream.errors import SlipstreamError
from slipstream.faults import fault_point
from slipstream.records import Group

FORMAT = 1
FILE_NAME = "replay.sqlite"  # in the run's directory

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE facts (
    seq INTEGER PRIMARY KEY, at_s REAL NOT NULL, kind TEXT NOT NULL,
    ordinal INTEGER, lease_id INTEGER, version INTEGER, data TEXT NOT NULL
);
CREATE INDEX facts_of_ordinal ON facts (ordinal);
CREATE TABLE payloads (
    lease_id INTEGER PRIMARY KEY, ordinal INTEGER NOT NULL, seq INTEGER NOT NULL,
    newest_version INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE TABLE snapshots (
    seq INTEGER PRIMARY KEY, at_s REAL NOT NULL, kind TEXT NOT NULL,
    version INTEGER NOT NULL, timeline INTEGER NOT NULL, state TEXT NOT NULL
);
"""
_FACTS = "SELECT seq, at_s, kind, ordinal, lease_id, version, data FROM facts"
_SNAPSHOTS = "SELECT seq, at_s, kind, version, timeline, state FROM snapshots"
# Synced at every commit; or only when the log is moved into the file, which keeps it sound.
_SYNCHRONOUS = {"commit": "FULL", "flush": "NORMAL"}
_MAX_IDLE_LOG_BYTES = 64 * 2**20
_to_json = json.JSONEncoder(separators=(",", ":")).encode


class JournalError(SlipstreamError):
    """The journal cannot be read, or not be written any more; `str()` says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """What brings replay back after its process died."""

    state: Mapping[str, Any]  # of the newest snapshot; its groups are had by `group_of`
    seq: int  # of that snapshot
    facts: Iterator[Fact]  # since then; read while it is iterated


class JournalReader:
    """A journal as tools see it; a live job may be writing it. Raises JournalError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise JournalError(f"{path} does not exist")
        # Without a log beside it nobody has it open, and then no file need be made to read it.
        mode = "mode=ro" if _log_of(path).exists() else "immutable=1"
        self._db = self._connect(f"{path.resolve().as_uri()}?{mode}")
        with self._closed_on_error():
            self._check_format()

    # --- reading --------------------------------------------------------------------

    @property
    def job(self) -> str:
        """The name of the job whose journal it is."""
        return str(self._meta("job"))

    @property
    def id(self) -> str:
        """Tells this journal from one that was lost, of the same job."""
        return str(self._meta("id"))

    def rows(self, *, since_seq: int = -1) -> Iterator[Row]:
        """Everything after `since_seq`, in order, as of one moment."""
        since = ("WHERE seq > ? ORDER BY seq", (since_seq,))
        with self._sound(), self._one_moment():
            tables: list[Iterator[Row]] = [self._facts(*since), self._snapshots(*since)]
            yield from merge(*tables, key=lambda row: row.seq)

    def story(self, ordinal: int) -> list[Row]:
        """The rows of one ordinal, what became of its batches, and every rollback."""
        ended = (
            "WHERE kind IN ('trained', 'discarded') AND version - (kind = 'trained') IN "
            "(SELECT version FROM facts WHERE ordinal = ? AND kind = 'taken') ORDER BY seq"
        )
        with self._sound(), self._one_moment():
            own = list(self._facts("WHERE ordinal = ? ORDER BY seq", (ordinal,)))
            ends = list(self._facts(ended, (ordinal,)))
            rollbacks = list(self._snapshots("WHERE kind = 'rollback' ORDER BY seq"))
        its_ends: list[Row] = [
            end for row in own if row.kind == "taken" for end in _end_of(row, ends, rollbacks)
        ]
        parts: list[list[Row]] = [[*own], its_ends, [*rollbacks]]
        return list(merge(*parts, key=lambda row: row.seq))

    def latest(self) -> Latest | None:
        """None before the first snapshot."""
        with self._sound():
            newest = next(self._snapshots("ORDER BY seq DESC LIMIT 1"), None)
        if newest is None:
            return None
        return Latest(state=newest.state, seq=newest.seq, facts=self._facts_since(newest.seq))

    def is_commit(self, seq: int, *, version: int, timeline: int) -> bool:
        """Whether the step boundary of a commit stands at `seq`."""
        with self._sound():
            row = next(self._snapshots("WHERE seq = ?", (seq,)), None)
        found = row and (row.kind, row.version, row.timeline)
        return found == ("commit", version, timeline)

    def group_of(self, lease_id: int) -> Group:
        """The group that was accepted under this lease, if it was not forgotten yet."""
        with self._sound():
            query = "SELECT data FROM payloads WHERE lease_id = ?"
            found = self._db.execute(query, (lease_id,)).fetchone()
            if found is None:
                raise ValueError(f"the group of lease {lease_id} is gone")
            return decode(found[0])

    def candidates(self, *, since_seq: int, max_version: int) -> Iterator[Group]:
        """Groups accepted after `since_seq`, in order, no token of which is newer.

        These still exist after going back to `max_version`.
        """
        query = "SELECT data FROM payloads WHERE seq > ? AND newest_version <= ? ORDER BY seq"
        with self._sound():
            for (data,) in self._db.execute(query, (since_seq, max_version)):
                yield decode(data)

    def _facts_since(self, seq: int) -> Iterator[Fact]:
        with self._sound():
            yield from facts_of(self._facts("WHERE seq > ? ORDER BY seq", (seq,)), self.group_of)

    def _facts(self, where: str, values: Sequence[int] = ()) -> Iterator[FactRow]:
        return map(_fact_row, self._db.execute(f"{_FACTS} {where}", values))

    def _snapshots(self, where: str, values: Sequence[int] = ()) -> Iterator[SnapshotRow]:
        return map(_snapshot_row, self._db.execute(f"{_SNAPSHOTS} {where}", values))

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the file -------------------------------------------------------------------

    def _connect(self, uri: str) -> sqlite3.Connection:
        with self._explained():
            # One thread at a time, but not always the same one.
            return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)

    def _check_format(self) -> None:
        with self._explained():
            tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
            if not {"meta", "facts", "payloads", "snapshots"} <= tables:
                raise JournalError(f"{self.path} is no journal of replay; move it away")
            found = self._meta("format")
        if found != FORMAT:
            raise JournalError(
                f"{self.path} has format {found}, this is {FORMAT}; use the version of Slipstream "
                "that wrote it"
            )

    def _meta(self, key: str) -> int | str:
        with self._sound():
            query = "SELECT value FROM meta WHERE key = ?"
            found: tuple[int | str] | None = self._db.execute(query, (key,)).fetchone()
            if found is None:
                raise ValueError(f"it does not tell its {key}")
            return found[0]

    @contextmanager
    def _one_moment(self) -> Iterator[None]:
        """All that is read inside is of one moment, whatever is written meanwhile."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            with suppress(sqlite3.ProgrammingError):  # closed before all was read
                self._db.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: {error}; {_remedy(error)}") from error

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """As `_explained`, where what was read is given a meaning."""
        try:
            with self._explained():
                yield
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(f"{self.path}: {error}; the file is damaged") from error

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._db.close()
            raise


class Journal(JournalReader):
    """A journal as replay writes it; one that is not there is made. Raises JournalError.

    Opening it shuts out whoever had it open for writing before, such as a process that was
    taken for dead.
    """

    def __init__(self, path: Path, *, job: str, durability: Durability) -> None:
        self.path = path
        self._is_writing = False
        self._failure: JournalError | None = None
        self._db = self._connect(f"{path.resolve().as_uri()}?mode=rwc")
        with self._closed_on_error(), self._explained():
            is_new = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
            if is_new:
                self._make(job)
            self._check_format()
            if self.job != job:
                raise JournalError(f"{path} is the journal of the job {self.job!r}, not {job!r}")
            self._db.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[durability]}")
            self._db.execute(f"PRAGMA journal_size_limit = {_MAX_IDLE_LOG_BYTES}")
            self._db.execute("PRAGMA secure_delete = OFF")  # some builds zero what is deleted
            self._db.execute("UPDATE meta SET value = value + 1 WHERE key = 'writer'")
            self._writer = self._meta("writer")
            self._seq = self._last_seq()

    # --- writing --------------------------------------------------------------------

    def append(self, facts: Sequence[Fact]) -> int:
        """Write `facts` down, all or none; returns the last one's seq."""
        with self.transaction():
            for fact in facts:
                self._append(fact)
            return self._seq

    def snapshot(
        self,
        kind: SnapshotKind,
        *,
        version: int,
        timeline: int,
        state: Mapping[str, Any],
        groups: Iterable[Group] = (),
    ) -> int:
        """Write down what all facts so far add up to; returns its seq.

        `groups`: buffered ones that may have been forgotten, or come from a lost journal.
        """
        fault_point("journal.snapshot")
        with self.transaction():
            self._seq += 1
            self._db.execute(
                "INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?)",
                (self._seq, time.time(), kind, version, timeline, _to_json(state)),
            )
            for group in groups:
                self._keep(group)
            fault_point("journal.snapshot_written")
            return self._seq

    def prune(self, seq: int, live_lease_ids: Collection[int]) -> None:
        """Forget the groups accepted at or before `seq` that are not live.

        For when the commit of the snapshot `seq` is durable, and nothing goes back behind it.
        """
        fault_point("journal.prune")
        with self.transaction():
            self._db.execute(
                "DELETE FROM payloads WHERE seq <= ? AND lease_id NOT IN "
                "(SELECT value FROM json_each(?))",
                (seq, _to_json(list(live_lease_ids))),
            )
            fault_point("journal.pruned")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside are there together, or none is."""
        if self._is_writing:
            yield
            return
        if self._failure is not None:
            raise JournalError(str(self._failure))
        try:
            with self._explained():
                fault_point("journal.begin")
                self._db.execute("BEGIN IMMEDIATE")
                self._is_writing = True
                if self._meta("writer") != self._writer:
                    raise JournalError(f"{self.path} was opened by another process, which goes on")
                yield
                fault_point("journal.commit")
                self._db.execute("COMMIT")
                fault_point("journal.committed")
        except BaseException as error:
            self._failure = (
                error if isinstance(error, JournalError) else JournalError(f"{self.path}: {error}")
            )
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        finally:
            self._is_writing = False

    def _append(self, fact: Fact) -> None:
        for kind, ordinal, lease_id, version, data in columns_of(fact):
            self._seq += 1
            self._db.execute(
                "INSERT INTO facts VALUES (?, ?, ?, ?, ?, ?, ?)",
                (self._seq, time.time(), kind, ordinal, lease_id, version, _to_json(data)),
            )
        if isinstance(fact, Accepted):
            self._keep(fact.group)

    def _keep(self, group: Group) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO payloads VALUES (?, ?, ?, ?, ?)",
            (group.lease_id, group.ordinal, self._seq, group.newest_version, encode(group)),
        )

    def _make(self, job: str) -> None:
        self._db.execute("PRAGMA page_size = 16384")  # groups are large
        if self._db.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise JournalError(f"{self.path} lies on a file system that SQLite cannot log on")
        fault_point("journal.make")
        self._db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            self._db.execute(statement)
        self._db.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [("format", FORMAT), ("job", job), ("id", uuid4().hex), ("writer", 0)],
        )
        self._db.execute("COMMIT")
        fault_point("journal.made")

    def _last_seq(self) -> int:
        tables = "SELECT seq FROM facts UNION ALL SELECT seq FROM snapshots"
        return int(self._db.execute(f"SELECT ifnull(max(seq), 0) FROM ({tables})").fetchone()[0])


def _end_of(
    taken: FactRow, ends: Sequence[FactRow], rollbacks: Sequence[SnapshotRow]
) -> list[FactRow]:
    """Where the batch of what was taken has trained or was discarded, if the run came so far
    before it went back: the next end of any batch of `ends`."""
    stop = min((row.seq for row in rollbacks if row.seq > taken.seq), default=math.inf)
    return [row for row in ends if taken.seq < row.seq < stop][:1]


def _fact_row(values: tuple[Any, ...]) -> FactRow:
    seq, at_s, kind, ordinal, lease_id, version, data = values
    return FactRow(
        seq=seq,
        at_s=at_s,
        kind=kind,
        ordinal=ordinal,
        lease_id=lease_id,
        version=version,
        data=json.loads(data),
    )


def _snapshot_row(values: tuple[Any, ...]) -> SnapshotRow:
    seq, at_s, kind, version, timeline, state = values
    return SnapshotRow(
        seq=seq,
        at_s=at_s,
        kind=kind,
        version=version,
        timeline=timeline,
        state=json.loads(state),
    )


def _log_of(path: Path) -> Path:
    """Where SQLite keeps what is not yet in the file itself; there while anyone has it open."""
    return path.with_name(path.name + "-wal")


def _remedy(error: sqlite3.Error) -> str:
    match getattr(error, "sqlite_errorname", "").split("_")[1:]:
        case ["FULL", *_]:
            return "free some space, and go on with --resume"
        case ["READONLY" | "CANTOPEN" | "PERM", *_]:
            return "make its directory writable, or set replay.durability: off"
        case ["NOTADB" | "CORRUPT", *_]:
            return "it is damaged or no journal; move it away to go on from the commit alone"
        case ["BUSY" | "LOCKED", *_]:
            return "another process is writing it"
        case _:
            return "see to the disk, and go on with --resume"
