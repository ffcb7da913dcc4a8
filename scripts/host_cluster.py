"""A Ray cluster over hosts: a head with the label of learners, the others with that of workers.

Each host runs `ray start` as on a machine of its own, and starts it again when it ends, as a
service manager does. Token authentication is on; the token is made for the cluster and nowhere
written.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hosts import Host, Network, network

PORT = 6379
RAY = str(Path(sys.executable).with_name("ray"))
ROLES = {"head": "learner", "rollout-1": "rollout", "rollout-2": "rollout"}
STORE_BYTES = 200_000_000
# A host that is cut off is found within seconds. Ray's own settings take more than a minute.
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
# One question to the head; `ray.init` would join as a driver, and tries a wrong token for 20 s.
NODES = """
import json, sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info().values()
print(json.dumps({n.node_manager_address: dict(n.labels) for n in nodes if n.state == 0}))
"""
WAIT_S = 120.0


class HostCluster:
    """Three hosts and their Ray. `host_cluster()` makes one."""

    def __init__(self, net: Network, health_checks: Mapping[str, str]) -> None:
        self.net = net
        self._health_checks = health_checks  # settings of the head; the others need none
        self.hosts: dict[str, Host] = {}
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        for number, name in enumerate(ROLES):
            self.add(name, number)

    @property
    def address(self) -> str:
        return f"{self.hosts['head'].address}:{PORT}"

    def add(self, name: str, number: int) -> None:
        """Boot a host and start Ray on it; `wait_for_nodes` says when it has come."""
        host = self.hosts[name] = self.net.add(name, number)
        where = ["--head", f"--port={PORT}"] if number == 0 else [f"--address={self.address}"]
        ray = [RAY, "start", *where, f"--node-ip-address={host.address}", "--num-cpus=1"]
        options = [
            f"--labels=slipstream-role={ROLES[name]}",
            f"--object-store-memory={STORE_BYTES}",
            "--temp-dir=/dev/shm/ray",  # the host's own
            *(["--include-dashboard=false"] if number == 0 else []),
            "--block",
        ]
        again = 'while :; do "$@"; sleep 1; done'
        env = {**self.env, **(self._health_checks if number == 0 else {})}
        host.start(
            *("sh", "-c", again, "sh", *ray, *options),
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def nodes(self, **env: str) -> dict[str, dict[str, str]]:
        """Labels of the nodes that are alive, by address. Raises RuntimeError where refused."""
        done = self.hosts["head"].run(
            sys.executable, "-c", NODES, self.address, env=self.env | env, timeout_s=30
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        found: dict[str, dict[str, str]] = json.loads(done.stdout)
        return found

    def wait_for_nodes(self, num_nodes: int) -> dict[str, dict[str, str]]:
        """As `nodes`, once so many are alive."""
        deadline_s = time.monotonic() + WAIT_S
        why: object = None
        while time.monotonic() < deadline_s:
            try:
                why = found = self.nodes()
                if len(found) == num_nodes:
                    return found
            except RuntimeError as error:
                why = error
            time.sleep(0.5)
        raise RuntimeError(f"not {num_nodes} nodes within {WAIT_S:.0f} s: {why}")


@contextmanager
def host_cluster(health_checks: Mapping[str, str] = HEALTH_CHECKS) -> Iterator[HostCluster]:
    """Head and two hosts for workers, all there; nothing of them is left at the end."""
    with network() as net:
        cluster = HostCluster(net, health_checks)
        cluster.wait_for_nodes(len(ROLES))
        yield cluster
