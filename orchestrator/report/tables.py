"""The tables of a report: the ledger's verdict, faults and events, settings. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from orchestrator.report.history import EVENTS, FAULTS, Mark
from orchestrator.report.markup import Html, joined, tag
from orchestrator.report.read import RunRecord
from orchestrator.report.words import counted

MAX_ROWS = 200  # of a table of what happened


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    numbers: Collection[int] = (),
    words: Collection[int] = (),
) -> Html:
    """A table that scrolls within its box. `numbers`: columns set to the right; `words`: columns
    that stay in one line, but for the last column."""

    def cells(name: str, row: Sequence[object]) -> list[Html]:
        kept = {*words} - {len(row) - 1}
        return [
            tag(name, cell, class_="n" if i in numbers else "w" if i in kept else "t")
            for i, cell in enumerate(row)
        ]

    body = [tag("tr", *cells("td", row)) for row in rows]
    inner = tag("table", tag("thead", tag("tr", *cells("th", head))), tag("tbody", *body))
    return tag("div", inner, class_="scroll")


def folded(title: str, content: object) -> Html:
    return tag("details", tag("summary", title), tag("div", content))


def flat(values: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every leaf with its dotted key."""
    entries = values.items() if isinstance(values, Mapping) else enumerate(values)
    found: list[tuple[str, str]] = []
    for key, value in entries:
        if isinstance(value, Mapping) or (isinstance(value, list) and value and _nests(value)):
            found += flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", "" if value is None else str(value)))
    return found


def _nests(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Mapping) for value in values)


def verdict(figures: Mapping[str, Any]) -> Html:
    found = figures["ledger"]
    if found is None:
        return tag("figure", tag("h3", "Ledger"), tag("figcaption", "There is none to ask."))
    said = (
        "Its promise holds: no prompt was lost, and none trained more often than allowed."
        if found["holds"]
        else "Its promise is broken; `slipstream ledger` tells where."
    )
    rows = [
        ("issued", found["issued"]),
        ("trained", found["trained"]),
        *((f"dropped: {reason}", count) for reason, count in found["dropped"].items()),
        ("pending", found["pending"]),
        ("trained too often", found["duplicates"]),
        ("without a fate", found["gaps"]),
    ]
    shown = table(["prompts", "number"], [[name, f"{n:,}"] for name, n in rows], numbers={1})
    return tag("figure", tag("h3", "Ledger"), shown, tag("figcaption", said))


def faults(run: RunRecord) -> Html:
    marks = [mark for mark in run.history.marks if mark.kind in FAULTS]
    undone = run.history.num_undone_steps
    said = f"{counted(undone, 'step')} had to be made again." if undone else None
    return _happened(run, FAULTS, marks, "No fault was reported.", said)


def events(run: RunRecord) -> Html:
    commits = [mark for mark in run.history.marks if mark.kind == "commit"]
    marks = [mark for mark in run.history.marks if mark.kind in EVENTS and mark.kind != "commit"]
    newest = f", the newest of {commits[-1].text}" if commits else ""
    return _happened(run, EVENTS, marks, "", f"{counted(len(commits), 'commit')}{newest}.")


def _happened(
    run: RunRecord, kinds: Mapping[str, str], marks: Sequence[Mark], none: str, said: str | None
) -> Html:
    notes = [tag("p", said)] if said else []
    if not marks:
        return tag("div", tag("p", none, class_="muted") if none else None, notes, class_="box")
    zero_s = run.history.first_s or 0.0
    has_recovery = any(mark.recovered_s is not None for mark in marks)
    head = ["at", "what", "who", *(["back after"] if has_recovery else []), "said"]
    rows = [_row(mark, kinds, zero_s, has_recovery) for mark in _thinned(marks)]
    if hidden := len(marks) - len(rows):
        notes.append(tag("p", f"{hidden} in between are not shown.", class_="muted"))
    return tag("div", notes, table(head, rows, numbers={0}, words={1, 2, 3}), class_="box")


def _thinned(marks: Sequence[Mark]) -> list[Mark]:
    half = MAX_ROWS // 2
    return list(marks) if len(marks) <= MAX_ROWS else [*marks[:half], *marks[-half:]]


def _row(mark: Mark, kinds: Mapping[str, str], zero_s: float, has_recovery: bool) -> list[object]:
    back = "" if mark.recovered_s is None else f"{mark.recovered_s:.1f} s"
    cells: list[object] = [f"{mark.time_s - zero_s:,.1f} s", kinds[mark.kind], mark.who]
    return [*cells, *([back] if has_recovery else []), mark.text]


def settings(run: RunRecord) -> list[Html]:
    found = [folded("The job as it ran (job.yaml)", tag("pre", run.job_text or "not there"))]
    if launch := newest_launch(run):
        count = len(run.environment["launches"])
        title = f"Environment of the newest of {counted(count, 'launch', 'launches')}"
        rows = [[key, value] for key, value in flat(launch)]
        found.append(folded(title, table(["", ""], rows, words={0})))
    return found


def newest_launch(run: RunRecord) -> Mapping[str, Any]:
    launches = run.environment.get("launches")
    newest = launches[-1] if isinstance(launches, list) and launches else {}
    return newest if isinstance(newest, Mapping) else {}


def missing(run: RunRecord) -> Html | None:
    if not run.missing:
        return None
    notes = [tag("li", note) for note in run.missing]
    return joined([tag("h2", "What this report could not read"), tag("ul", *notes)])
