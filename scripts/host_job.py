"""The job that `netns.py` watches: launched on a cluster of hosts, known by what it writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from host_cluster import HostCluster
from hosts import child_of
from results import ROOT

JOB_FILE = ROOT / "examples" / "arithmetic" / "multinode.yaml"
RUN = ROOT / "runs" / "netns"
SETTINGS = (
    "rollout.num_workers=2",
    "learner.num_steps=1000000",  # it is stopped
    "learner.schedule=constant",
    "checkpoint.every_steps=20",
    "data.eval=null",
)
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


def launch(cluster: HostCluster) -> Job:
    """The job on the head of `cluster`, once it trains. It ends with its host, if not before."""
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
    return job
