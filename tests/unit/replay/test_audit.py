"""Each way to break the promise is planted once, and found; sound histories have no finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest

from replay.audit import Promise, audit
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
    Stopped,
    Taken,
    Trained,
    Use,
)
from replay.findings import Audit, Breach, Rollback
from replay.rows import FactRow, Row, SnapshotKind, SnapshotRow, columns_of
from slipstream.records import DropReason, RefusalReason
from tests.helpers.groups import accepted, leased, make_group

ONCE = Promise(max_uses=1, max_staleness=1)


class History:
    """Rows as a journal would have them; the at_s of a row is its seq."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, *facts: Fact) -> History:
        for fact in facts:
            for kind, ordinal, lease_id, version, data in columns_of(fact):
                row = FactRow(
                    seq=len(self.rows) + 1,
                    at_s=float(len(self.rows) + 1),
                    kind=kind,
                    ordinal=ordinal,
                    lease_id=lease_id,
                    version=version,
                    data=data,
                )
                self.rows.append(row)
        return self

    def snapshot(self, kind: SnapshotKind, state: Mapping[str, Any]) -> int:
        seq = len(self.rows) + 1
        row = SnapshotRow(
            seq=seq,
            at_s=float(seq),
            kind=kind,
            version=state["version"],
            timeline=state.get("timeline", 0),
            state=state,
        )
        self.rows.append(row)
        return seq

    def audit(self, promise: Promise = ONCE) -> Audit:
        """Under one promise from the beginning, where the rows state none."""
        rules = {"promise": asdict(promise)}
        begin: dict[str, Any] = state()
        first = SnapshotRow(seq=0, at_s=0.0, kind="begin", version=0, timeline=0, state=begin)
        rows = self.rows
        if not rows or isinstance(rows[0], FactRow):
            rows = [first, *rows]
        return audit(
            row if isinstance(row, FactRow) else replace(row, state={**rules, **row.state})
            for row in rows
        )


def state(
    version: int = 0,
    num_issued: int = 0,
    *,
    counts: Mapping[str, int] | None = None,
    pending: Sequence[int] = (),
    buffered: Sequence[tuple[int, int, int]] = (),
    running: Sequence[int] = (),
    **more: Any,
) -> dict[str, Any]:
    """`buffered`: ordinal, lease id, uses; `running`: lease ids."""
    return {
        "version": version,
        "ledger": {
            "num_issued": num_issued,
            "counts": counts or {},
            "pending": {str(ordinal): [1, 0] for ordinal in pending},
        },
        "buffered": [list(entry) for entry in buffered],
        "running": [{"lease_id": lease_id} for lease_id in running],
        **more,
    }


def taken(version: int, *ordinals: int, lag: int = 0, use: int = 1) -> Taken:
    uses = tuple(Use(ordinal=ordinal, lag=lag, use=use) for ordinal in ordinals)
    return Taken(version=version, uses=uses)


def trained_once(ordinal: int, lease_id: int, version: int) -> list[Fact]:
    return [
        leased(lease_id, ordinal, version=version),
        accepted(lease_id, ordinal, version),
        taken(version, ordinal),
        Trained(version=version + 1),
    ]


def refused(ordinal: int, lease_id: int) -> Refused:
    return Refused(
        ordinal=ordinal,
        lease_id=lease_id,
        reason=RefusalReason.BAD_REWARD,
        failures=(),
        ends_lease=True,
    )


def breaches(found: Audit) -> list[tuple[Breach, int | None]]:
    return [(finding.breach, finding.ordinal) for finding in found.findings]


# --- sound histories --------------------------------------------------------------


