"""Commands that look at models: eval."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.checks import import_dirs, preflight
from orchestrator.commands.common import AsJson, print_report, refused, reported
from orchestrator.offline_eval import evaluate, find_model
from slipstream.config.job import JobConfig
from slipstream.config.load import read_job_file
from slipstream.errors import JobFileError


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
        if version is not None and best:
            raise typer.BadParameter("--version and --best choose different commits; give one")
        found = find_model(model, version=version, best=best)
        if job is None and found.version is None:
            raise typer.BadParameter(f"{model} is no run: name its job file by --job")
    with reported():
        file = job or found.path.parents[2] / "job.yaml"  # runs/NAME/checkpoints/step-.../model
        resolved = _checked(file, overrides)
        sys.path[:0] = import_dirs(file.parent)
        with redirect_stdout(sys.stderr):  # what libraries have to say
            report = evaluate(resolved, found)
    print_report(report, as_json=as_json)


def _checked(file: Path, overrides: list[str] | None) -> JobConfig:
    read = read_job_file(file, overrides)
    problems = [
        *read.problems,
        *preflight(read, file.parent, overwrite=True, to_start=False),
    ]
    if read.job is not None and not read.job.data.held_out:
        problems.append(read.problem("data.eval", "is missing: there is nothing to evaluate on"))
    if problems or read.job is None:
        raise JobFileError(problems)
    return read.job
