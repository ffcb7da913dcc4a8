"""`make netns`: a job over three hosts whose network breaks; writes docs/results/netns.md.

    python scripts/netns.py [--seconds S] [--network-only]

The hosts are network namespaces of this machine (`hosts.py`) with a Ray cluster of their own
(`host_cluster.py`): the head with learner, replay and driver, and two hosts with a rollout worker
each. They share nothing but the files of the machine. While the arithmetic example trains, in
this order: a slow link, a cut link, the link healed, a host killed, a host added.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from host_cluster import HEALTH_CHECKS, ROLES, HostCluster, host_cluster
from hosts import child_of, missing
from results import ROOT, signature, table, write

from replay.journal import FILE_NAME, JournalReader
from replay.rows import FactRow

JOB_FILE = ROOT / "examples" / "arithmetic" / "multinode.yaml"
RUN = ROOT / "runs" / "netns"
SETTINGS = (
    "rollout.num_workers=2",
    "learner.num_steps=1000000",  # it is stopped
    "learner.schedule=constant",
    "checkpoint.every_steps=20",
    "data.eval=null",
)
DELAY_S, LOSS = 0.025, 0.01  # of each packet, either way
WAIT_S = 240.0
Event = dict[str, Any]


class Job:
    """The job under way on the cluster, known by its metrics file and its nodes."""

    def __init__(self, cluster: HostCluster, driver: subprocess.Popen[str]) -> None:
        self.cluster = cluster
        self._driver = driver

    def events(self, kind: str, since_s: float = 0.0) -> list[Event]:
        file = RUN / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        events = [json.loads(line) for line in lines if f'"kind": "{kind}"' in line]
        return [event for event in events if event["time_s"] >= since_s]

    def wait_for(self, found: Callable[[], list[Event]], what: str) -> Event:
        """The first of what `found` finds. Raises RuntimeError."""
        deadline_s = time.monotonic() + WAIT_S
        while not (events := found()):
            if self._driver.poll() is not None:
                raise RuntimeError(f"the job ended:\n{RUN.with_suffix('.log').read_text()[-3000:]}")
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"waited {WAIT_S:.0f} s for {what}")
            time.sleep(0.2)
        return events[0]

    def steps_per_s(self, seconds: float) -> float:
        """From now on."""
        begin_s = time.time()
        time.sleep(seconds)
        return len(self.events("step", begin_s)) / seconds

    def longest_pause_s(self, begin_s: float) -> float:
        """Between two learner steps since then."""
        times: list[float] = [event["time_s"] for event in self.events("step")]
        pairs = zip(times, [*times[1:], time.time()], strict=True)
        return max(after - before for before, after in pairs if after >= begin_s)

    def worker_on(self, host: str) -> Event:
        """The `worker_started` of the worker that runs there."""
        labels = self.cluster.nodes()[self.cluster.hosts[host].address]
        node = labels["ray.io/node-id"]
        return [e for e in self.events("worker_started") if e["node"] == node][-1]

    def ledger(self) -> dict[str, Any]:
        """Raises RuntimeError where the promise is broken."""
        command = [sys.executable, "-m", "orchestrator.cli", "ledger", str(RUN), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode != 0:
            raise RuntimeError(done.stdout + done.stderr)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def stop(self) -> None:
        """In order, as by Ctrl-C."""
        os.kill(child_of(self._driver.pid), signal.SIGINT)
        if (code := self._driver.wait(timeout=WAIT_S)) != 130:
            raise RuntimeError(f"exit code {code}:\n{RUN.with_suffix('.log').read_text()[-3000:]}")


@contextmanager
def launched(cluster: HostCluster) -> Iterator[Job]:
    """The job, once it trains."""
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "orchestrator.cli", "launch", str(JOB_FILE)]
    where = ["--address", cluster.address, f"name={RUN.name}", f"checkpoint.dir={RUN.parent}"]
    with RUN.with_suffix(".log").open("w") as log:
        driver = cluster.hosts["head"].start(
            *(*command, *where, *SETTINGS),
            env=cluster.env | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
            stdout=log,
            stderr=log,
        )
    job = Job(cluster, driver)
    job.wait_for(lambda: job.events("step")[4:], "the first steps")
    yield job


def slow_link(job: Job, seconds: float) -> dict[str, float]:
    """Steps a second before, while and after rollout-1 is far away, which is no failure."""
    before = job.steps_per_s(seconds)
    with job.cluster.net.slow(job.cluster.hosts["rollout-1"], DELAY_S, LOSS):
        job.steps_per_s(5)  # what is under way
        slow = job.steps_per_s(seconds)
    job.steps_per_s(5)
    return {"before": before, "slow": slow, "after": job.steps_per_s(seconds)}


def lost(job: Job, host: str, lose: Callable[[], None]) -> dict[str, Any]:
    """`lose` takes the worker on `host` away from the job."""
    worker = job.worker_on(host)
    begin_s = time.time()
    lose()
    died = job.wait_for(lambda: _of(worker, job.events("worker_died", begin_s)), "the death")
    job.wait_for(lambda: job.events("step", died["time_s"])[2:], "steps after the death")
    pause_s = job.longest_pause_s(begin_s)
    job.ledger()
    noticed_s = died["time_s"] - begin_s
    return {
        "worker": worker,
        "died_at_s": died["time_s"],
        "noticed_s": noticed_s,
        "pause_s": pause_s,
    }


def back(job: Job, worker: Event, bring: Callable[[], None]) -> dict[str, float]:
    """Seconds from `bring` until Ray is there, and until another incarnation of `worker` works."""
    begin_s = time.time()
    bring()
    job.cluster.wait_for_nodes(len(ROLES))
    node_s = time.time() - begin_s
    started = job.wait_for(lambda: _of(worker, job.events("worker_started", begin_s)), "the worker")
    assert started["incarnation"] > worker["incarnation"]
    served = job.wait_for(
        lambda: [e for e in _of(worker, job.events("busy", started["time_s"])) if e["num_tokens"]],
        "tokens of the worker",
    )
    return {"node": node_s, "works": served["time_s"] - begin_s}


def noticed_by_ray_s(health_checks: Mapping[str, str]) -> float:
    """How soon a cluster with these settings misses a host that was cut off."""
    with host_cluster(health_checks) as cluster:
        cluster.net.cut(cluster.hosts["rollout-2"])
        begin_s = time.monotonic()
        cluster.wait_for_nodes(len(ROLES) - 1)
        return time.monotonic() - begin_s


def late_pushes(worker: Event, since_s: float) -> dict[str, int]:
    """Groups of that incarnation after it was given up, by what replay said."""
    found = {"accepted": 0, "refused": 0}
    leases = set()
    with JournalReader(RUN / FILE_NAME) as journal:
        facts = (row for row in journal.rows() if isinstance(row, FactRow))
        for row in facts:
            if row.kind == "leased" and _by(row.data) == (worker["index"], worker["incarnation"]):
                leases.add(row.lease_id)
            if row.kind in found and row.lease_id in leases and row.at_s > since_s:
                found[row.kind] += 1
    return found


def _by(leased: Any) -> tuple[int, int]:
    return int(leased["worker"].removeprefix("rollout-")), leased["incarnation"]


def _of(worker: Event, events: list[Event]) -> list[Event]:
    return [e for e in events if (e["role"], e["index"]) == ("rollout", worker["index"])]


def measure(cluster: HostCluster, seconds: float, *, network_only: bool) -> dict[str, Any]:
    hosts, net = cluster.hosts, cluster.net
    with launched(cluster) as job:
        figures: dict[str, Any] = {"steps_per_s": slow_link(job, seconds)}
        if not network_only:
            cut = lost(job, "rollout-2", lambda: net.cut(hosts["rollout-2"]))
            time.sleep(10)  # the old worker goes on, alone
            cut["back_s"] = back(job, cut["worker"], lambda: net.heal(hosts["rollout-2"]))
            killed = lost(job, "rollout-1", hosts["rollout-1"].kill)
            killed["back_s"] = back(job, killed["worker"], lambda: cluster.add("rollout-1", 1))
            time.sleep(10)
            figures |= {"cut": cut, "killed": killed}
        job.stop()
        for name in ("cut", "killed"):
            if name in figures:
                loss = figures[name]
                loss["late"] = late_pushes(loss["worker"], loss["died_at_s"])
        return figures | {"ledger": job.ledger()}


def page(figures: dict[str, Any]) -> str:
    rates, cut, killed = figures["steps_per_s"], figures["cut"], figures["killed"]
    rows = [
        ["steps/s, all links whole", f"{rates['before']:.2f}"],
        ["steps/s, link of `rollout-1` slow", f"{rates['slow']:.2f}"],
        ["steps/s, whole again", f"{rates['after']:.2f}"],
        ["link of `rollout-2` cut: the driver gives its worker up after", _s(cut["noticed_s"])],
        ["longest pause between two steps meanwhile", _s(cut["pause_s"])],
        ["link healed: Ray runs there again after", _s(cut["back_s"]["node"])],
        ["link healed: a new worker there generates after", _s(cut["back_s"]["works"])],
        ["groups of the old worker, after it was given up: accepted", str(cut["late"]["accepted"])],
        ["the same: refused", str(cut["late"]["refused"])],
        ["`rollout-1` killed: the driver gives its worker up after", _s(killed["noticed_s"])],
        ["longest pause between two steps meanwhile", _s(killed["pause_s"])],
        ["host added in its place: Ray runs there after", _s(killed["back_s"]["node"])],
        [
            "host added in its place: a new worker there generates after",
            _s(killed["back_s"]["works"]),
        ],
    ]
    ledger = figures["ledger"]
    return "\n".join(
        [
            "# Three hosts and a network that breaks",
            "",
            signature("make netns"),
            f"`{JOB_FILE.relative_to(ROOT)}` on a Ray cluster of three network namespaces: `head` "
            "(learner, replay, driver), `rollout-1` and `rollout-2` (a worker each), with token "
            "authentication. All share the two cores.",
            "",
            table(["", ""], rows),
            "",
            f"Slow: each packet {DELAY_S * 1000:.0f} ms late either way, {LOSS:.0%} lost. Cut: "
            "packets vanish, and neither side is told. A host whose Ray has ended starts it again, "
            "as a service manager does.",
            "",
            f"At the end `slipstream ledger` found the promise kept: {ledger['fates']}.",
            "",
            "How soon Ray misses a host that was cut off is a setting of the head alone: "
            f"{_s(figures['noticed_by_ray_s']['set'])} with these in the environment of `ray start "
            f"--head`, {_s(figures['noticed_by_ray_s']['own'])} without.",
            "",
            *(f"    {name}={value}" for name, value in HEALTH_CHECKS.items()),
            "",
        ]
    )


def _s(seconds: float) -> str:
    return f"{seconds:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30.0, help="for each rate of steps")
    parser.add_argument("--network-only", action="store_true", help="rates alone; write nothing")
    options = parser.parse_args()
    if why := missing():
        print(f"skipped: {why}")
        return
    with host_cluster() as cluster:
        figures = measure(cluster, options.seconds, network_only=options.network_only)
    if options.network_only:
        print(json.dumps(figures, indent=1))
    else:
        settings: dict[str, dict[str, str]] = {"set": HEALTH_CHECKS, "own": {}}
        noticed_s = {name: noticed_by_ray_s(given) for name, given in settings.items()}
        figures["noticed_by_ray_s"] = noticed_s
        write("netns", page(figures), figures)


if __name__ == "__main__":
    main()
