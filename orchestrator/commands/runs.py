"""Commands about a run's files, whether it is at work or over: ledger."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.commands.common import AsJson, Run, print_report, refused
from orchestrator.ledger import read_ledger


def ledger(
    run: Run,
    ordinal: Annotated[
        int | None, typer.Option(min=0, help="tell the story of this prompt instead")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What became of every prompt of a run, and whether any was lost or trained too often.

    The run may be at work. Exit code 1: its promise is broken; 2: it has no sound journal.
    """
    with refused():
        report = read_ledger(run, ordinal)
    print_report(report, as_json=as_json)
    raise typer.Exit(report.exit_code)
