"""`slipstream ledger`: a run's journal, told to people.

<run>/replay.sqlite, read only ─┬─▶ audit ─▶ table, findings       `slipstream ledger RUN`
<run>/job.yaml: the rules ──────┘     │
                                      └───▶ one prompt's story     `... --ordinal N`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.run_files import find_run
from replay.audit import TRAINED, audit
from replay.findings import Audit, Lengths, Rollback
from replay.journal import FILE_NAME, JournalReader
from replay.rows import FactRow, Row, SnapshotRow
from slipstream.errors import SlipstreamError

MAX_FINDINGS = 20  # in the table; JSON has all


class NoLedger(SlipstreamError):
    """There is no journal to be read; `str()` says why."""


class Report(Protocol):
    """What the command prints, in either form."""

    @property
    def exit_code(self) -> int: ...
    def as_json(self) -> dict[str, Any]: ...
    def as_text(self) -> RenderableType: ...


def read_ledger(run: str, ordinal: int | None = None) -> Report:
    """The report on a run, or on one prompt of it. Raises NoRun, NoLedger and JournalError."""
    run_dir = find_run(run)
    path = run_dir / FILE_NAME
    if not path.is_file():
        raise NoLedger(
            f"{path} does not exist: this is no run's directory, or replay.durability was off"
        )
    with JournalReader(path) as journal:
        try:
            found = audit(journal.rows())
        except ValueError as error:
            raise NoLedger(f"{path}: {error}; the file is damaged") from None
        if ordinal is None:
            return RunReport(job=journal.job, found=found)
        rows = journal.story(ordinal)
    if all(isinstance(row, SnapshotRow) for row in rows):
        raise NoLedger(
            f"{path} knows nothing of ordinal {ordinal}; {found.num_issued} were issued, from 0"
        )
    return Story(ordinal=ordinal, lines=_lines(rows, found.rollbacks))


# --- the run ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What became of all prompts."""

    job: str
    found: Audit

    @property
    def exit_code(self) -> int:
        return 1 if self.found.findings else 0

    def as_json(self) -> dict[str, Any]:
        figures = {f.name: _plain(getattr(self.found, f.name)) for f in fields(self.found)}
        return {"job": self.job, "holds": not self.found.findings, **figures}

    def as_text(self) -> RenderableType:
        table = Table(show_header=False, title=f"Ledger of {self.job}", title_justify="left")
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in _figures(self.found):
            table.add_row(name, value)
        return Group(table, *map(Text, _verdict(self.found)))


def _plain(value: Any) -> Any:
    """Without `asdict` on the whole, which in Python 3.11 cannot copy a Counter."""
    match value:
        case Lengths():
            return asdict(value)
        case list():
            return [asdict(entry) for entry in value]
        case _:
            return value


def _figures(found: Audit) -> list[tuple[str, str]]:
    drops = {fate: count for fate, count in found.fates.items() if fate != TRAINED}
    pending = {
        "leased": found.num_leased,
        "buffered": found.num_buffered,
        "waiting": found.num_waiting,
    }
    return [
        ("issued", f"{found.num_issued:,} prompts, all below {found.frontier:,} have their fate"),
        (TRAINED, f"{found.fates[TRAINED]:,} prompts, {found.num_uses:,} uses by the journal"),
        ("dropped", _counts(drops)),
        ("pending", _counts(pending)),
        ("duplicates", str(found.num_duplicates)),
        ("gaps", str(found.num_gaps)),
        ("steps", f"{found.num_steps:,} by the journal (version {found.version})"),
        ("went back", ", ".join(map(_rollback, found.rollbacks)) or "never"),
        ("lag", _counts({f"{lag}": found.lags[lag] for lag in sorted(found.lags)})),
        ("generated", _lengths(found.generated)),
        ("trained answers", _lengths(found.trained)),
        ("refused groups", _counts(found.refusals)),
        ("issued again", _counts(found.reissues)),
    ]


def _verdict(found: Audit) -> list[str]:
    if not found.findings:
        return ["The promise holds: no prompt was lost, and none trained more often than allowed."]
    lines = [
        f"{finding.breach}: {_of(finding.ordinal)}{finding.text} (row {finding.seq})"
        for finding in found.findings[:MAX_FINDINGS]
    ]
    num_more = len(found.findings) - len(lines)
    more = [f"... and {num_more} more, see --json"] if num_more else []
    return ["The promise is broken:", *lines, *more]


