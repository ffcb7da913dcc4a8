"""A report, from directories of runs to files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.report.numbers import figures
from orchestrator.report.read import read_run
from slipstream.errors import SlipstreamError

FILE_NAME = "report.html"


class CannotWrite(SlipstreamError):
    """The report's files cannot be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What the command says."""

    page: Path
    num_charts: int
    figures: tuple[dict[str, Any], ...]  # of each run

    def as_json(self) -> dict[str, Any]:
        return {"page": str(self.page), "runs": list(self.figures)}

    def as_text(self) -> RenderableType:
        notes = [
            Text(f"{found['name']}: {note}") for found in self.figures for note in found["missing"]
        ]
        return Group(Text(f"{self.page} (and {self.num_charts} PNG files beside it)"), *notes)


def write_report(runs: Sequence[Path], directory: Path) -> Written:
    """The page of a run, or of several compared. Raises NothingToReport and CannotWrite."""
    from orchestrator.report.compare import compare_page  # these import matplotlib
    from orchestrator.report.page import run_page

    records = [read_run(path) for path in runs]
    found = [figures(record) for record in records]
    page = run_page(records[0], found[0]) if len(records) == 1 else compare_page(records, found)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for chart in page.charts:
            chart.write(directory)
        (directory / FILE_NAME).write_text(page.html, encoding="utf-8")
    except OSError as error:
        raise CannotWrite(
            f"{directory} cannot be written: {error.strerror}; name another directory with --out"
        ) from None
    return Written(page=directory / FILE_NAME, num_charts=len(page.charts), figures=tuple(found))