def test_a_sound_history_is_told_in_counts() -> None:
    history = History()
    history.snapshot("begin", state())
    history.add(
        *trained_once(0, 0, 0),
        Dropped(ordinal=1, reason=DropReason.PROMPT_TOO_LONG),
        leased(1, 2, version=1),
        refused(2, 1),
        Reissued(ordinal=2, cause="failed"),
        leased(2, 2, version=1, attempt=1),
        refused(2, 2),
        Dropped(ordinal=2, reason=DropReason.FAILED),
        leased(3, 3, version=1),
        leased(4, 4, version=1),
        leased(5, 5, version=1),
        Reissued(ordinal=5, cause="expired"),
        Accepted(lease_id=3, group=make_group(3, 3, versions=(1,), num_tokens=10, is_cut=True)),
    )
    found = history.audit()
    assert not found.findings
    assert found.fates == {"trained": 1, "prompt_too_long": 1, "failed": 1}
    assert (found.num_leased, found.num_buffered, found.num_waiting) == (1, 1, 1)
    assert (found.num_issued, found.frontier, found.version, found.num_steps) == (6, 3, 1, 1)
    assert (found.num_duplicates, found.num_gaps, found.num_uses) == (0, 0, 1)
    assert found.lags == {0: 1}
    assert found.refusals == {"bad_reward": 2}
    assert found.reissues == {"failed": 1, "expired": 1}
    generated, trained = found.generated, found.trained
    assert (generated.num_rollouts, generated.num_tokens, generated.num_cut) == (4, 28, 2)
    assert (trained.num_rollouts, trained.num_tokens, trained.num_cut) == (2, 8, 0)
    running = [4]
    history.snapshot(
        "commit",
        state(
            1,
            6,
            counts=found.fates,
            pending=[3, 4, 5],
            buffered=[(3, 3, 0)],
            running=running,
        ),
    )
    assert not history.audit().findings


def test_reuse_within_the_rules_is_sound() -> None:
    history = History().add(
        *trained_once(0, 0, 0),
        taken(1, 0, lag=1, use=2),
        Trained(version=2),
        Outgrown(ordinal=0),
    )
    found = history.audit(Promise(max_uses=2, max_staleness=1))
    assert not found.findings
    assert (found.fates, found.num_uses, found.num_duplicates) == ({"trained": 1}, 2, 0)
    assert found.trained.num_rollouts == 2, "lengths count a group once"


def test_a_discarded_batch_is_sound_and_so_is_the_next_of_its_version() -> None:
    """Ordinal 0 has trained before, and keeps its fate; 1 has not."""
    history = History().add(
        *trained_once(0, 0, 0),
        leased(1, 1, version=1),
        leased(2, 2, version=1),
        accepted(1, 1, 1),
        accepted(2, 2, 1),
        Taken(version=1, uses=(Use(ordinal=0, lag=1, use=2), Use(ordinal=1, lag=0, use=1))),
        Discarded(version=1, number=1),
        taken(1, 2),
        Trained(version=2),
    )
    fates = {"trained": 2, "not_finite": 1}
    history.snapshot("commit", state(2, 3, counts=fates))
    found = history.audit(Promise(max_uses=2, max_staleness=1))
    assert not found.findings
    assert (found.fates, found.num_uses, found.num_steps) == (fates, 2, 2)


def killed(ordinal: int, num_kills: int) -> list[Fact]:
    """Its worker is lost, and another incarnation will get it."""
    return [
        Lost(worker="w0", incarnation=num_kills - 1),
        Killed(ordinal=ordinal, num_kills=num_kills),
    ]


def leased_to(incarnation: int, lease_id: int, ordinal: int) -> Fact:
    return replace(leased(lease_id, ordinal, attempt=lease_id), incarnation=incarnation)


def quarantined(ordinal: int) -> list[Fact]:
    """After two kills."""
    return [
        leased_to(0, 0, ordinal),
        *killed(ordinal, 1),
        Reissued(ordinal=ordinal, cause="worker_lost"),
        leased_to(1, 1, ordinal),
        *killed(ordinal, 2),
        Dropped(ordinal=ordinal, reason=DropReason.QUARANTINED),
    ]


def test_a_quarantine_after_its_kills_is_sound() -> None:
    found = History().add(*quarantined(0)).audit(replace(ONCE, max_kills=2))
    assert not found.findings
    assert (found.fates, found.reissues) == ({"quarantined": 1}, {"worker_lost": 1})


