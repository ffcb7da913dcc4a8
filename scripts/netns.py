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
import time
from collections.abc import Callable, Mapping
from typing import Any

from host_cluster import HEALTH_CHECKS, ROLES, HostCluster, host_cluster
from host_job import JOB_FILE, RUN, Event, Job, launch
from hosts import missing
from results import ROOT, signature, table, write

from replay.journal import FILE_NAME, JournalReader
from replay.rows import FactRow

DELAY_S, LOSS = 0.025, 0.01  # of each packet, either way


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
    return {"worker": worker, "noticed_s": died["time_s"] - begin_s, "pause_s": pause_s}


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


def late_pushes(worker: Event) -> dict[str, int]:
    """Its groups that came after replay had been told of its loss."""
    found = {"accepted": 0, "refused": 0}
    leases: set[int | None] = set()
    is_lost = False
    with JournalReader(RUN / FILE_NAME) as journal:
        for row in (row for row in journal.rows() if isinstance(row, FactRow)):
            match row.kind:
                case "leased" if _is_of(worker, row):
                    leases.add(row.lease_id)
                case "lost" if _is_of(worker, row):
                    is_lost = True
                case "accepted" | "refused" if is_lost and row.lease_id in leases:
                    found[row.kind] += 1
    if not is_lost:
        raise RuntimeError(f"replay was not told of the loss of rollout-{worker['index']}")
    return found


def _is_of(worker: Event, row: FactRow) -> bool:
    name = f"rollout-{worker['index']}"
    return (row.data["worker"], row.data["incarnation"]) == (name, worker["incarnation"])


def _of(worker: Event, events: list[Event]) -> list[Event]:
    return [e for e in events if (e["role"], e["index"]) == ("rollout", worker["index"])]


def measure(cluster: HostCluster, seconds: float, *, network_only: bool) -> dict[str, Any]:
    hosts, net = cluster.hosts, cluster.net
    job = launch(cluster)
    figures: dict[str, Any] = {"steps_per_s": slow_link(job, seconds)}
    if not network_only:
        cut = lost(job, "rollout-2", lambda: net.cut(hosts["rollout-2"]))
        time.sleep(10)  # the old worker goes on, alone
        cut["back_s"] = back(job, cut["worker"], lambda: net.heal(hosts["rollout-2"]))
        killed = lost(job, "rollout-1", hosts["rollout-1"].kill)
        killed["back_s"] = back(job, killed["worker"], lambda: cluster.add("rollout-1", 1))
        time.sleep(10)  # what is late may still come
        cut["late"], killed["late"] = late_pushes(cut["worker"]), late_pushes(killed["worker"])
        figures |= {"cut": cut, "killed": killed}
    job.stop()
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
    none_came = not any(cut["late"].values())
    return "\n".join(
        [
            "# Three hosts and a network that breaks",
            "",
            signature("make netns"),
            f"`{JOB_FILE.relative_to(ROOT)}` on a Ray cluster of three network namespaces: `head` "
            "(learner, replay, driver), `rollout-1` and `rollout-2` (a worker each), with token "
            "authentication. All share the two cores.",
            "",
            table(["what", "figure"], rows),
            "",
            f"Slow: each packet {DELAY_S * 1000:.0f} ms late either way, {LOSS:.0%} lost. Cut: "
            "packets vanish, and neither side is told. A host whose Ray has ended starts it again, "
            "as a service manager does."
            + " No late group reached replay in this run, so none could be refused."
            * none_came,
            "",
            "`slipstream ledger`, asked after each loss and at the end "
            f"({ledger['version']} steps), found every prompt trained once or pending.",
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
