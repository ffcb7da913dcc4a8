"""The command line. Exit codes: 0 done, 1 a role failed, 2 bad input, 130 interrupted.

`ledger` exits with 1 where a run broke its promise; `scale`, `pause`, `resume` and `stop`
where the job refuses; `plan` where the job does not fit. With `--address`, a command runs on the
head of a cluster and its exit code is that of the command there; 2 where the cluster cannot be
asked.
"""

from __future__ import annotations

import typer

from orchestrator.commands import (
    deploying,
    evaluating,
    job_files,
    planning,
    reports,
    running,
    runs,
    schema,
    trace,
)
from orchestrator.commands.elsewhere import Command, anywhere
from slipstream import __version__

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train language models with reinforcement learning, from one YAML file.",
)


def version() -> None:
    """Print the version."""
    print(__version__)


HERE: tuple[Command, ...] = (
    *(job_files.launch, job_files.validate, planning.plan, schema.schema, version),
)
ANYWHERE: tuple[Command, ...] = (  # with --address: on the head of a cluster
    *(running.status, running.scale, running.pause, running.resume, running.stop),
    *(runs.runs, runs.logs, runs.ledger, reports.report, reports.export, trace.trace),
)
for command in (*HERE, *map(anywhere, ANYWHERE)):
    app.command()(command)
app.command("eval")(evaluating.eval_)
app.add_typer(deploying.app, name="render")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