def test_kills_outlive_a_return_to_a_commit_and_lost_workers_do_not() -> None:
    history = History()
    history.snapshot("begin", state())
    commit = history.snapshot("commit", state())
    history.add(*quarantined(0))
    kills = [[0, 2]]
    history.snapshot("rollback", state(num_issued=1, pending=[0], kills=kills, from_seq=commit))
    history.add(Dropped(ordinal=0, reason=DropReason.QUARANTINED), leased_to(0, 2, 1))
    found = history.audit(replace(ONCE, max_kills=2))
    assert not found.findings
    assert found.fates == {"quarantined": 1}


def went_back() -> tuple[History, int]:
    """Ordinals 0 and 1 trained before the commit, 2 buffered, 3 leased. Then 2 and 3 trained, 4
    (tokens of version 1) and 5 (of version 2) came, 6 was dropped, and the run goes back."""
    history = History()
    history.snapshot("begin", state())
    history.add(leased(0, 0), leased(1, 1), accepted(0, 0), accepted(1, 1), taken(0, 0, 1))
    history.add(Trained(version=1), leased(2, 2, version=1), accepted(2, 2, 1))
    history.add(leased(3, 3, version=1))
    at_commit = {"counts": {"trained": 2}, "pending": [2, 3]}
    commit = history.snapshot("commit", state(1, 4, **at_commit, buffered=[(2, 2, 0)], running=[3]))
    history.add(accepted(3, 3, 1), taken(1, 2, 3), Trained(version=2))
    history.add(leased(4, 4, version=2), leased(5, 5, version=2), leased(6, 6, version=2))
    history.add(accepted(4, 4, 1), accepted(5, 5, 2), leased(7, 7, version=2))
    history.add(Dropped(ordinal=6, reason=DropReason.FAILED))
    back = state(
        1,
        8,
        counts={"trained": 2},
        pending=range(2, 8),
        buffered=[(2, 2, 0), (3, 3, 0), (4, 4, 0)],
        timeline=1,
        from_seq=commit,
    )
    history.snapshot("rollback", back)
    return history, commit


def test_a_rollback_undoes_what_came_since_the_commit() -> None:
    history, commit = went_back()
    found = history.audit()
    assert not found.findings
    assert found.fates == {"trained": 2}
    assert (found.num_leased, found.num_buffered, found.num_waiting) == (0, 3, 3)
    assert (found.num_issued, found.frontier, found.version, found.num_steps) == (8, 2, 1, 1)
    assert (found.num_uses, found.lags) == (2, {0: 2})
    assert found.trained.num_rollouts == 4
    assert found.generated.num_rollouts == 12, "what was generated was generated"
    assert found.rollbacks == [
        Rollback(
            seq=len(history.rows),
            at_s=float(len(history.rows)),
            timeline=1,
            from_seq=commit,
            from_version=2,
            to_version=1,
            num_came_along=2,
        )
    ]
    assert found.rollbacks[0].undoes(commit + 1)
    assert not found.rollbacks[0].undoes(commit)


def test_the_run_may_go_back_again_and_to_an_earlier_commit() -> None:
    history, commit = went_back()
    first = {"counts": {"trained": 2}, "pending": range(2, 8), "timeline": 2, "from_seq": commit}
    came = [(2, 2, 0), (3, 3, 0), (4, 4, 0)]
    history.add(taken(1, 2, 3, 4), Trained(version=2))
    history.snapshot("rollback", state(1, 8, **first, buffered=came))
    assert not history.audit().findings
    history.add(taken(1, 2, 3), Trained(version=2))
    counts = {"trained": 4}
    history.snapshot("commit", state(2, 8, counts=counts, pending=range(4, 8), buffered=came[2:]))
    history.add(taken(2, 4, lag=1), Trained(version=3))
    found = history.audit()
    assert not found.findings
    assert found.fates == {"trained": 5}
    history.snapshot("rollback", state(1, 8, **first, buffered=came))
    found = history.audit()
    assert not found.findings
    assert found.fates == {"trained": 2}
    assert len(found.rollbacks) == 3
    history.snapshot(
        "rollback", state(0, 8, pending=range(8), buffered=[(0, 0, 0)], timeline=4, from_seq=1)
    )
    found = history.audit()
    assert not found.findings
    assert (found.fates, found.num_buffered, found.num_waiting) == ({}, 1, 7)


