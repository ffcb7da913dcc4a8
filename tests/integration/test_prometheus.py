"""A run's figures reach Prometheus: a real job, Ray's own scrape configuration, Debian's server."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from orchestrator.metrics import catalog
from orchestrator.metrics.catalog import METRICS
from tests.helpers.runs import ROOT, assert_nothing_is_left, events, started, wait_for

JOB = ROOT / "examples" / "arithmetic" / "buffered.yaml"
SETTINGS = (
    *("name=seen", "learner.num_steps=100000", "learner.warmup_steps=1"),
    *("learner.groups_per_batch=8", "checkpoint.every_steps=10", "data.eval_num_prompts=20"),
    *("data.eval_every_steps=10", "health.heartbeat_timeout_s=60"),
    "algorithm.kl.coefficient=0.01",  # a reference, for its KL
)
# A gauge is gone two intervals after it was set last; Ray's agent sets its own every 5 s, and the
# driver at every tick, which takes seconds on a loaded machine.
FASTER = {"RAY_metrics_report_interval_ms": "5000"}
# Where nobody asks for pass@k, where there is no GPU.
ABSENT = {*catalog.PASS_AT.series, "ray_node_gpus_utilization", "ray_node_gram_used"}

IN_FLIGHT = 2 * 256 * 8  # tokens of answers that are not whole: num_slots by max_new_tokens

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None,
    reason="prometheus is not installed, and scripts/debian.sh could not install it here",
)


def test_every_metric_of_the_list_and_of_the_dashboards_is_in_prometheus(tmp_path: Path) -> None:
    with started(JOB, tmp_path, *SETTINGS, more=FASTER) as job:
        # Ray names a session by the process that began it.
        wait_for(lambda: bool(list(Path("/tmp/ray").glob(f"session_*_{job.pid}/metrics/*/*.yml"))))
        (session,) = Path("/tmp/ray").glob(f"session_*_{job.pid}")
        wait_for(lambda: bool(events(tmp_path / "seen", "step")))
        is_in_rays_dashboard(tmp_path)
        with prometheus(session / "metrics/prometheus/prometheus.yml", tmp_path / "db") as url:
            wanted = (of_the_list() | of_the_dashboards()) - ABSENT
            wait_for(lambda: not missing(url, wanted), lambda: f"not there: {missing(url, wanted)}")
            agrees_with_the_run_log(url, tmp_path / "seen")
        job.terminate()
        assert job.wait(timeout=60) == 130
    assert_nothing_is_left()


def is_in_rays_dashboard(runs: Path) -> None:
    # Once `orchestrator` is imported, which has Ray ask for its token.
    from ray.util.state import list_actors, list_jobs

    found = re.search(
        r"Ray dashboard: (http://127\.0\.0\.1:\d+)", (runs / "launch.log").read_text()
    )
    assert found is not None, "it listens on the loopback interface"
    (job,) = list_jobs(address=found[1], detail=True)
    assert job.metadata == {
        "job_name": "seen",
        "mode": "buffered",
        "model": "base_model",
        "run_dir": str(runs / "seen"),
    }
    roles = {actor.repr_name for actor in list_actors(address=found[1], detail=True)}
    assert roles == {"replay", "weights", "learner-0", "rollout-0 incarnation 0"}


def of_the_list() -> set[str]:
    return {series for metric in METRICS for series in metric.series}


def of_the_dashboards() -> set[str]:
    text = "".join(path.read_text() for path in (ROOT / "deploy/grafana").glob("*.json"))
    return set(re.findall(r"ray_\w+", text))


def agrees_with_the_run_log(url: str, run: Path) -> None:
    """Prometheus has it some seconds later."""
    (version,) = query(url, 'ray_slipstream_version{run="seen"}')
    made = [event["version"] for event in events(run, "step")]
    assert 1 <= version <= max(made)
    (groups,) = query(url, 'ray_slipstream_lag_count{run="seen"}')
    assert 8 <= groups <= 8 * len(made)
    assert groups % 8 == 0
    serving = 'ray_slipstream_roles{run="seen",role="learner",state=~"serving|syncing"}'
    assert sum(query(url, serving)) == 1
    (used,) = query(url, 'sum(ray_vllm_generation_tokens_total{model_name="seen/rollout-0"})')
    whole = sum(event["num_tokens"] for event in events(run, "busy"))
    assert 0 < used <= whole + IN_FLIGHT


def missing(url: str, wanted: set[str]) -> set[str]:
    """Those without a value now. (A name is listed before its first value can be read.)"""
    every = quote('count by (__name__) ({__name__=~"ray_.+"})')
    found = ask(url, f"query?query={every}")["result"]
    return wanted - {series["metric"]["__name__"] for series in found}


def query(url: str, expression: str) -> list[float]:
    found = ask(url, f"query?query={quote(expression)}")["result"]
    return [float(series["value"][1]) for series in found]


def ask(url: str, path: str) -> Any:
    with urllib.request.urlopen(f"{url}/api/v1/{path}", timeout=10) as answer:
        return json.load(answer)["data"]


@contextmanager
def prometheus(configuration: Path, storage: Path) -> Iterator[str]:
    """Its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={configuration}",
            f"--storage.tsdb.path={storage}",
            f"--web.listen-address={address}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: is_ready(address))
        yield f"http://{address}"
    finally:
        server.terminate()
        server.wait(timeout=20)


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=2):
            return True
    except OSError:
        return False
