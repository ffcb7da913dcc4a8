"""Commands about a job file: launch, validate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from ruamel.yaml import YAML

from orchestrator.checks import checked_job
from orchestrator.commands.common import print_problems, refused, reported
from orchestrator.plan import describe, make_plan
from orchestrator.submission import follow, is_http, named, submit, there
from slipstream.config.job import JobConfig
from slipstream.config.load import load_job
from slipstream.errors import JobFileError

NO_DETACH = "slipstream: --detach needs --address http://HOST:8265, a cluster that runs the job"


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
        str | None,
        typer.Option(
            help="a running Ray cluster. http://HOST:8265, its dashboard: the job is handed over "
            "and runs there, its paths are of the cluster's machines. HOST:PORT, its own port: "
            "the driver runs here, on one of its machines. Default: a private local cluster"
        ),
    ] = None,
    detach: Annotated[
        bool,
        typer.Option("--detach", help="with http://...: hand the job over and do not wait"),
    ] = False,
) -> None:
    """Run a job to its end.

    Ctrl-C has it commit and end, wherever it runs.
    """
    if detach and not is_http(address):
        print(NO_DETACH, file=sys.stderr)
        raise typer.Exit(2)
    with reported():
        if dry_run:
            job = load_job(file, overrides)
            _print_job(job)
            Console(markup=False, emoji=False).print(describe(make_plan(job)))
            return
        if address is not None and is_http(address):
            flags = {"--resume": resume, "--overwrite": overwrite}
            given = [flag for flag, is_given in flags.items() if is_given]
            raise typer.Exit(_launch_there(address, file, overrides or [], given, detach=detach))
        job = checked_job(file, overrides, resume=resume, overwrite=overwrite)
        plan = make_plan(job)
        from orchestrator.launch import launch as run

        code = run(job, plan, job_file=file, resume=resume, overwrite=overwrite, address=address)
    raise typer.Exit(code)


def _launch_there(
    address: str, file: Path, overrides: list[str], flags: list[str], *, detach: bool
) -> int:
    """Hand the job over to the cluster at `address`; its files are judged there."""
    from orchestrator.jobs_api import Cluster

    job = load_job(file, overrides)
    with refused():
        cluster = Cluster.at(address)
        submission_id = submit(cluster, job, file, overrides, flags)
    print(f"submitted as {submission_id}; its run directory there: {there(job)}", flush=True)
    if detach:
        print(f"see it:  slipstream status {named(job)} --address {address}")
        print(f"hear it: slipstream logs {named(job)} --follow --address {address}")
        print(f"end it:  slipstream stop {named(job)} --address {address}")
        return 0
    return follow(cluster, submission_id, f"slipstream logs {named(job)} --address {address}")


def validate(
    files: Annotated[list[Path], typer.Argument(help="job files")],
) -> None:
    """Check job files, and the files they name; start nothing."""
    failed = False
    for file in files:
        try:
            checked_job(file, overwrite=True, to_start=False)
        except JobFileError as error:
            failed = True
            print_problems(error)
        else:
            print(f"{file}: ok")
    if failed:
        raise typer.Exit(2)


def _print_job(job: JobConfig) -> None:
    YAML().dump(job.model_dump(mode="json"), sys.stdout)
