"""The command line. Exit codes: 0 done, 1 a role failed, 2 bad input, 130 interrupted.

`ledger` exits with 1 where a run broke its promise; `scale`, `pause`, `resume` and `stop`
where the job refuses.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from ruamel.yaml import YAML

from orchestrator.checks import preflight
from orchestrator.control import Pause, Request, Resume, Stop, ask, scale_of
from orchestrator.ledger import read_ledger
from orchestrator.plan import describe, make_plan
from orchestrator.run_files import find_run
from orchestrator.status import read_status
from slipstream import __version__
from slipstream.config.job import JobConfig
from slipstream.config.load import load_job, read_job_file
from slipstream.errors import JobFileError, SlipstreamError

ANSWER_TIMEOUT_S = 90.0  # the driver may wait a minute for a role
UNWRAPPED = 10_000  # columns, where no terminal shows them
Run = Annotated[str, typer.Argument(help="a run's directory, or its name in ./runs")]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train language models with reinforcement learning, from one YAML file.",
)


@app.command()
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
    with _reported():
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


@app.command()
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
            _print_problems(error)
        else:
            print(f"{file}: ok")
    if failed:
        raise typer.Exit(2)


@app.command()
def ledger(
    run: Run,
    ordinal: Annotated[
        int | None, typer.Option(min=0, help="tell the story of this prompt instead")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """What became of every prompt of a run, and whether any was lost or trained too often.

    The run may be at work. Exit code 1: its promise is broken; 2: it has no sound journal.
    """
    with _refused():
        report = read_ledger(run, ordinal)
    if as_json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        Console().print(report.as_text(), soft_wrap=True)  # a line stays one, for grep
    raise typer.Exit(report.exit_code)


@app.command()
def status(
    run: Run, as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False
) -> None:
    """How a job goes, and each of its roles. Exit code 2: there is no such job."""
    with _refused():
        report = read_status(find_run(run))
    if as_json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        width = None if sys.stdout.isatty() else UNWRAPPED
        Console(width=width).print(report.as_text(), soft_wrap=True)


@app.command()
def scale(
    run: Run,
    counts: Annotated[list[str], typer.Argument(help="rollout=N, learner=N, or both")],
) -> None:
    """Change the number of workers or ranks of a running job.

    Exit code 1: the job refuses; 2: bad input, or no such job is running.
    """
    with _refused():
        request = scale_of(counts)
    _ask(run, request)


@app.command()
def pause(run: Run) -> None:
    """Have a running job train no further step, until it is told to resume."""
    _ask(run, Pause())


@app.command()
def resume(run: Run) -> None:
    """Have a paused job go on. (What has ended goes on with `launch --resume`.)"""
    _ask(run, Resume())


@app.command()
def stop(run: Run) -> None:
    """Have a running job commit after its step, and end."""
    _ask(run, Stop(reason="slipstream stop"))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


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


@contextmanager
def _reported() -> Iterator[None]:
    """Errors that are meant for people are printed as such, without a traceback."""
    try:
        yield
    except JobFileError as error:
        _print_problems(error)
        raise typer.Exit(2) from None
    except SlipstreamError as error:
        print(f"slipstream: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("slipstream: interrupted", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def _refused() -> Iterator[None]:
    """Errors in what the user named are bad input, each in one line."""
    try:
        yield
    except SlipstreamError as error:
        print(f"slipstream: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _ask(run: str, request: Request) -> None:
    """Ask the driver of a running job, and say what it answers."""
    with _refused():
        answer = ask(find_run(run), request, ANSWER_TIMEOUT_S)
    if not answer.ok:
        print(f"slipstream: {answer.message}", file=sys.stderr)
        raise typer.Exit(1)
    print(answer.message)


def _print_problems(error: JobFileError) -> None:
    for problem in error.problems:
        print(problem, file=sys.stderr)


def _print_job(job: JobConfig) -> None:
    YAML().dump(job.model_dump(mode="json"), sys.stdout)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
