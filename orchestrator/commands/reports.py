"""Commands that make something of a run's files: report, export."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.common import AsJson, Run, print_report, refuse_two_commits, refused
from orchestrator.export import export as copy_model
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


def export(
    run: Run,
    out: Annotated[Path, typer.Argument(help="the directory to make; it must not exist")],
    version: Annotated[
        int | None, typer.Option(min=0, help="of this commit; default: the newest")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="of the commit with the best evaluation")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a trained model out of a run, for transformers and vLLM, with a model card.

    Its checksums are verified first. Exit code 2: bad input, or no such commit.
    """
    with refused():
        refuse_two_commits(version, best)
        exported = copy_model(find_run(run), out, version=version, best=best)
    print_report(exported, as_json=as_json)
