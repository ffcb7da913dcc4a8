"""Commands that look at models: eval."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.checks import checked_job, import_dirs
from orchestrator.commands.common import AsJson, print_report, refuse_two_commits, refused, reported
from orchestrator.offline_eval import evaluate, find_model
from slipstream.errors import JobFileError, Problem


def eval_(
    model: Annotated[str, typer.Argument(help="a model's directory, or a run's directory or name")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="dotted key=value pairs laid over the job file")
    ] = None,
    job: Annotated[
        Path | None, typer.Option(help="the job file; of a run its own where none is named")
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=0, help="of a run: the commit of this version")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="of a run: its best commit")] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a saved model on a job's held-out sets, alone.

    Of a run it is the newest commit where nothing else is said. Exit code 2: bad input.
    """
    with refused():
        refuse_two_commits(version, best)
        found = find_model(model, version=version, best=best)
        if job is None and found.version is None:
            raise typer.BadParameter(f"{model} is no run: name its job file by --job")
    with reported():
        file = job or found.path.parents[2] / "job.yaml"  # runs/NAME/checkpoints/step-.../model
        resolved = checked_job(file, overrides, overwrite=True, to_start=False)
        if not resolved.data.held_out:
            message = "is missing: there is nothing to evaluate on"
            raise JobFileError([Problem(str(file), "data.eval", message)])
        sys.path[:0] = import_dirs(file.parent)
        with redirect_stdout(sys.stderr):  # what libraries have to say
            report = evaluate(resolved, found)
    print_report(report, as_json=as_json)