def test_what_is_undone_may_train_again_and_only_once() -> None:
    history, _ = went_back()
    history.add(taken(1, 2, 3), Trained(version=2), leased(8, 5, version=2), accepted(8, 5, 2))
    history.add(taken(2, 4, lag=1), taken_later := taken(2, 5))
    assert breaches(history.audit()) == [], "rows next to each other are one batch"
    assert taken_later.version == 2
    history.add(Trained(version=3))
    assert history.audit().fates == {"trained": 6}


def test_a_journal_that_begins_with_a_commits_state() -> None:
    history = History()
    base = state(7, 10, counts={"trained": 6, "stale": 1}, pending=[3, 8, 9], buffered=[(3, 40, 0)])
    history.snapshot("rollback", base | {"timeline": 1})
    history.add(leased(50, 8, version=7), accepted(50, 8, 7), taken(7, 3, lag=1))
    history.add(Trained(version=8), taken(8, 8, lag=1), Trained(version=9), leased(51, 10))
    found = history.audit()
    assert not found.findings
    assert found.fates == {"trained": 8, "stale": 1}
    assert (found.frontier, found.num_leased, found.num_waiting, found.num_gaps) == (9, 1, 1, 0)
    assert found.num_steps == 2


# --- each breach --------------------------------------------------------------------


@pytest.mark.parametrize(
    "fact",
    [
        Dropped(ordinal=0, reason=DropReason.STALE),
        Reissued(ordinal=0, cause="stale"),
        leased(9, 0),
    ],
)
def test_something_after_the_fate(fact: Fact) -> None:
    found = History().add(*trained_once(0, 0, 0), fact).audit()
    assert breaches(found) == [(Breach.TWO_FATES, 0)]
    assert found.fates == {"trained": 1}


def test_trained_after_it_was_dropped() -> None:
    history = History().add(leased(0, 0), accepted(0, 0), taken(0, 0))
    history.add(Dropped(ordinal=0, reason=DropReason.STALE), Trained(version=1))
    assert breaches(history.audit()) == [(Breach.TWO_FATES, 0)]


def test_a_fate_after_one_from_before_the_journal() -> None:
    history = History()
    history.snapshot("rollback", state(3, 4, counts={"trained": 4}))
    history.add(Dropped(ordinal=2, reason=DropReason.STALE))
    history.add(taken(3, 1), Trained(version=4))
    found = history.audit()
    assert breaches(found) == [(Breach.TWO_FATES, 2), (Breach.TWO_FATES, 1)]
    assert found.fates == {"trained": 4}


def test_trained_without_a_group() -> None:
    history = History().add(leased(0, 0), taken(0, 0), Trained(version=1))
    assert breaches(history.audit()) == [(Breach.NEVER_ACCEPTED, 0)]
    gone = History().add(leased(0, 0), accepted(0, 0), Reissued(ordinal=0, cause="stale"))
    gone.add(taken(0, 0), Trained(version=1))
    assert breaches(gone.audit()) == [(Breach.NEVER_ACCEPTED, 0)]


def test_a_use_too_many() -> None:
    history = History().add(*trained_once(0, 0, 0), taken(1, 0, lag=1, use=2), Trained(version=2))
    found = history.audit()
    assert breaches(found) == [(Breach.TOO_MANY_USES, 0)]
    assert found.num_duplicates == 1
    twice_in_a_batch = History().add(leased(0, 0), accepted(0, 0), taken(0, 0, 0))
    assert breaches(twice_in_a_batch.add(Trained(version=1)).audit()) == [(Breach.TOO_MANY_USES, 0)]


def test_a_gap() -> None:
    found = History().add(leased(0, 0), leased(1, 3)).audit()
    assert breaches(found) == [(Breach.GAP, 1)]
    assert "1, 2 passed over" in found.findings[0].text
    assert (found.num_gaps, found.num_issued) == (2, 4)
    done = History().add(*trained_once(1, 0, 0)).audit()
    assert (done.frontier, done.num_gaps) == (0, 1)


