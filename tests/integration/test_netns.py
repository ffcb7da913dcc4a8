"""Three hosts in network namespaces, and a Ray cluster over them; see `scripts/netns.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from host_cluster import HostCluster, host_cluster  # noqa: E402
from hosts import Host, missing, network  # noqa: E402

WHY_NOT = missing()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

CONNECT = """
import socket, sys, time
begin_s = time.monotonic()
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1)
except ConnectionRefusedError:  # nobody listens, but the host has answered
    pass
print(time.monotonic() - begin_s)
"""


def seconds_to(source: Host, target: Host) -> float | None:
    """Of one round trip; None where there is no way."""
    done = source.run(sys.executable, "-c", CONNECT, target.address, "9")
    return None if done.returncode else float(done.stdout)


def test_links_can_be_slow_cut_and_healed() -> None:
    with network() as net:
        one, two = net.add("one", 0), net.add("two", 1)
        assert (whole_s := seconds_to(one, two)) is not None
        assert whole_s < 0.1
        with net.slow(two, delay_s=0.1, loss=0.0):
            assert (slow_s := seconds_to(one, two)) is not None
            assert 0.2 <= slow_s < 0.4
            assert (back_s := seconds_to(two, one)) is not None
            assert back_s >= 0.2
        with net.slow(two, delay_s=0.0, loss=1.0):
            assert seconds_to(one, two) is None
        net.cut(two)
        assert seconds_to(one, two) is None
        assert seconds_to(two, one) is None
        net.heal(two)
        assert (healed_s := seconds_to(one, two)) is not None
        assert healed_s < 0.1


def test_a_killed_host_is_gone_and_another_may_come() -> None:
    with network() as net:
        one, two = net.add("one", 0), net.add("two", 1)
        sleeper = two.start("sleep", "1000")
        two.run("touch", "/dev/shm/a")
        assert one.run("ls", "/dev/shm").stdout == "", "the hosts share memory"
        two.kill()
        assert sleeper.wait(timeout=10) != 0
        two = net.add("two", 1)
        assert two.run("ls", "/dev/shm").stdout == ""
        assert seconds_to(one, two) is not None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(number: signal.Signals) -> None:
    """Not even of a program that had no time to clean up."""
    program = (
        "import signal, time, hosts\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with hosts.network() as net:\n"
        "    host = net.add('one', 0)\n"
        "    host.start('sleep', '1000')\n"
        "    print(host.parent.pid, host.pid, flush=True)\n"
        "    time.sleep(1000)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as running:
        assert running.stdout is not None
        pids = [int(pid) for pid in running.stdout.readline().split()]
        assert len(pids) == 2
        running.send_signal(number)
        running.wait(timeout=20)
    deadline_s = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[HostCluster]:
    with host_cluster() as running:
        yield running


def test_nodes_have_the_labels_of_their_roles(cluster: HostCluster) -> None:
    roles = {address: labels["slipstream-role"] for address, labels in cluster.nodes().items()}
    assert roles == {"10.77.0.2": "learner", "10.77.1.2": "rollout", "10.77.2.2": "rollout"}


def test_a_wrong_token_is_refused(cluster: HostCluster) -> None:
    with pytest.raises(RuntimeError, match="token is missing or incorrect"):
        cluster.nodes(RAY_AUTH_TOKEN="0" * 64)


def test_a_host_that_is_cut_off_is_noticed_and_comes_back(cluster: HostCluster) -> None:
    """With Ray's own settings it would take more than a minute."""
    host = cluster.hosts["rollout-2"]
    cluster.net.cut(host)
    cut_s = time.monotonic()
    assert host.address not in cluster.wait_for_nodes(2)
    assert time.monotonic() - cut_s < 15
    cluster.net.heal(host)
    assert cluster.wait_for_nodes(3)[host.address]["slipstream-role"] == "rollout"
