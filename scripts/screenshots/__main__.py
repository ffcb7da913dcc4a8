"""`make screenshots`: pictures for docs/images, all of one real run on a cluster of this machine.

    ray start --head ◀── slipstream launch --address (vLLM, DeepSpeed)
      │ dashboard ─────────▶ jobs list, actors        while the job trains
      │ its Prometheus file ─▶ prometheus ─▶ a graph  just before it ends
    runs/<name> ──slipstream report──▶ at the width of a desk and of a phone

    PYTHONPATH=scripts python -m screenshots [--steps N] [--job FILE]

Chromium, its driver and Prometheus are Debian's. Without Prometheus, or where nothing of ours is
in it, its picture is left out, which is said.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from results import ROOT
from screenshots.browser import browser, look

IMAGES = ROOT / "docs" / "images"
DESK, PHONE = 1440, 390  # pixels
NAME = "arithmetic"
COOKIE = "ray-authentication-token"  # what the dashboard's own dialog sets
START_S, WHOLE_S, SCRAPED_S = 200.0, 1500.0, 90.0
GRAPHS = (  # without the labels that Ray adds
    "max by (run) (ray_slipstream_reward)",
    'max by (__name__) ({__name__=~"ray_slipstream_(generated|trained)_tokens_per_second"})',
    "max by (role, index) (ray_slipstream_busy_share)",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--job", type=Path, default=Path("examples/arithmetic/buffered.yaml"))
    options = parser.parse_args()
    token = secrets.token_hex(32)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token, RAY_USAGE_STATS_ENABLED="0")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slipstream-")))
        address, dashboard = stack.enter_context(ray_head(folder))
        prometheus = stack.enter_context(prometheus_of(folder))
        job = stack.enter_context(launched(options.job, options.steps, address, folder))
        wait_for(lambda: num_steps() >= options.steps // 4, job)
        shots_of_dashboard(dashboard, token)
        if prometheus is not None:
            wait_for(lambda: num_steps() >= options.steps * 9 // 10, job)
            shot_of_prometheus(prometheus)
        assert job.wait(timeout=WHOLE_S) == 0, (folder / "launch.log").read_text()
    shots_of_report()


# --- what is looked at ------------------------------------------------------------


@contextmanager
def ray_head(folder: Path) -> Iterator[tuple[str, str]]:
    """A cluster of one node with a dashboard: its address, and the dashboard's."""
    port, web = free_port(), free_port()
    command = [
        *("ray", "start", "--head", "--block", f"--port={port}", f"--temp-dir={folder}"),
        *("--node-ip-address=127.0.0.1", f"--dashboard-port={web}"),
    ]
    with running(command, folder / "head.log") as head:
        wait_for(lambda: "Ray runtime started" in (folder / "head.log").read_text(), head, START_S)
        yield f"127.0.0.1:{port}", f"http://127.0.0.1:{web}"


@contextmanager
def prometheus_of(folder: Path) -> Iterator[str | None]:
    """Debian's, with the configuration that Ray wrote; None where it is not installed."""
    if shutil.which("prometheus") is None:
        print("prometheus is not installed: no picture of it")
        yield None
        return
    settings = folder / "session_latest" / "metrics" / "prometheus" / "prometheus.yml"
    port = free_port()
    command = [
        *("prometheus", f"--config.file={settings}", f"--storage.tsdb.path={folder / 'tsdb'}"),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with running(command, folder / "prometheus.log"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def launched(
    file: Path, steps: int, address: str, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    settings = (f"learner.num_steps={steps}", f"name={NAME}", "checkpoint.dir=runs")
    every = max(1, steps // 6)
    evaluation = (f"data.eval_every_steps={every}", f"checkpoint.every_steps={every}")
    where = ("--overwrite", "--address", address)
    command = [*slipstream("launch", str(file), *where), *settings, *evaluation]
    shutil.rmtree(ROOT / "runs" / NAME, ignore_errors=True)  # its steps would be counted
    with running(command, folder / "launch.log") as job:
        yield job


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def slipstream(*arguments: str) -> list[str]:
    """By the first Python on the path, which is that of `make`; pictures show the command."""
    return ["python", "-m", "orchestrator.cli", *arguments]


def num_steps() -> int:
    file = ROOT / "runs" / NAME / "metrics.jsonl"
    return file.read_text().count('"kind": "step"') if file.exists() else 0


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[bytes], limit_s: float = WHOLE_S
) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        assert time.monotonic() < deadline_s, f"not within {limit_s:.0f} s: {process.args}"
        time.sleep(0.5)


# --- pictures ---------------------------------------------------------------------


def shots_of_dashboard(url: str, token: str) -> None:
    with browser(DESK) as chrome:
        for page, name in (("jobs", "dashboard-jobs"), ("actors", "dashboard-actors")):
            target = IMAGES / f"{name}.png"
            cookies = {COOKIE: token}
            look(chrome, f"{url}/#/{page}", target, settle_s=6.0, max_height=1000, cookies=cookies)


def shot_of_prometheus(url: str) -> None:
    deadline_s = time.monotonic() + SCRAPED_S
    while not (known := [graph for graph in GRAPHS if asked(url, graph)]):
        if time.monotonic() > deadline_s:
            print("no metric of ours is in Prometheus: no picture of it")
            return
        time.sleep(2)
    panels = [
        {f"g{i}.expr": graph, f"g{i}.tab": "0", f"g{i}.range_input": "5m"}
        for i, graph in enumerate(known)
    ]
    query = urllib.parse.urlencode({key: value for panel in panels for key, value in panel.items()})
    with browser(DESK, 1000) as chrome:
        look(chrome, f"{url}/graph?{query}", IMAGES / "prometheus.png", settle_s=8.0)


def asked(url: str, expression: str) -> list[Any]:
    """What Prometheus has of it now."""
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=10) as answer:
        found: list[Any] = json.load(answer)["data"]["result"]
    return found


def shots_of_report() -> None:
    run = ROOT / "runs" / NAME
    subprocess.run(slipstream("report", str(run)), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    page = f"file://{run / 'report' / 'report.html'}"
    for width, name, height in ((DESK, "desktop", 2100), (PHONE, "phone", 1700)):
        with browser(width, phone=width == PHONE) as chrome:
            look(chrome, page, IMAGES / f"report-{name}.png", max_height=height)


if __name__ == "__main__":
    main()
