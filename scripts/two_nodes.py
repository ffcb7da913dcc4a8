"""A Ray cluster of two nodes on this machine: one for the learner, one for rollout workers.

Used by `make modes` and the tests of `multinode`. Run alone, it stays up until Ctrl-C and
prints the address for `slipstream launch --address`; further arguments are roles of more nodes.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROLES = ("learner", "rollout")
RAY = str(Path(sys.executable).with_name("ray"))
START_S = 60.0
STOP_S = 60.0


@contextmanager
def two_nodes(cpus_per_node: int = 1, *, more: tuple[str, ...] = ()) -> Iterator[str]:
    """Start the nodes, yield the cluster's address, stop them. `more`: roles of further nodes.

    Each is a `ray start` in a process of its own: this process may have read Ray's settings.
    """
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    # Ray's own command writes a token where there is none.
    subprocess.run([RAY, "get-auth-token", "--generate"], env=env, check=True, capture_output=True)
    port = _free_port()
    address = f"127.0.0.1:{port}"
    with ExitStack() as nodes, tempfile.TemporaryDirectory() as logs:
        for number, role in enumerate((*ROLES, *more)):
            if number == 0:
                where = ["--head", f"--port={port}", "--include-dashboard=false"]
            else:
                where = [f"--address={address}"]
            options = [f"--num-cpus={cpus_per_node}", f"--labels=slipstream-role={role}"]
            ray = [RAY, "start", *where, "--node-ip-address=127.0.0.1", *options, "--block"]
            nodes.enter_context(_node(ray, env, Path(logs) / f"{number}-{role}.log"))
        yield address


@contextmanager
def _node(ray: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    """One node, until it stops. Raises RuntimeError where it does not start."""
    with log.open("wb") as file:
        process = subprocess.Popen(ray, env=env, stdout=file, stderr=file)
    try:
        deadline_s = time.monotonic() + START_S
        while "Ray runtime started" not in (said := log.read_text()):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{' '.join(ray)} did not start: {said}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(timeout=STOP_S)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT is ignored where a shell says so
        signal.signal(number, signal.default_int_handler)
    with two_nodes(more=tuple(sys.argv[1:])) as address:
        print(f"two nodes are up: slipstream launch FILE --address {address}", flush=True)
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            print("stopping the two nodes")


if __name__ == "__main__":
    main()
