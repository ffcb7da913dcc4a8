"""Connects to Ray: a private local cluster, or a running one.

Token authentication is always on; the package sets it before ray is imported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.job_config import JobConfig as RayJobConfig

from rollout_worker.semaphores import remove_of_the_dead
from slipstream.config.job import JobConfig
from slipstream.errors import JobFileError, Problem


@contextmanager
def connected(
    address: str | None, import_dirs: list[str], *, metadata: Mapping[str, str]
) -> Iterator[Any]:
    """Connect (`address` None starts a private cluster), yield Ray's context, disconnect.

    `import_dirs` are put on the roles' import path, so that a reward function beside the
    job file is found. `metadata` is what Ray's dashboard tells of the job. Raises JobFileError.
    """
    # Ray would otherwise repeat identical lines of several actors in one line of its own.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    python_path = os.pathsep.join([*import_dirs, os.environ.get("PYTHONPATH", "")])
    try:
        context = ray.init(
            address=address or "local",
            include_dashboard=None if address else True,
            logging_level=logging.ERROR,
            log_to_driver=False,
            job_config=RayJobConfig(metadata=dict(metadata)),
            runtime_env={"env_vars": {"PYTHONPATH": python_path.strip(os.pathsep)}},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        where = f"--address {address}" if address else "the local Ray cluster"
        raise JobFileError(
            [Problem("command line", "", f"{where} cannot be used: {said}")]
        ) from None
    try:
        yield context
    finally:
        ray.shutdown()
        remove_of_the_dead()  # of workers that were killed as the last ones of this machine


def metadata_of(job: JobConfig) -> dict[str, str]:
    """What Ray's list of jobs shows; `job_name` has a column of its own there."""
    return {
        "job_name": job.name,
        "mode": job.mode,
        "model": job.model.path,
        "run_dir": str(job.run_dir.resolve()),
    }


def available() -> dict[str, float]:
    """The cluster's resources by name, all nodes together."""
    return dict(ray.cluster_resources())
