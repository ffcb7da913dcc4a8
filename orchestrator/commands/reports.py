"""Commands that make something of a run's files: report, export."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.common import AsJson, print_report, refused
from orchestrator.report.write import write_report
from orchestrator.run_files import find_run
from slipstream.errors import SlipstreamError

COMPARISON = Path("comparison")


def report(
    runs: Annotated[
        list[str], typer.Argument(help="a run's directory, or its name in ./runs; or several")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="the directory to write; default: RUN/report, of several ./comparison"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a page that shows how a run went, or how several compare; and its charts.

    The run may be at work. With --json the figures are printed too. Exit code 2: bad input.
    """
    with refused():
        if importlib.util.find_spec("matplotlib") is None:
            raise SlipstreamError(
                "charts need matplotlib: pip install 'slipstream-rl[report]', then try again"
            )
        paths = [find_run(run) for run in runs]
        written = write_report(paths, out or (paths[0] / "report" if not paths[1:] else COMPARISON))
    print_report(written, as_json=as_json)
