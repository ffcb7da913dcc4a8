"""The rows of the journal: facts as they are written down, and read again.

A `Taken` is a row for each of its uses, one after the other. A group is not in its fact's row,
which has what reports need of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

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
from slipstream.records import DropReason, FailureReason, FinishReason, Group, RefusalReason

SnapshotKind = Literal["begin", "commit", "rollback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FactRow:
    """A fact, or one use of a `Taken`. What no column has is in `data`, JSON-able."""

    seq: int  # place in the one order of all facts and snapshots
    at_s: float  # time.time() of the writing
    kind: str  # the fact's class, in lower case
    ordinal: int | None = None
    lease_id: int | None = None
    version: int | None = None  # leased: min_version; accepted: oldest; of batches: version
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRow:
    """All that the facts before it add up to; after a rollback, what was left of it.

    begin: an empty start. commit: a step boundary that a commit holds. rollback: the run went
    back, and `state["from_seq"]` is the commit's row, where this journal has it.
    """

    seq: int
    at_s: float
    kind: SnapshotKind
    version: int
    timeline: int
    state: Mapping[str, Any]


Row = FactRow | SnapshotRow

# Of `FactRow`, without seq and at_s.
Columns = tuple[str, int | None, int | None, int | None, dict[str, Any]]


def columns_of(fact: Fact) -> list[Columns]:
    """(kind, ordinal, lease id, version, data) of each row of `fact`."""
    match fact:
        case Accepted():
            group = fact.group
            return [
                ("accepted", group.ordinal, fact.lease_id, group.oldest_version, _report(group))
            ]
        case Taken():
            assert fact.uses, "a batch has groups"
            return [
                _columns("taken", _values(use) | {"version": fact.version}) for use in fact.uses
            ]
        case Leased():
            values = _values(fact)
            return [_columns("leased", values | {"version": values.pop("min_version")})]
        case _:
            return [_columns(type(fact).__name__.lower(), _values(fact))]


def _values(fact: Fact | Use) -> dict[str, Any]:
    """Its fields, which are plain values; `asdict` would look into each of them, in half of the
    time that a row takes."""
    return {name: getattr(fact, name) for name in fact.__slots__}


def _columns(kind: str, values: dict[str, Any]) -> Columns:
    ordinal, lease_id = values.pop("ordinal", None), values.pop("lease_id", None)
    return kind, ordinal, lease_id, values.pop("version", None), values


def _report(group: Group) -> dict[str, Any]:
    rollouts = group.rollouts
    return {
        "worker": group.worker,
        "incarnation": group.incarnation,
        "attempt": group.attempt,
        "newest_version": group.newest_version,
        "num_tokens": [rollout.num_tokens for rollout in rollouts],
        "num_cut": sum(rollout.finish_reason is FinishReason.LENGTH for rollout in rollouts),
        "mean_reward": sum(float(rollout.reward) for rollout in rollouts) / len(rollouts),
    }


def facts_of(rows: Iterable[FactRow], group_of: Callable[[int], Group]) -> Iterator[Fact]:
    """The facts that were written down as `rows`. `group_of` a lease id."""
    for (kind, _), same in groupby(rows, lambda row: (row.kind, _batch_or_seq(row))):
        yield _fact(kind, list(same), group_of)


def _batch_or_seq(row: FactRow) -> tuple[str, int | None]:
    return ("batch", row.version) if row.kind == "taken" else ("row", row.seq)


def _fact(kind: str, rows: list[FactRow], group_of: Callable[[int], Group]) -> Fact:
    row, data = rows[0], rows[0].data
    match kind:
        case "leased":
            return Leased(
                ordinal=_known(row.ordinal),
                lease_id=_known(row.lease_id),
                min_version=_known(row.version),
                **data,
            )
        case "accepted":
            lease_id = _known(row.lease_id)
            return Accepted(lease_id=lease_id, group=group_of(lease_id))
        case "refused":
            return Refused(
                ordinal=_known(row.ordinal),
                lease_id=_known(row.lease_id),
                reason=RefusalReason(data["reason"]),
                failures=tuple(FailureReason(reason) for reason in data["failures"]),
                ends_lease=data["ends_lease"],
            )
        case "reissued":
            return Reissued(ordinal=_known(row.ordinal), **data)
        case "dropped":
            return Dropped(ordinal=_known(row.ordinal), reason=DropReason(data["reason"]))
        case "taken":
            uses = tuple(Use(ordinal=_known(use.ordinal), **use.data) for use in rows)
            return Taken(version=_known(row.version), uses=uses)
        case "trained":
            return Trained(version=_known(row.version))
        case "discarded":
            return Discarded(version=_known(row.version), **data)
        case "outgrown":
            return Outgrown(ordinal=_known(row.ordinal))
        case "stopped":
            return Stopped(**data)
        case "lost":
            return Lost(**data)
        case "killed":
            return Killed(ordinal=_known(row.ordinal), **data)
        case _:
            raise ValueError(f"row {row.seq} is of an unknown kind, {kind!r}")


def _known(value: int | None) -> int:
    if value is None:
        raise ValueError("a row without one of its columns")
    return value