def _of(ordinal: int | None) -> str:
    return "" if ordinal is None else f"ordinal {ordinal}: "


def _rollback(rollback: Rollback) -> str:
    came = f", {rollback.num_came_along} groups came along" if rollback.num_came_along else ""
    return f"{rollback.from_version} -> {rollback.to_version}{came}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items() if count) or "none"


def _lengths(lengths: Lengths) -> str:
    if not lengths.num_rollouts:
        return "none"
    mean = lengths.num_tokens / lengths.num_rollouts
    cut = lengths.num_cut / lengths.num_rollouts
    return f"{lengths.num_rollouts:,}, mean length {mean:.1f} tokens, {cut:.1%} cut"


# --- one prompt -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing that happened to a prompt."""

    at_s: float
    seq: int
    kind: str
    text: str
    undone_by: int | None  # the timeline that a rollback began instead


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What happened to one prompt, in order."""

    ordinal: int
    lines: Sequence[Line]
    exit_code: int = 0

    def as_json(self) -> dict[str, Any]:
        return {"ordinal": self.ordinal, "story": [asdict(line) for line in self.lines]}

    def as_text(self) -> RenderableType:
        return Text("\n".join(f"{_time(line.at_s)}  {_told(line)}" for line in self.lines))


def _told(line: Line) -> str:
    if line.undone_by is None:
        return line.text
    return f"{line.text}  (undone, as timeline {line.undone_by} began)"


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).isoformat(sep=" ", timespec="milliseconds")


def _lines(rows: Sequence[Row], rollbacks: Sequence[Rollback]) -> list[Line]:
    """A rollback is told where it undid something."""
    facts = [row for row in rows if isinstance(row, FactRow)]
    known = {rollback.seq: rollback for rollback in rollbacks}
    lines = []
    for row in rows:
        if isinstance(row, FactRow):
            text = _fact(row)
            undone_by = next((r.timeline for r in rollbacks if r.undoes(row.seq)), None)
        elif any(known[row.seq].undoes(fact.seq) for fact in facts):
            text, undone_by = _went_back(row, known[row.seq], facts[0].ordinal), None
        else:
            continue
        line = Line(at_s=row.at_s, seq=row.seq, kind=row.kind, text=text, undone_by=undone_by)
        lines.append(line)
    return lines


def _went_back(row: SnapshotRow, rollback: Rollback, ordinal: int | None) -> str:
    text = f"the run went back from version {rollback.from_version} to {rollback.to_version}"
    for buffered, lease_id, _ in row.state["buffered"]:
        if buffered == ordinal:
            return f"{text}; its group of lease {lease_id} is in the buffer"
    return text


def _fact(row: FactRow) -> str:
    data, version = row.data, row.version
    match row.kind:
        case "leased":
            return (
                f"leased to {data['worker']} (incarnation {data['incarnation']}) as lease "
                f"{row.lease_id}, attempt {data['attempt']}, version {version}"
            )
        case "accepted":
            lengths = data["num_tokens"]
            return (
                f"accepted from {data['worker']} under lease {row.lease_id}, attempt "
                f"{data['attempt']}: {len(lengths)} answers of {sum(lengths) / len(lengths):.0f} "
                f"tokens, {data['num_cut']} cut, mean reward {data['mean_reward']:.3g}, "
                f"versions {version} to {data['newest_version']}"
            )
        case "refused":
            failures = f" ({', '.join(data['failures'])})" if data["failures"] else ""
            ends = "" if data["ends_lease"] else ", which changes nothing"
            return f"refused under lease {row.lease_id}: {data['reason']}{failures}{ends}"
        case "reissued":
            is_lost = data["cause"] == "worker_lost"
            return f"to be issued again: {'its worker was lost' if is_lost else data['cause']}"
        case "killed":
            return f"its worker's engine died while it ran there, kill {data['num_kills']}"
        case "dropped":
            return f"dropped: {data['reason']}"
        case "taken":
            return (
                f"taken for the step from version {version}, lag {data['lag']}, use {data['use']}"
            )
        case "trained":
            return f"trained: version {version} is published"
        case "discarded":
            return f"its batch of version {version} gave no finite gradient: not_finite"
        case "outgrown":
            return "too old to train again"
        case kind:
            return kind
