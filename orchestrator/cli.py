"""The command line. Exit codes: 0 done, 1 a role failed, 2 bad input, 130 interrupted.

`ledger` exits with 1 where a run broke its promise; `scale`, `pause`, `resume` and `stop`
where the job refuses.
"""

from __future__ import annotations

import typer

from orchestrator.commands import job_files, reports, running, runs, trace
from slipstream import __version__

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train language models with reinforcement learning, from one YAML file.",
)


def version() -> None:
    """Print the version."""
    print(__version__)


COMMANDS = (
    *(job_files.launch, job_files.validate),
    *(running.status, running.scale, running.pause, running.resume, running.stop),
    *(runs.ledger, trace.trace, version),
    *(reports.report, reports.export),
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
