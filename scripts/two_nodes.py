"""A Ray cluster of two nodes on this machine: one for the learner, one for rollout workers.

Used by `make modes` and the tests of `multinode`. Run alone, it stays up until Ctrl-C and
prints the address for `slipstream launch --address`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROLES = ("learner", "rollout")


@contextmanager
def two_nodes(cpus_per_node: int = 1, *, more: tuple[str, ...] = ()) -> Iterator[str]:
    """Start the nodes, yield the cluster's address, stop them. `more`: roles of further nodes."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    from ray.cluster_utils import Cluster

    # Ray's own command writes a token where there is none.
    ray_command = Path(sys.executable).with_name("ray")
    subprocess.run([ray_command, "get-auth-token", "--generate"], check=True, capture_output=True)
    cluster = Cluster()
    try:
        for role in (*ROLES, *more):
            cluster.add_node(num_cpus=cpus_per_node, labels={"slipstream-role": role})
        yield cluster.address
    finally:
        if ray.is_initialized():
            ray.shutdown()
        cluster.shutdown()


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT is ignored where a shell says so
        signal.signal(number, signal.default_int_handler)
    with two_nodes() as address:
        print(f"two nodes are up: slipstream launch FILE --address {address}", flush=True)
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            print("stopping the two nodes")


if __name__ == "__main__":
    main()
