"""A cluster as the README has it made, and everything that is done to it from outside.

Its commands run as they stand, but for ports and Ray's temporary directory, because another
cluster may be on this machine, and for the engine, to save time.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import ROOT, assert_nothing_is_left, environment, events, wait_for

MULTINODE = "examples/arithmetic/multinode.yaml"
SCRIPTED = (
    *("learner.num_steps=100000", "learner.warmup_steps=0", "data.eval=null"),
    *("learner.groups_per_batch=8", "checkpoint.every_steps=20"),
    *("rollout.engine=scripted", "weights.probe=false"),
)


def readme_commands() -> list[str]:
    """Every line of the section's code blocks, in order."""
    section = re.search(
        r"^## On a cluster\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S
    )
    assert section is not None
    blocks = re.findall(r"^```\n(.*?)^```", section[1], re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    address: str
    home: Path
    env: Mapping[str, str]

    def slipstream(
        self, *arguments: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            cwd=ROOT,
            env={**self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=200,
        )

    def asked(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.slipstream(*arguments, "--address", self.address)

    def status(self, run: str) -> dict[str, Any]:
        """Empty before the job has begun."""
        done = self.asked("status", run, "--json")
        found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        return found

    def jobs(self) -> dict[str, Any]:
        """What Ray's dashboard lists, by submission id."""
        script = (
            "import json; from ray.job_submission import JobSubmissionClient as C;"
            f"jobs = C({self.address!r}).list_jobs();"
            "print(json.dumps({job.submission_id: job.dict() for job in jobs}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], env=self.env, capture_output=True, text=True, check=True
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The two nodes of the section, with a home directory and a token of their own."""
    home = tmp_path_factory.mktemp("home")
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    env = {**environment(), "HOME": str(home), "XDG_CACHE_HOME": cache, "COLUMNS": "120"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"  # as activated
    env["RAY_USAGE_STATS_ENABLED"] = "0"
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        env.pop(name, None)
    port, dashboard, client = free_ports(3)
    temp_dir = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # its sockets' paths must be short
    with ExitStack() as nodes:
        nodes.callback(shutil.rmtree, temp_dir, ignore_errors=True)
        for command in readme_commands():
            words = shlex.split(command.replace("127.0.0.1:6379", f"127.0.0.1:{port}"))
            if words[:2] == ["ray", "start"]:
                if "--head" in words:
                    words += [f"--port={port}", f"--dashboard-port={dashboard}"]
                    words += [f"--ray-client-server-port={client}", f"--temp-dir={temp_dir}"]
                nodes.enter_context(node(words, env, home))
            elif words[0] == "ray":
                subprocess.run(words, env=env, check=True, capture_output=True)
        yield Cluster(address=f"http://127.0.0.1:{dashboard}", home=home, env=env)
    assert_nothing_is_left()


@contextmanager
def node(words: list[str], env: Mapping[str, str], home: Path) -> Iterator[None]:
    log = home / f"{'head' if '--head' in words else 'node'}.log"
    with log.open("w") as file:
        process = subprocess.Popen(words, env=env, cwd=home, stdout=file, stderr=file)
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def free_ports(num_ports: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num_ports)]
        for taken in sockets:
            taken.bind(("127.0.0.1", 0))
        return [taken.getsockname()[1] for taken in sockets]


def test_the_readme_from_its_first_command_to_its_last(cluster: Cluster) -> None:
    """`make install` and `source` are how this test's own environment was made."""
    commands = readme_commands()
    assert commands[:2] == ["make install", "source .venv/bin/activate"]
    run = cluster.home / "runs" / "arithmetic-multinode"
    env = dict(cluster.env)
    said: dict[str, str] = {}
    for command in commands:
        words = shlex.split(command.replace("http://127.0.0.1:8265", cluster.address))
        if words[0] == "export":
            env.update([words[1].split("=", 1)])
        if words[0] != "slipstream":
            continue
        if words[1] == "ledger":
            wait_for(lambda: cluster.status(run.name)["state"] == "ended")
        more = SCRIPTED if words[1] == "launch" else ()
        done = cluster.slipstream(*words[1:], *more, env=env)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        said[words[1]] = done.stdout
        if words[1] == "launch":
            wait_for(lambda: cluster.status(run.name).get("version", 0) > 0)
    submission_id = said["launch"].split()[2].rstrip(";")
    assert f"slipstream status {run.name} --address {cluster.address}" in said["launch"]
    assert "│ state    │ running" in said["status"]
    assert " driver | all roles ready after" in said["logs"]
    assert re.search(
        r"arithmetic-multinode +│ (paused|running) +│ \d+ of 100000 +│ multi", said["runs"]
    )
    job = cluster.jobs()[submission_id]
    assert (job["status"], job["driver_exit_code"]) == ("SUCCEEDED", 0)
    assert job["metadata"] == {
        "job_name": run.name,
        "mode": "multinode",
        "model": "base_model",
        "run_dir": f"runs/{run.name}",
    }
    assert events(run, "commit")[-1]["version"] == events(run, "step")[-1]["version"]


def test_an_answer_is_clean_and_exit_codes_are_those_of_the_head(cluster: Cluster) -> None:
    done = cluster.asked("status", "none", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "slipstream: there is no run none: neither a directory here nor a name in ./runs\n"
    )
    (cluster.home / "elsewhere").mkdir(exist_ok=True)
    done = cluster.asked("runs", "elsewhere", "--json")
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, [], "")


def test_no_token_a_wrong_one_and_nobody_there(cluster: Cluster, tmp_path: Path) -> None:
    launch = ("launch", MULTINODE, "--detach")
    for command in (("status", "x"), launch):
        asked = (*command, "--address", cluster.address)
        wrong = cluster.slipstream(*asked, env={"RAY_AUTH_TOKEN": "0" * 64})
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert "refuses this token (403)" in wrong.stderr
        none = cluster.slipstream(*asked, env={"HOME": str(tmp_path)})
        assert (none.returncode, none.stdout) == (2, "")
        assert "there is no token here" in none.stderr
        # Whatever the user's environment says of authentication:
        off = cluster.slipstream(*asked, env={"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"})
        assert (off.returncode, off.stderr) == (2, none.stderr)
        public = cluster.slipstream(
            *command, "--address", "http://203.0.113.1:8265", env={"HOME": str(tmp_path)}
        )
        assert public.returncode == 2
        assert "there is no token here" in public.stderr
    nobody = cluster.slipstream("status", "x", "--address", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert nobody.returncode == 2
    assert "no Ray cluster answers" in nobody.stderr
    for done in (wrong, none, nobody):
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_the_jobs_api_itself_answers_401_and_403(cluster: Cluster) -> None:
    import requests

    url = f"{cluster.address}/api/jobs/"
    assert requests.get(url, timeout=30).status_code == 401
    headers = {"Authorization": f"Bearer {'0' * 64}"}
    assert requests.get(url, headers=headers, timeout=30).status_code == 403


def test_what_is_wrong_on_the_head_ends_a_followed_launch_with_its_exit_code(
    cluster: Cluster,
) -> None:
    done = cluster.asked("launch", MULTINODE, "model.path=/none/there", "name=wrong")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "there is no directory /none/there" in done.stdout
    assert "Running entrypoint" not in done.stdout


def test_ctrl_c_of_a_followed_launch_has_the_job_commit_and_end(cluster: Cluster) -> None:
    run = cluster.home / "runs" / "followed"
    log = cluster.home / "followed.log"
    program = [sys.executable, "-m", "orchestrator.cli", "launch", MULTINODE, *SCRIPTED]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*program, "name=followed", "--address", cluster.address],
            cwd=ROOT,
            env=cluster.env,
            stdout=file,
            stderr=file,
        )
    try:
        wait_for(lambda: bool(events(run, "step")) or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=100) == 130, log.read_text()
    finally:
        process.kill()
    said = log.read_text()
    assert "all roles ready after" in said
    assert "stopping: the job commits, then ends" in said
    assert "Traceback" not in said
    assert cluster.status("followed")["state"] == "ended"
    assert events(run, "commit")[-1]["version"] == events(run, "step")[-1]["version"]
    (job,) = (job for name, job in cluster.jobs().items() if name and name.startswith("followed-"))
    assert job["status"] == "STOPPED"
    # What was said is still there, and each role is called by its name.
    roles = {line["role"] for line in map(json.loads, told(cluster, "followed"))}
    assert {"driver", "learner-0"} <= roles <= {"driver", "learner-0", "rollout-0", "replay"}


def told(cluster: Cluster, run: str) -> list[str]:
    start_s = time.monotonic()
    done = cluster.asked("logs", run, "--follow", "--lines", "100000", "--json")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start_s < 60, "the run is over"
    return done.stdout.splitlines()