def test_a_gap_that_only_a_snapshot_knows_of() -> None:
    history = History().add(leased(0, 0))
    history.snapshot("commit", state(0, 2, pending=[0], running=[0]))
    assert breaches(history.audit()) == [(Breach.SNAPSHOT, None), (Breach.GAP, 1)]


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ([Trained(version=1)], "trained again"),
        ([Trained(version=2)], "had no batch"),
        ([taken(1, 1), Trained(version=3)], "follows version 1"),
        ([taken(2, 1)], "a batch of version 2, at version 1"),
        ([taken(1, 1), Reissued(ordinal=2, cause="expired"), taken(1, 1)], "is under way"),
    ],
)
def test_steps_out_of_order(facts: list[Fact], text: str) -> None:
    history = History().add(*trained_once(0, 0, 0), leased(1, 1), leased(2, 2))
    found = history.add(accepted(1, 1, 1), *facts).audit()
    assert breaches(found)[0] == (Breach.STEP_ORDER, None)
    assert text in found.findings[0].text
    assert len(found.findings) == 1


def late() -> History:
    history = History().add(leased(0, 0), accepted(0, 0, 0, 1))
    history.add(*trained_once(1, 1, 0), *trained_once(2, 2, 1))
    return history.add(taken(2, 0, lag=2), Trained(version=3))


def test_lag_above_the_bound() -> None:
    assert breaches(late().audit()) == [(Breach.LAG, 0)]
    assert breaches(late().audit(Promise(max_uses=1, max_staleness=2))) == []
    assert breaches(late().audit(Promise(max_uses=1, max_staleness=None))) == [], "clip"


def test_lag_that_was_stated_wrongly() -> None:
    history = History().add(leased(0, 0), accepted(0, 0), taken(0, 0, lag=1), Trained(version=1))
    found = history.audit()
    assert breaches(found) == [(Breach.LAG, 0)]
    assert found.lags == {0: 1}, "as it was, not as it was stated"


def test_a_group_under_no_lease_or_an_ended_one() -> None:
    assert breaches(History().add(leased(0, 0), accepted(5, 0)).audit()) == [(Breach.NO_LEASE, 0)]
    other = History().add(leased(0, 0), leased(1, 1), accepted(0, 1))
    assert breaches(other.audit()) == [(Breach.NO_LEASE, 1)]
    for end in (Reissued(ordinal=0, cause="expired"), refused(0, 0)):
        found = History().add(leased(0, 0), end, accepted(0, 0)).audit()
        assert breaches(found) == [(Breach.NO_LEASE, 0)]
        assert "had ended" in found.findings[0].text


def test_no_lease_outlives_a_rollback() -> None:
    history, _ = went_back()
    assert breaches(history.add(accepted(7, 7, 1)).audit()) == [(Breach.NO_LEASE, 7)]


def test_two_groups_under_one_lease() -> None:
    history = History().add(leased(0, 0), accepted(0, 0), accepted(0, 0))
    assert breaches(history.audit()) == [(Breach.TWO_GROUPS, 0)]


