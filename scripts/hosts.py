"""Hosts of their own on one machine: Linux namespaces, joined by a router.

    head       10.77.0.2 ── port-0 ─┐
    rollout-1  10.77.1.2 ── port-1 ─┼─ router ─── slow_link.py: delays and loses, where asked
    rollout-2  10.77.2.2 ── port-2 ─┘

A host has its own network, process ids and /dev/shm; the files of the machine it shares. All of
it belongs to the host's first process and goes with it, and that goes with ours: nothing is left
behind, not even where this program is killed. Needs root, util-linux and iproute2 (`missing`).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOOLS = ("ip", "unshare", "nsenter", "setpriv")
ISOLATION = ("--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
# The first process of a host must wait for orphans, or they stay as zombies.
FIRST = "mount -t tmpfs none /dev/shm && ip link set lo up && echo up && { sleep infinity & wait; }"
TUN = Path("/dev/net/tun")
SLOW_LINK = Path(__file__).with_name("slow_link.py")


def missing() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(lacking)} not installed (util-linux, iproute2)"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if not TUN.exists():
        return f"{TUN} does not exist"
    links = "ip link add name veth-a type veth peer name veth-b && ip tuntap add tun-a mode tun"
    tried = subprocess.run(
        ["unshare", *ISOLATION, "sh", "-c", f"mount -t tmpfs none /dev/shm && {links}"],
        capture_output=True,
        text=True,
    )
    return f"namespaces are not allowed: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """A running host."""

    name: str
    number: int
    parent: subprocess.Popen[bytes]  # of its first process

    @property
    def pid(self) -> int:
        """Of its first process, as the machine counts."""
        return child_of(self.parent.pid)

    @property
    def address(self) -> str:
        return f"10.77.{self.number}.2"

    @property
    def gateway(self) -> str:
        return f"10.77.{self.number}.1"

    @property
    def port(self) -> str:
        return f"port-{self.number}"

    def command(self, *arguments: str) -> list[str]:
        """What runs `arguments` on this host, in the present directory."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid"]
        return [*enter, "env", f"--chdir={Path.cwd()}", *arguments]

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        # Ctrl-C is for us alone: who ends what, and when, is decided here.
        return subprocess.Popen(
            self.command(*arguments), text=True, start_new_session=True, **options
        )

    def run(
        self, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        command = self.command(*arguments)
        return subprocess.run(command, env=env, timeout=timeout_s, capture_output=True, text=True)

    def kill(self) -> None:
        """All its processes at once, as when a machine loses power."""
        self.parent.kill()  # takes the first process along (--kill-child), and that all others
        self.parent.wait()


def child_of(pid: int) -> int:
    """The process that `nsenter` or `unshare` waits for; raises IndexError before it is there."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


class Network:
    """The router, and the hosts on it. `network()` makes one."""

    def __init__(self, router: Host) -> None:
        self._router = router
        self._hosts: dict[str, Host] = {}

    def add(self, name: str, number: int) -> Host:
        """A new host, or another in the place of one that was killed."""
        host = _boot(name, number)
        self._hosts[name] = host
        self._ip(f"link add {host.port} type veth peer name eth0 netns {host.pid}")
        self._ip(f"addr add {host.gateway}/24 dev {host.port}")
        for command in (f"addr add {host.address}/24 dev eth0", "link set eth0 up"):
            _checked(host.run("ip", *command.split()))
        self._ip(f"link set {host.port} up")
        _checked(host.run(*f"ip route add default via {host.gateway}".split()))
        return host

    def cut(self, host: Host) -> None:
        """Packets to and from it vanish; as with a pulled cable far away, neither side is told."""
        for way in ("from", "to"):
            self._ip(f"rule add priority 5 {way} {host.address} blackhole")

    def heal(self, host: Host) -> None:
        for way in ("from", "to"):
            self._ip(f"rule del priority 5 {way} {host.address} blackhole")

    @contextmanager
    def slow(self, host: Host, delay_s: float, loss: float) -> Iterator[None]:
        """Each packet to and from `host` is `delay_s` late; the share `loss` never comes."""
        program = (sys.executable, str(SLOW_LINK), str(delay_s), str(loss))
        relay = self._router.start(*program, stdout=subprocess.PIPE)
        rules = [f"priority 20 {way} {host.address} lookup 100" for way in ("from", "to")]
        try:
            assert relay.stdout is not None
            assert relay.stdout.readline() == "up\n", "the slow link does not start"
            self._ip("link set slow up txqueuelen 10000")
            self._ip("route add default dev slow table 100")
            with self._rules(["priority 10 iif slow lookup main", *rules]):
                yield
        finally:
            os.kill(child_of(relay.pid), signal.SIGKILL)  # its device goes with it
            relay.wait()

    @contextmanager
    def _rules(self, rules: list[str]) -> Iterator[None]:
        for rule in rules:
            self._ip(f"rule add {rule}")
        try:
            yield
        finally:
            for rule in rules:
                self._ip(f"rule del {rule}")

    def close(self) -> None:
        for host in [*self._hosts.values(), self._router]:
            host.kill()

    def _ip(self, command: str) -> None:
        # Process ids are those of the machine, so only its network is entered.
        enter = ["nsenter", f"--target={self._router.pid}", "--net"]
        arguments = [*enter, "ip", *command.split()]
        _checked(subprocess.run(arguments, capture_output=True, text=True))


@contextmanager
def network() -> Iterator[Network]:
    """A router without hosts; all that was added goes at the end."""
    router = _boot("router", 255)
    net = Network(router)
    try:
        _checked(router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"))
        yield net
    finally:
        net.close()


def _boot(name: str, number: int) -> Host:
    unshare = ["setpriv", "--pdeathsig", "KILL", "unshare", *ISOLATION, "sh", "-c", FIRST]
    parent = subprocess.Popen(unshare, stdout=subprocess.PIPE, start_new_session=True)
    assert parent.stdout is not None
    if parent.stdout.readline() != b"up\n":
        raise RuntimeError(f"{name} does not start")
    return Host(name, number, parent)


def _checked(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(done.args)}: {done.stderr.strip()}")
