"""Commands about a job file: launch, validate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from ruamel.yaml import YAML

from orchestrator.checks import preflight
from orchestrator.commands.common import print_problems, reported
from orchestrator.plan import describe, make_plan
from slipstream.config.job import JobConfig
from slipstream.config.load import load_job, read_job_file
from slipstream.errors import JobFileError


def launch(
    file: Annotated[Path, typer.Argument(help="the job file")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="dotted key=value pairs laid over the file")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="print the resolved job and its placement, start nothing"),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the run's newest commit")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="start anew in the run's directory")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="a running Ray cluster; default: a private local one")
    ] = None,
) -> None:
    """Run a job to its end."""
    with reported():
        if dry_run:
            job = load_job(file, overrides)
            _print_job(job)
            Console().print(describe(make_plan(job)))
            return
        job = _checked(file, overrides, resume=resume, overwrite=overwrite)
        plan = make_plan(job)
        from orchestrator.launch import launch as run

        code = run(job, plan, job_file=file, resume=resume, overwrite=overwrite, address=address)
    raise typer.Exit(code)


def validate(
    files: Annotated[list[Path], typer.Argument(help="job files")],
) -> None:
    """Check job files, and the files they name; start nothing."""
    failed = False
    for file in files:
        try:
            _checked(file, overwrite=True, to_start=False)
        except JobFileError as error:
            failed = True
            print_problems(error)
        else:
            print(f"{file}: ok")
    if failed:
        raise typer.Exit(2)


def _checked(
    file: Path,
    overrides: list[str] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    to_start: bool = True,
) -> JobConfig:
    """The job, if neither the file nor what it names is wrong; else every problem at once."""
    read = read_job_file(file, overrides)
    problems = [
        *read.problems,
        *preflight(read, file.parent, resume=resume, overwrite=overwrite, to_start=to_start),
    ]
    if problems or read.job is None:
        raise JobFileError(problems)
    return read.job


def _print_job(job: JobConfig) -> None:
    YAML().dump(job.model_dump(mode="json"), sys.stdout)
