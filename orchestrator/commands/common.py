"""What the commands share: how a run is named, how a report is printed, how errors are told."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console, RenderableType

from orchestrator.run_list import names
from slipstream.errors import JobFileError, SlipstreamError
from slipstream.secrets import redact

UNWRAPPED = 10_000  # columns, where no terminal shows them


def complete_run(begun: str) -> list[str]:
    """For the shell's completion: the runs in ./runs."""
    return [name for name in names(Path("runs")) if name.startswith(begun)]


Run = Annotated[
    str,
    typer.Argument(help="a run's directory, or its name in ./runs", autocompletion=complete_run),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


class Report(Protocol):
    """What a reading command has found, in either form."""

    def as_json(self) -> Any: ...

    def as_text(self) -> RenderableType: ...


def print_report(report: Report, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        width = None if sys.stdout.isatty() else UNWRAPPED
        # What a report quotes may look like markup; a line stays one, for grep.
        console = Console(width=width, markup=False, emoji=False)
        console.print(report.as_text(), soft_wrap=True)


@contextmanager
def reported() -> Iterator[None]:
    """Errors that are meant for people are printed as such, without a traceback."""
    try:
        yield
    except JobFileError as error:
        print_problems(error)
        raise typer.Exit(2) from None
    except SlipstreamError as error:
        print(f"slipstream: {redact(str(error))}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("slipstream: interrupted", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def refused() -> Iterator[None]:
    """Errors in what the user named are bad input, each in one line."""
    try:
        yield
    except SlipstreamError as error:
        print(f"slipstream: {redact(str(error))}", file=sys.stderr)
        raise typer.Exit(2) from None


def refuse_two_commits(version: int | None, best: bool) -> None:
    if version is not None and best:
        raise SlipstreamError("--version and --best name two commits: leave one out")


def print_problems(error: JobFileError) -> None:
    for problem in error.problems:
        print(problem, file=sys.stderr)
