"""Commands given from outside a cluster: `--address` runs them on its head, and the answer comes
back. No port but the dashboard's is needed."""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from orchestrator.commands.common import refused
from orchestrator.frames import Stream, Unframed
from slipstream.errors import SlipstreamError

Command = Callable[..., None]
VARIABLE = "RAY_API_SERVER_ADDRESS"
ANSWER_TIMEOUT_S = 600.0
LONG_ANSWERS_S = {"export": 4 * 3600.0, "report": 3600.0}  # they copy, or read, many GB
ENDLESS = ("--follow", "-f")
Address = Annotated[
    str | None,
    typer.Option(
        envvar=VARIABLE,
        help="run this on the head of a cluster: its dashboard, as in http://HOST:8265",
    ),
]


def anywhere(command: Command) -> Command:
    """`command` with `--address`."""

    @functools.wraps(command)
    def run(*arguments: Any, address: str | None, **options: Any) -> None:
        if address:
            raise typer.Exit(run_there(address, without_address(sys.argv[1:])))
        command(*arguments, **options)

    signature = inspect.signature(command, eval_str=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    added = inspect.Parameter("address", kind, default=None, annotation=Address)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), added]
    )
    run.__annotations__ = {**inspect.get_annotations(command, eval_str=True), "address": Address}
    return run


def without_address(arguments: Sequence[str]) -> list[str]:
    """The command as it is given on the head."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument == "--address":
            next(rest, None)
        elif not argument.startswith("--address="):
            kept.append(argument)
    return kept


def run_there(address: str, arguments: Sequence[str]) -> int:
    """Run `slipstream ARGUMENTS` on the head; pass on what it says. Returns its exit code."""
    from orchestrator.jobs_api import Cluster

    answer = Unframed(_say)
    submission_id = f"slipstream-{arguments[0]}-{uuid.uuid4().hex[:8]}"
    with refused():
        cluster = Cluster.at(address)
        command = f"exec python -m orchestrator.framed {shlex.join(arguments)}"
        cluster.submit(command, submission_id, metadata={"job_name": f"slipstream {arguments[0]}"})
        try:
            if any(option in arguments for option in ENDLESS):
                seen = cluster.follow(submission_id, answer.feed, lambda: None)
            else:
                limit_s = LONG_ANSWERS_S.get(arguments[0], ANSWER_TIMEOUT_S)
                seen = cluster.wait(submission_id, limit_s)
                answer.feed(cluster.log(submission_id))
        except KeyboardInterrupt:
            cluster.stop(submission_id)
            raise typer.Exit(130) from None
        except SlipstreamError:
            with suppress(SlipstreamError):  # what went wrong first is told
                cluster.stop(submission_id)
            raise
        if answer.exit_code is None:
            said = "\n".join([*answer.others, seen.message if seen.exit_code is None else ""])
            raise SlipstreamError(f"{address} could not run the command:\n{said.strip()}")
    return answer.exit_code


def _say(to: Stream, text: str) -> None:
    print(text, end="", flush=True, file=sys.stdout if to == "out" else sys.stderr)
