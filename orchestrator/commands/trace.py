"""Commands about what a run's roles did when: trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.common import Run, refused
from orchestrator.run_files import find_run
from orchestrator.trace import write_trace
from slipstream.errors import SlipstreamError


def trace(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(help="the file to write; default: trace.json in the run")
    ] = None,
) -> None:
    """Write who did what when, for ui.perfetto.dev or chrome://tracing.

    The run may be at work; at its end it does so by itself. Exit code 2: there is no such run, or
    the file cannot be written.
    """
    with refused():
        path = find_run(run)
        try:
            print(write_trace(path, out))
        except OSError as error:
            raise SlipstreamError(f"no trace: {error}") from None
