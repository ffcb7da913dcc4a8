"""What was acknowledged is there, nothing is there twice, and what is wrong is said."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replay.facts import (
    Accepted,
    Discarded,
    Dropped,
    Fact,
    Killed,
    Lost,
    Outgrown,
    Refused,
    Reissued,
    Taken,
    Trained,
    Use,
)
from replay.journal import FILE_NAME, Journal, JournalError, JournalReader
from replay.journal_writer import JournalWriter
from replay.rows import FactRow, SnapshotRow
from slipstream.records import DropReason, FailureReason, RefusalReason
from tests.helpers.groups import accepted, leased, make_group

ROOT = Path(__file__).parents[3]
FAULTS = {
    "journal.make",
    "journal.made",
    "journal.begin",
    "journal.commit",
    "journal.committed",
    "journal.snapshot",
    "journal.snapshot_written",
    "journal.prune",
    "journal.pruned",
}
ALL_KINDS: list[Fact] = [
    leased(1, 5),
    Refused(
        ordinal=5,
        lease_id=1,
        reason=RefusalReason.FAILED_ROLLOUT,
        failures=(FailureReason.REWARD_TIMEOUT, FailureReason.REWARD_ERROR),
        ends_lease=True,
    ),
    Reissued(ordinal=5, cause="failed"),
    accepted(2, 5, 3, 4),
    Dropped(ordinal=6, reason=DropReason.PROMPT_TOO_LONG),
    Taken(version=4, uses=(Use(ordinal=5, lag=1, use=1), Use(ordinal=7, lag=0, use=2))),
    Trained(version=5),
    Taken(version=5, uses=(Use(ordinal=5, lag=2, use=2),)),
    Discarded(version=5, number=1),
    Taken(version=5, uses=(Use(ordinal=7, lag=1, use=3),)),
    Outgrown(ordinal=7),
    Lost(worker="w0", incarnation=2),
    Killed(ordinal=5, num_kills=1),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


def opened(path: Path, **settings: Any) -> Journal:
    return Journal(path, **({"job": "test", "durability": "flush"} | settings))


def plain(facts: Any) -> list[str]:
    """Comparable, as arrays are not."""
    return [repr(fact) for fact in facts]


def empty(journal: Journal) -> int:
    return journal.snapshot("begin", version=0, timeline=0, state={})


def fails(call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(JournalError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)


# --- reading what was written -----------------------------------------------------


@pytest.mark.parametrize("durability", ["commit", "flush"])
def test_facts_come_back_after_the_newest_snapshot(path: Path, durability: str) -> None:
    with opened(path, durability=durability) as journal:
        assert journal.latest() is None
        empty(journal)
        journal.append([leased(0, 0)])
        seq = journal.snapshot("commit", version=4, timeline=1, state={"version": 4})
        assert journal.append(ALL_KINDS) == seq + 14, "a row for each use"
    with opened(path) as journal:
        latest = journal.latest()
        assert latest is not None
        assert (latest.seq, latest.state) == (seq, {"version": 4})
        assert plain(latest.facts) == plain(ALL_KINDS)
        assert journal.append([Trained(version=6)]) == seq + 15, "seqs go on"


def test_two_batches_one_after_the_other_stay_two(path: Path) -> None:
    batches = [Taken(version=v, uses=(Use(ordinal=1, lag=0, use=1),)) for v in (4, 5)]
    with opened(path) as journal:
        empty(journal)
        journal.append(batches)
        latest = journal.latest()
        assert latest is not None
        assert list(latest.facts) == batches


def test_rows_tell_all_in_one_order(path: Path) -> None:
    with opened(path) as journal:
        empty(journal)
        journal.append(ALL_KINDS[:4])
        journal.snapshot("commit", version=0, timeline=0, state={"a": [1]})
        journal.append(ALL_KINDS[5:6])
        rows = list(journal.rows())
    assert [row.seq for row in rows] == list(range(1, 9))
    kinds = ["begin", "leased", "refused", "reissued", "accepted", "commit", "taken", "taken"]
    assert [row.kind for row in rows] == kinds
    group = rows[4]
    assert isinstance(group, FactRow)
    assert (group.ordinal, group.lease_id, group.version) == (5, 2, 3)
    assert group.data == {
        "worker": "w0",
        "incarnation": 0,
        "attempt": 0,
        "newest_version": 4,
        "num_tokens": [4, 4],
        "num_cut": 0,
        "mean_reward": 0.5,
    }
    commit = rows[5]
    assert isinstance(commit, SnapshotRow)
    assert commit.state == {"a": [1]}


def test_candidates_are_what_a_rollback_can_bring_back(path: Path) -> None:
    with opened(path) as journal:
        journal.append([accepted(0, 0, 3)])
        commit = journal.snapshot("commit", version=4, timeline=0, state={})
        journal.append([accepted(1, 1, 3, 4), accepted(2, 2, 4, 5), accepted(3, 3, 4)])
        found = journal.candidates(since_seq=commit, max_version=4)
        assert [group.lease_id for group in found] == [1, 3]


def test_prune_forgets_payloads_and_no_facts(path: Path) -> None:
    with opened(path) as journal:
        journal.append([accepted(i, i) for i in range(3)])
        commit = journal.snapshot("commit", version=0, timeline=0, state={})
        journal.append([accepted(3, 3)])
        journal.prune(commit, [1])
        assert journal.group_of(1).ordinal == 1
        assert journal.group_of(3).ordinal == 3
        for lease_id in (0, 2):
            fails(lambda gone=lease_id: journal.group_of(gone), f"lease {lease_id} is gone")
        assert [row.kind for row in journal.rows()].count("accepted") == 4


def test_a_story_has_one_ordinal_its_steps_and_the_rollbacks(path: Path) -> None:
    used = [Taken(version=0, uses=(Use(ordinal=0, lag=0, use=1),)), Trained(version=1)]
    other = [Taken(version=0, uses=(Use(ordinal=1, lag=0, use=1),)), Trained(version=1)]
    with opened(path) as journal:
        empty(journal)
        journal.append([leased(0, 0), leased(1, 1), accepted(0, 0), accepted(1, 1), *used])
        journal.snapshot("rollback", version=0, timeline=1, state={})
        journal.append(other)
        kinds = [row.kind for row in journal.story(0)]
        assert kinds == ["leased", "accepted", "taken", "trained", "rollback"]
        kinds = [row.kind for row in journal.story(1)]
        assert kinds == ["leased", "accepted", "rollback", "taken", "trained"]
        assert [row.kind for row in journal.story(9)] == ["rollback"]


def test_a_story_tells_a_discarded_batch_from_the_next_of_its_version(path: Path) -> None:
    batches = [Taken(version=0, uses=(Use(ordinal=o, lag=0, use=1),)) for o in (0, 1)]
    with opened(path) as journal:
        empty(journal)
        journal.append([batches[0], Discarded(version=0, number=0)])
        journal.append([batches[1], Trained(version=1)])
        assert [row.kind for row in journal.story(0)] == ["taken", "discarded"]
        assert [row.kind for row in journal.story(1)] == ["taken", "trained"]


def test_a_reader_sees_whole_transactions_while_the_job_writes(path: Path) -> None:
    journal = opened(path)
    empty(journal)
    done = threading.Event()
    counts: list[int] = []

    def read() -> None:
        while not done.is_set() or not counts:
            with JournalReader(path) as reader:
                rows = list(reader.rows())
                assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
                assert len(rows) % 2 == 1, "half a transaction"
                for row in rows[1:]:
                    if row.kind == "accepted":
                        assert reader.group_of(row.lease_id or 0).ordinal == row.ordinal
                counts.append(len(rows))

    with_error: list[BaseException] = []
    thread = threading.Thread(target=lambda: _caught(read, with_error))
    thread.start()
    for i in range(100):
        journal.append([leased(i, i), accepted(i, i)])
    done.set()
    thread.join()
    assert not with_error
    assert counts == sorted(counts)
    journal.close()
    with JournalReader(path) as reader:
        assert len(list(reader.rows())) == 201
    assert list(path.parent.iterdir()) == [path], "reading leaves nothing behind"


def _caught(call: Callable[[], None], errors: list[BaseException]) -> None:
    try:
        call()
    except BaseException as error:
        errors.append(error)


# --- group commit -----------------------------------------------------------------


def test_concurrent_writes_keep_their_order_and_share_transactions(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    journal = opened(path)
    monkeypatch.setenv("SLIPSTREAM_FAULT_TRACE", str(trace))

    async def main() -> list[int]:
        writer = JournalWriter(journal)
        futures = [writer.write([Reissued(ordinal=i, cause="expired")]) for i in range(50)]
        snapshot = writer.do(
            lambda: journal.snapshot("commit", version=0, timeline=0, state={"x": 1})
        )
        futures[7].cancel()
        seqs = [await future for future in futures if not future.cancelled()]
        assert await snapshot == 51
        assert await writer.do(lambda: [row.seq for row in journal.rows()]) == list(range(1, 52))
        late = writer.write([Trained(version=1)])
        await writer.close()
        assert late.result() == 52
        return seqs

    seqs = asyncio.run(main())
    assert seqs == [i + 1 for i in range(50) if i != 7]
    assert trace.read_text().count("journal.begin") <= 4
    with JournalReader(path) as reader:
        ordinals = [row.ordinal for row in reader.rows() if isinstance(row, FactRow)]
    assert ordinals == [*range(50), None]


def test_a_full_disk_reaches_every_waiter_and_all_later_ones(path: Path) -> None:
    journal = opened(path)
    acknowledged = journal.append([accepted(0, 0)])
    journal._db.execute("PRAGMA max_page_count = 10")

    async def main() -> list[BaseException | int]:
        writer = JournalWriter(journal)
        group = make_group(1, 1, num_tokens=100_000)
        big = writer.write([Accepted(lease_id=1, group=group)])
        small = writer.write([Reissued(ordinal=0, cause="expired")])
        results = await asyncio.gather(big, small, return_exceptions=True)
        later = writer.write([Reissued(ordinal=0, cause="expired")])
        return [*results, *await asyncio.gather(later, return_exceptions=True)]

    results = asyncio.run(main())
    assert len(results) == 3
    for result in results:
        assert isinstance(result, JournalError)
        assert str(path) in str(result)
        assert "full; free some space" in str(result)
    fails(lambda: journal.prune(0, []), "full")
    journal.close()
    with opened(path) as again:
        assert [row.seq for row in again.rows()] == [acknowledged]
        again.append([accepted(1, 1)])


def test_a_mistake_in_one_write_stops_all(path: Path) -> None:
    journal = opened(path)
    with pytest.raises(TypeError):
        journal.snapshot("commit", version=0, timeline=0, state={"x": object()})
    fails(lambda: journal.append([leased(0, 0)]), "not JSON serializable")


# --- the process dies ---------------------------------------------------------------


def workload(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.helpers.journal_workload", str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_workload_passes_all_fault_points(path: Path, tmp_path: Path) -> None:
    done = workload(path, SLIPSTREAM_FAULT_TRACE=str(tmp_path / "trace"))
    assert done.returncode == 0, done.stderr
    assert set((tmp_path / "trace").read_text().split()) == FAULTS


@pytest.mark.parametrize(
    "fault",
    sorted(FAULTS)
    + [f"{name}:{n}" for name in ("journal.begin", "journal.commit") for n in (2, 4, 5, 9)],
)
def test_after_a_kill_what_was_acknowledged_is_there_once(path: Path, fault: str) -> None:
    done = workload(path, SLIPSTREAM_FAULT=fault)
    assert done.returncode == -signal.SIGKILL, done.stderr
    acknowledged = [int(line) for line in done.stdout.split()]
    with opened(path, durability="commit") as journal:
        rows = list(journal.rows())
        last = max(acknowledged, default=0)
        assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
        assert last <= len(rows) <= last + 2, "at most the transaction under way is there, whole"
        pending = {row.lease_id for row in rows if isinstance(row, FactRow)}
        taken_in = {row.lease_id for row in rows if row.kind == "accepted"}
        assert pending == taken_in, "a transaction is there as a whole"
        since = list(journal.candidates(since_seq=last - 1, max_version=9))
        assert all(group.lease_id in taken_in for group in since)
        latest = journal.latest()
        if latest is not None:
            later = [row for row in rows if isinstance(row, FactRow) and row.seq > latest.seq]
            assert len(list(latest.facts)) == len(later)
            assert journal.group_of(latest.state["x"]).ordinal == latest.state["x"]
        assert journal.append([leased(99, 99), accepted(99, 99)]) == len(rows) + 2
    again = sqlite3.connect(path)
    assert again.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    again.close()


def test_a_disk_that_refuses_to_grow_is_said_and_loses_nothing(path: Path) -> None:
    limit = 200_000

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.journal_workload", str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=bounded,
    )
    assert done.returncode == 3, done.stderr
    assert str(path) in done.stderr
    assert "go on with --resume" in done.stderr
    last = max([int(line) for line in done.stdout.split()], default=0)
    with opened(path) as journal:
        assert last <= len(list(journal.rows())) <= last + 2


# --- files that are not as they should be -------------------------------------------


def test_a_foreign_or_damaged_file_is_said_and_left_as_it_is(path: Path) -> None:
    path.write_bytes(b"something else altogether" * 100)
    before = path.read_bytes()
    fails(lambda: opened(path), str(path), "move it away")
    fails(lambda: JournalReader(path), str(path), "move it away")
    assert path.read_bytes() == before


def test_another_database_is_no_journal_and_left_as_it_is(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE songs (name)")
    db.close()
    before = path.read_bytes()
    fails(lambda: opened(path), "is no journal of replay")
    fails(lambda: JournalReader(path), "is no journal of replay")
    assert path.read_bytes() == before


def test_a_newer_format_is_left_alone(path: Path) -> None:
    opened(path).close()
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE meta SET value = 2 WHERE key = 'format'")
    db.close()
    fails(lambda: opened(path), "has format 2, this is 1")
    fails(lambda: JournalReader(path), "has format 2, this is 1")


def test_a_journal_of_another_job_is_left_alone(path: Path) -> None:
    opened(path).close()
    fails(lambda: opened(path, job="other"), "is the journal of the job 'test', not 'other'")


def test_a_damaged_payload_and_a_damaged_row_are_said(path: Path) -> None:
    with opened(path) as journal:
        empty(journal)
        journal.append([accepted(0, 0)])
        journal._db.execute("UPDATE payloads SET data = zeroblob(50)")
        fails(lambda: journal.group_of(0), "no group", "damaged")
        latest = journal.latest()
        assert latest is not None
        fails(lambda: list(latest.facts), "no group")
        journal._db.execute("UPDATE facts SET data = '{'")
        fails(lambda: list(journal.rows()), "the file is damaged")


def test_damage_inside_the_file_is_said(path: Path) -> None:
    with opened(path) as journal:
        journal.append([Reissued(ordinal=i, cause="expired") for i in range(5000)])
    data = bytearray(path.read_bytes())
    for page in range(2, len(data) // 16384):
        data[page * 16384 : page * 16384 + 200] = os.urandom(200)
    path.write_bytes(data)
    fails(lambda: list(JournalReader(path).rows()), str(path), "damaged")


def test_no_file_and_no_writable_directory_are_said(tmp_path: Path) -> None:
    fails(lambda: JournalReader(tmp_path / "none"), "does not exist")
    fails(lambda: opened(Path("/proc/none.sqlite")), "/proc/none.sqlite", "writable")
    fails(lambda: opened(tmp_path / "no" / "such" / "dir"), "writable")


def test_an_empty_file_as_a_kill_leaves_it_becomes_a_journal(path: Path) -> None:
    path.touch()
    with opened(path) as journal:
        assert journal.append([leased(0, 0)]) == 1


def test_who_opens_it_later_shuts_the_earlier_one_out(path: Path) -> None:
    first = opened(path)
    first.append([leased(0, 0)])
    second = opened(path)
    fails(lambda: first.append([leased(1, 1)]), "opened by another process")
    assert second.append([leased(1, 1)]) == 2
    fails(lambda: first.append([leased(2, 2)]), "opened by another process")


def test_states_are_json(path: Path) -> None:
    state = {"ledger": {"pending": {"3": [1, 0]}}, "text": "ä"}
    with opened(path) as journal:
        journal.snapshot("commit", version=0, timeline=0, state=state)
        latest = journal.latest()
        assert latest is not None
        assert json.dumps(latest.state) == json.dumps(state)