def test_an_ordinal_or_a_lease_twice_at_once() -> None:
    running = History().add(leased(0, 0), leased(1, 0))
    assert breaches(running.audit()) == [(Breach.LEASED_TWICE, 0)]
    buffered = History().add(leased(0, 0), accepted(0, 0), leased(1, 0))
    assert breaches(buffered.audit()) == [(Breach.LEASED_TWICE, 0)]
    again = History().add(leased(0, 0), Reissued(ordinal=0, cause="expired"), leased(0, 0))
    assert breaches(again.audit()) == [(Breach.LEASED_TWICE, 0)]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, "version is 2, by the facts 1"),
        ({"counts": {"trained": 2}}, "fates"),
        ({"counts": {"stale": 1}}, "fates"),
        ({"pending": [1]}, "2: pending here"),
        ({"pending": [0, 1, 2]}, "0: pending here"),
        ({"buffered": []}, "leases 1: buffered here"),
        ({"buffered": [(1, 9, 0)]}, "leases 1, 9: buffered here"),
        ({"running": []}, "leases 2: running here"),
    ],
)
def test_a_snapshot_that_is_not_what_the_facts_add_up_to(change: dict[str, Any], text: str) -> None:
    history = History().add(*trained_once(0, 0, 0), leased(1, 1, version=1))
    history.add(accepted(1, 1, 1), leased(2, 2, version=1))
    right: dict[str, Any] = {
        "version": 1,
        "num_issued": 3,
        "counts": {"trained": 1, "stale": 0},
        "pending": [1, 2],
        "buffered": [(1, 1, 0)],
        "running": [2],
    }
    history.snapshot("commit", state(**right))
    assert not history.audit().findings
    history.snapshot("commit", state(**(right | change)))
    found = history.audit()
    assert breaches(found) == [(Breach.SNAPSHOT, None)]
    assert text in found.findings[0].text


