"""Commands about a job that runs: status, scale, pause, resume, stop."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.commands.common import AsJson, Run, print_report, refused
from orchestrator.control import Answer, Pause, Request, Resume, Stop, ask, scale_of
from orchestrator.deploy import kubectl
from orchestrator.run_files import find_run
from orchestrator.status import read_status

ANSWER_TIMEOUT_S = 90.0  # the driver may wait a minute for replay, until it kills it


def status(run: Run, as_json: AsJson = False) -> None:
    """How a job goes, and each of its roles. Exit code 2: there is no such job."""
    with refused():
        report = read_status(find_run(run))
    print_report(report, as_json=as_json)


def scale(
    run: Run,
    counts: Annotated[list[str], typer.Argument(help="rollout=N, learner=N, or both")],
    kuberay: Annotated[
        str | None,
        typer.Option(help="the RayJob that runs it; its cluster gets the room, by kubectl"),
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="of the RayJob; default: kubectl's")] = None,
) -> None:
    """Change the number of workers or ranks of a running job.

    Exit code 1: the job refuses; 2: bad input, or no such job is running.
    """
    with refused():
        request = scale_of(counts)
        if kuberay is not None:
            answer = kubectl.scale(kubectl.Kubectl(namespace=namespace), kuberay, run, request)
            _tell(answer)
            return
    _ask(run, request)


def pause(run: Run) -> None:
    """Have a running job train no further step, until it is told to resume."""
    _ask(run, Pause())


def resume(run: Run) -> None:
    """Have a paused job go on. (What has ended goes on with `launch --resume`.)"""
    _ask(run, Resume())


def stop(run: Run) -> None:
    """Have a running job commit after its step, and end."""
    _ask(run, Stop(reason="slipstream stop"))


def _ask(run: str, request: Request) -> None:
    """Ask the driver of a running job, and say what it answers."""
    with refused():
        answer = ask(find_run(run), request, ANSWER_TIMEOUT_S)
    _tell(answer)


def _tell(answer: Answer) -> None:
    if not answer.ok:
        print(f"slipstream: {answer.message}", file=sys.stderr)
        raise typer.Exit(1)
    print(answer.message)
