"""Commands about runs' files, whether they are at work or over: runs, logs, ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.common import AsJson, Run, print_report, refused
from orchestrator.ledger import read_ledger
from orchestrator.run_files import find_run
from orchestrator.run_lease import holder
from orchestrator.run_list import list_runs
from orchestrator.run_log import follow, last_lines


def runs(
    directory: Annotated[Path, typer.Argument(help="the directory that holds them")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """The runs of a directory, the newest first. Exit code 2: there is no such directory."""
    with refused():
        report = list_runs(directory)
    print_report(report, as_json=as_json)


def logs(
    run: Run,
    role: Annotated[
        str | None,
        typer.Option(help="of this one alone: driver, replay, weights, rollout-0, learner, ..."),
    ] = None,
    lines: Annotated[int, typer.Option(min=0, help="how many of those that are there")] = 100,
    is_followed: Annotated[
        bool, typer.Option("--follow", "-f", help="go on until the run is over")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What the driver and the roles say or have said. Exit code 2: there is no such log."""
    with refused():
        path = find_run(run)
        if is_followed:
            found = follow(path, role, lines, is_over=lambda: holder(path) is None)
        else:
            found = iter(last_lines(path, role, lines))
        for line in found:
            print(json.dumps(line.as_json()) if as_json else line, flush=True)


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
