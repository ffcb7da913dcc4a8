"""Connects to Ray: a private local cluster, or a running one.

Token authentication is always on; the package sets it before ray is imported.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray._private.ray_logging import global_worker_stdstream_dispatcher as roles_output
from ray._private.state import actors
from ray.exceptions import AuthenticationError
from ray.job_config import JobConfig

from rollout_worker.semaphores import remove_of_the_dead
from slipstream.errors import JobFileError, Problem

LAST_WORDS_S = 0.5  # until Ray has passed on what a role said last


@contextmanager
def connected(
    address: str | None, import_dirs: list[str], metadata: Mapping[str, str]
) -> Iterator[Any]:
    """Connect (`address` None starts a private cluster), yield Ray's context, disconnect.

    `import_dirs` are put on the roles' import path, so that a reward function beside the
    job file is found. `metadata` is what Ray's dashboard shows of the job. Raises JobFileError.
    """
    # Ray would otherwise repeat identical lines of several actors in one line of its own.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    python_path = os.pathsep.join([*import_dirs, os.environ.get("PYTHONPATH", "")])
    try:
        context = ray.init(
            address=address or "local",
            include_dashboard=None if address else True,
            dashboard_host="127.0.0.1",  # of a private cluster: nobody else's business
            job_config=JobConfig(metadata=dict(metadata)),
            logging_level=logging.ERROR,
            log_to_driver=True,
            runtime_env={"env_vars": {"PYTHONPATH": python_path.strip(os.pathsep)}},
        )
    except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as error:
        said = str(error).strip().splitlines()[0]
        where = f"--address {address}" if address else "the local Ray cluster"
        raise JobFileError(
            [Problem("command line", "", f"{where} cannot be used: {said}")]
        ) from None
    roles_output.remove_handler("ray_print_logs")  # it would print what `heard` takes
    try:
        yield context
    finally:
        ray.shutdown()
        remove_of_the_dead()  # of workers that were killed as the last ones of this machine


@contextmanager
def heard(write: Callable[[str, Sequence[str]], None]) -> Iterator[None]:
    """Give the lines that the roles print, on whatever node, to `write`, with the role's name."""
    names = _Names()

    def hear(said: Mapping[str, Any]) -> None:
        if str(said["pid"]).isdigit():  # else it is Ray itself that speaks
            write(names.of(int(said["pid"]), said["ip"]), said["lines"])

    roles_output.add_handler("slipstream", hear)
    try:
        yield
    finally:
        time.sleep(LAST_WORDS_S)
        roles_output.remove_handler("slipstream")


class _Names:
    """Which role a process is. Ray names only its class."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], str] = {}

    def of(self, pid: int, ip: str) -> str:
        if (pid, ip) not in self._known:
            with suppress(Exception):  # in a thread of Ray's, which would end
                for actor in actors().values():
                    place = actor["Pid"], actor["Address"]["IPAddress"]
                    self._known[place] = actor["Name"].rpartition("-")[0]
        return self._known.get((pid, ip), f"process-{pid}")


def available() -> dict[str, float]:
    """The cluster's resources by name, all nodes together."""
    return dict(ray.cluster_resources())
