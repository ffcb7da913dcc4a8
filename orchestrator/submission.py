"""A job for a cluster elsewhere: handed over through its Jobs API, and followed to its end.

here                                     the cluster's head
job file's directory ── working_dir ──▶  slipstream launch FILE --address its own
Ctrl-C ───────────── stop, SIGTERM ───▶  commits, then ends
the terminal ◀──────────── its log ────  exit code
"""

from __future__ import annotations

import math
import shlex
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.frames import MARK, Unframed
from orchestrator.interrupts import Interrupts
from orchestrator.parcel import packed
from slipstream.config.job import JobConfig
from slipstream.errors import SlipstreamError

if TYPE_CHECKING:
    from orchestrator.jobs_api import Cluster

INTERRUPTED = 130
COMMIT_S = 600.0  # the last one, of a large model on a slow disk
NOT_SHOWN = (MARK, "Running entrypoint for job ", "Runtime env is setting up.")


def is_http(address: str | None) -> bool:
    """Whether `address` is that of a dashboard; else it is the cluster's own, HOST:PORT."""
    return address is not None and address.startswith(("http://", "https://"))


def there(job: JobConfig) -> str:
    """Its run directory, on the cluster's head."""
    return str(job.run_dir) if job.run_dir.is_absolute() else f"~/{job.run_dir}"


def named(job: JobConfig) -> str:
    """How commands that run on the head find its run."""
    return job.name if job.checkpoint.dir == Path("runs") else str(job.run_dir)


def submit(
    cluster: Cluster, job: JobConfig, job_file: Path, overrides: Sequence[str], flags: Sequence[str]
) -> str:
    """Hand `job` over. Returns its submission id. Raises JobFileError, ClusterError."""
    submission_id = f"{job.name}-{uuid.uuid4().hex[:8]}"
    job_file = job_file.resolve()  # a link's directory does not travel
    with packed(job_file) as directory:
        cluster.submit(
            entrypoint(job_file.name, overrides, flags),
            submission_id,
            metadata=metadata(job),
            runtime_env={
                "working_dir": str(directory),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_wait_s(job))},
            },
        )
    return submission_id


def stop_wait_s(job: JobConfig) -> int:
    """From SIGTERM to SIGKILL: the learner ends its step and commits, and all roles close."""
    closing_s = job.rollout.grace_s + job.health.stop_timeout_s
    return math.ceil(job.learner.step_timeout_s + COMMIT_S + closing_s)


def entrypoint(file_name: str, overrides: Sequence[str], flags: Sequence[str]) -> str:
    """The command on the head. Ray starts it where the parcel lies, and says where the cluster is;
    relative run directories begin at the home directory, because the parcel goes with the job."""
    launch = 'exec python -m orchestrator.submitted launch --address "$RAY_ADDRESS"'
    words = shlex.join([*flags, "--", *overrides])
    return f'parcel=$PWD && cd && {launch} "$parcel"/{shlex.quote(file_name)} {words}'


def metadata(job: JobConfig) -> dict[str, str]:
    """What Ray's dashboard shows of the job."""
    return {
        "job_name": job.name,
        "mode": job.mode,
        "model": Path(job.model.path).name
        if Path(job.model.path).is_absolute()
        else job.model.path,
        "run_dir": str(job.run_dir),
    }


def follow(cluster: Cluster, submission_id: str, hint: str) -> int:
    """Show the job's log to its end. Returns its exit code.

    The first Ctrl-C or SIGTERM stops the job, as it would a local one; the second leaves it to
    itself. `hint`: how to see it then. Raises SlipstreamError where the cluster is lost.
    """
    with Interrupts() as interrupts:
        interrupts.patient = True
        asked = False

        def look() -> None:
            nonlocal asked
            if interrupts.requested and not asked:
                cluster.stop(submission_id)
                asked = True
                print("stopping: the job commits, then ends; Ctrl-C again leaves it alone")

        try:
            seen = cluster.follow(submission_id, _show, look)
        except KeyboardInterrupt:
            print(f"left alone, it may still run: {hint}")
            return INTERRUPTED
        except SlipstreamError as error:
            raise SlipstreamError(f"{error}\nThe job may still run: {hint}") from None
    if seen.status == "STOPPED":
        return _stopped(cluster, submission_id)
    if seen.exit_code is None and seen.status == "FAILED":
        print(f"slipstream: the cluster could not run the job: {seen.message}")
        return 1
    return seen.exit_code or 0


def _stopped(cluster: Cluster, submission_id: str) -> int:
    """The exit code of a job that was stopped: Ray keeps none, so that its log is asked."""
    log = Unframed(lambda _to, _text: None)
    with suppress(SlipstreamError):
        log.feed(cluster.log(submission_id))
    if log.exit_code is None:
        print("slipstream: the job was stopped, and it is not known whether it has committed")
    return INTERRUPTED if log.exit_code is None else log.exit_code


def _show(text: str) -> None:
    for line in text.splitlines(keepends=True):
        if not any(said in line for said in NOT_SHOWN):
            print(line, end="", flush=True)