def back_to(from_seq: int, buffered: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    return state(
        1,
        8,
        counts={"trained": 2},
        pending=range(2, 8),
        buffered=buffered,
        timeline=2,
        from_seq=from_seq,
    )


def test_a_rollback_to_a_place_that_is_no_commit_or_was_undone() -> None:
    history, commit = went_back()
    history.snapshot("rollback", back_to(commit + 1, [(2, 2, 0)]))
    assert breaches(history.audit()) == [(Breach.ROLLBACK, None)]
    history, commit = went_back()
    counts, pending = {"trained": 2}, range(2, 8)
    history.snapshot(
        "commit",
        state(1, 8, counts=counts, pending=pending, buffered=[(2, 2, 0), (3, 3, 0), (4, 4, 0)]),
    )
    undone = len(history.rows)
    history.snapshot("rollback", back_to(commit, [(2, 2, 0)]))
    assert not history.audit().findings
    history.snapshot("rollback", back_to(undone, [(2, 2, 0)]))
    assert breaches(history.audit()) == [(Breach.ROLLBACK, None)]


def test_a_rollback_with_a_group_from_a_later_policy() -> None:
    history, commit = went_back()
    history.snapshot("rollback", back_to(commit, [(2, 2, 0), (5, 5, 0)]))
    assert breaches(history.audit()) == [(Breach.ROLLBACK, 5)]


@pytest.mark.parametrize("lease_id", [99, 4, 0])
def test_a_rollback_with_a_group_that_never_came(lease_id: int) -> None:
    history, commit = went_back()
    history.snapshot("rollback", back_to(commit, [(7, lease_id, 0)]))
    assert breaches(history.audit()) == [(Breach.NEVER_ACCEPTED, 7)]


def test_a_rollback_with_a_group_that_has_trained_before_the_commit() -> None:
    history, commit = went_back()
    again = History()
    again.rows = history.rows[:commit]
    again.add(leased(9, 1, version=1), accepted(9, 1, 1))
    back = state(1, 4, counts={"trained": 2}, pending=[2, 3], buffered=[(1, 9, 0)])
    again.snapshot("rollback", back | {"from_seq": commit, "timeline": 1})
    assert (Breach.ROLLBACK, 1) in breaches(again.audit())


def test_issued_prompts_stay_issued() -> None:
    history, commit = went_back()
    back = back_to(commit, [(2, 2, 0)])
    back["ledger"] |= {"num_issued": 4, "pending": {"2": [1, 0], "3": [1, 0]}}
    history.snapshot("rollback", back)
    assert breaches(history.audit()) == [(Breach.SNAPSHOT, None), (Breach.SNAPSHOT, None)]


def test_a_row_without_meaning_is_a_value_error() -> None:
    history = History()
    history.snapshot("commit", {"version": 0})
    with pytest.raises(ValueError, match="row 1 cannot be understood"):
        history.audit()
    row = FactRow(seq=1, at_s=0.0, kind="dreamt", ordinal=0, data={})
    with pytest.raises(ValueError, match="dreamt"):
        audit([row])


def test_a_stop_is_no_fate() -> None:
    history = History().add(leased(0, 0), Stopped(reason="interrupted"))
    found = history.audit()
    assert (found.findings, found.num_leased) == ([], 1)


def test_every_stretch_is_judged_by_its_own_rules() -> None:
    """Trained at a lag of 1 under a bound of 1; then the run goes on under a bound of 0."""
    step = [Taken(version=1, uses=(Use(ordinal=1, lag=1, use=1),)), Trained(version=2)]
    history = History()
    history.snapshot("begin", state(promise={"max_uses": 1, "max_staleness": 1}))
    history.add(leased(0, 0), accepted(0, 0), leased(1, 1), accepted(1, 1))
    history.add(Taken(version=0, uses=(Use(ordinal=0, lag=0, use=1),)), Trained(version=1), *step)
    commit = history.snapshot("commit", state(2, 2, counts={"trained": 2}))
    tighter = {"max_uses": 1, "max_staleness": 0}
    back = state(2, 2, counts={"trained": 2}, from_seq=commit, promise=tighter)
    history.snapshot("rollback", back)
    assert breaches(history.audit()) == []
    history.add(leased(2, 2, version=1), accepted(2, 2, 1))
    history.add(Taken(version=2, uses=(Use(ordinal=2, lag=1, use=1),)), Trained(version=3))
    assert breaches(history.audit()) == [(Breach.LAG, 2)]


# --- lost workers, quarantines, discarded batches -------------------------------------


def test_something_from_a_worker_after_it_was_lost() -> None:
    history = History().add(leased(0, 0), Lost(worker="w0", incarnation=0))
    history.add(Accepted(lease_id=0, group=make_group(0, 0)), leased(1, 1), leased_to(1, 2, 2))
    expected = [(Breach.LOST_WORKER, 0), (Breach.LOST_WORKER, 1)]
    assert breaches(history.audit()) == expected


def test_kills_that_are_miscounted_or_of_no_lease() -> None:
    history = History().add(leased(0, 0), Killed(ordinal=0, num_kills=2))
    history.add(Reissued(ordinal=0, cause="worker_lost"), Killed(ordinal=0, num_kills=2))
    assert breaches(history.audit()) == [(Breach.KILLS, 0), (Breach.NO_LEASE, 0)]


def test_a_quarantine_without_its_kills() -> None:
    drop = Dropped(ordinal=0, reason=DropReason.QUARANTINED)
    found = History().add(*quarantined(0)[:-1], drop).audit(replace(ONCE, max_kills=3))
    assert breaches(found) == [(Breach.KILLS, 0)]
    history = History().add(leased(0, 0), Killed(ordinal=0, num_kills=1), accepted(0, 0))
    history.add(Reissued(ordinal=0, cause="stale"), drop)
    found = history.audit(replace(ONCE, max_kills=1))
    assert breaches(found) == [(Breach.KILLS, 0)], "an accepted group clears it"


def test_a_batch_that_trained_after_it_was_discarded() -> None:
    history = History().add(leased(0, 0), accepted(0, 0), taken(0, 0))
    history.add(Discarded(version=0, number=0), Trained(version=1))
    assert breaches(history.audit()) == [(Breach.STEP_ORDER, None)]
    again = History().add(leased(0, 0), accepted(0, 0), taken(0, 0))
    again.add(Discarded(version=0, number=0), taken(0, 0), Trained(version=1))
    assert breaches(again.audit()) == [(Breach.TWO_FATES, 0)]


def test_discarded_without_a_batch_or_a_group_or_after_a_fate() -> None:
    discarded = Discarded(version=0, number=0)
    assert breaches(History().add(discarded).audit()) == [(Breach.STEP_ORDER, None)]
    gone = History().add(leased(0, 0), taken(0, 0), discarded)
    assert breaches(gone.audit()) == [(Breach.NEVER_ACCEPTED, 0)]
    dropped = History().add(leased(0, 0), accepted(0, 0), taken(0, 0))
    dropped.add(Dropped(ordinal=0, reason=DropReason.STALE), discarded)
    assert breaches(dropped.audit()) == [(Breach.TWO_FATES, 0)]
