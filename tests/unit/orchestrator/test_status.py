"""`slipstream status`, `scale`, `pause` and `resume` as a user meets them."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator import cli
from orchestrator.commands import running
from orchestrator.control import Control, Pause, Request, Resume, Scale
from orchestrator.run_lease import held
from orchestrator.status import RoleStatus, Status, write_status

LAUNCHED_S = 1_800_000_000.0


def slipstream(*arguments: object) -> Result:
    result = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def status(**changes: Any) -> Status:
    """Of a job an hour after its launch."""
    at_s = LAUNCHED_S + 3600
    roles = (
        RoleStatus(
            name="learner-0",
            state="running",
            version=12,
            incarnation=1,
            num_restarts=1,
            node="gpu-a",
            since_s=at_s - 65,
            detail="train for 0.3 s",
        ),
        RoleStatus(
            name="rollout-0",
            state="starting",
            version=None,
            incarnation=3,
            num_restarts=2,
            node="a-node-with-a-long-name.of.some.cluster.example",
            since_s=at_s - 5,
            detail="a detail " * 20,
        ),
    )
    replay = {"num_buffered": 3, "num_running": 1200, "held_back": "staleness budget"}
    fields: dict[str, Any] = {
        "job": "trial",
        "state": "running",
        "version": 12,
        "num_steps": 100,
        "timeline": 1,
        "launched_at_s": LAUNCHED_S,
        "at_s": at_s,
        "roles": roles,
        "replay": replay,
    }
    return Status(**{**fields, **changes})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "trial"
    path.mkdir(parents=True)
    return path


def rows(text: str) -> dict[str, list[str]]:
    """The cells of every line of a table, by the first."""
    lines = [re.split(" *[│┃] *", line)[1:-1] for line in text.splitlines() if "│" in line]
    return {name: cells for name, *cells in lines}


def test_a_job_at_work(run: Path) -> None:
    written = status(at_s=time.time(), launched_at_s=time.time() - 3600, message="all is well")
    with held(run) as lease:
        write_status(run, status(at_s=time.time() + 1).as_json())
        write_status(run, {**written.as_json(), "at_s": time.time() + 1})
        result = slipstream("status", run)
        assert result.exit_code == 0, result.output
        told = rows(result.stdout)
        assert told["state"] == ["running"]
        assert told["version"] == ["12 of 100, timeline 1"]
        assert told["launched"] == ["1 h 00 min ago"]
        assert told["written"] == ["0 s ago"]
        assert told["driver"] == [str(lease.mine)]
        assert told["message"] == ["all is well"]
        assert told["replay"] == [
            "3 buffered, 1,200 running; workers are held back by staleness budget"
        ]
        assert "gone" not in result.stdout
    assert sorted(path.name for path in run.iterdir()) == ["status.json"]


def test_a_line_of_a_role_stays_one_line(run: Path) -> None:
    write_status(run, status(state="ended").as_json())
    told = rows(slipstream("status", run).stdout)
    assert told["learner-0"] == [
        "running",
        "1 min 05 s",
        "12",
        "1",
        "1",
        "gpu-a",
        "train for 0.3 s",
    ]
    node = "a-node-with-a-long-name.of.some.cluster.example"
    assert told["rollout-0"] == ["starting", "5 s", "-", "3", "2", node, ("a detail " * 20).strip()]


def test_json_has_all(run: Path) -> None:
    write_status(run, status().as_json())
    with held(run) as lease:
        write_status(run, status(at_s=time.time() + 1).as_json())
        told = json.loads(slipstream("status", run, "--json").stdout)
    assert told["state"] == "running"
    assert told["driver"]["id"] == lease.mine.id
    assert 0 <= told["age_s"] < 10
    assert told["roles"][1]["node"] == "a-node-with-a-long-name.of.some.cluster.example"
    assert told["roles"][1]["version"] is None
    assert told["replay"]["num_running"] == 1200


def test_a_driver_that_died_is_said(run: Path) -> None:
    write_status(run, status().as_json())
    os.utime(run / "status.json", (time.time() - 90,) * 2)
    result = slipstream("status", run)
    assert result.exit_code == 0
    told = rows(result.stdout)
    assert told["state"] == ["gone"]
    assert told["driver"] == ["none"]
    assert told["launched"] == ["1 h 00 min ago"]
    warning = "The driver is gone without a word: it was running 1 min 30 s ago."
    assert warning in result.stdout
    assert json.loads(slipstream("status", run, "--json").stdout)["state"] == "gone"


@pytest.mark.parametrize("state", ["ended", "failed"])
def test_a_job_that_ended_is_not_gone(run: Path, state: str) -> None:
    write_status(run, status(state=state, message="why").as_json())
    result = slipstream("status", run)
    assert rows(result.stdout)["state"] == [state]
    assert rows(result.stdout)["message"] == ["why"]
    assert "gone" not in result.stdout


def test_a_status_of_the_launch_before_is_not_taken_for_this(run: Path) -> None:
    write_status(run, status(state="ended", at_s=time.time() - 60).as_json())
    with held(run):
        assert rows(slipstream("status", run).stdout)["state"] == ["starting"]


def test_a_driver_that_hangs_is_said(run: Path) -> None:
    with held(run):
        write_status(run, status(at_s=time.time() + 1).as_json())
        os.utime(run / "status.json", (time.time() - 45,) * 2)
        text = slipstream("status", run).stdout
    assert re.search("The driver lives, and has written nothing for 4[56] s", text)


def test_bad_input_is_one_line_and_exits_with_2(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(part: str, *arguments: object) -> None:
        result = slipstream(*arguments)
        assert result.exit_code == 2
        assert part in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not result.stdout

    monkeypatch.chdir(run.parents[1])
    for command in (["status"], ["pause"], ["resume"], ["scale", "rollout=2"]):
        name, *rest = command
        fails("there is no run nowhere", name, "nowhere", *rest)
    fails("no job has begun there", "status", "trial")
    (run / "status.json").write_text("{")
    fails("cannot be read", "status", "trial")
    fails("has no driver at work", "pause", "trial")
    fails("has no driver at work", "scale", "trial", "rollout=2")
    fails("expected rollout=N", "scale", "trial", "workers=2")
    fails("expected rollout=N", "scale", "trial", "rollout")


def answer_one(run: Path, driver_id: str, ok: bool, heard: list[Request]) -> None:
    driver = Control(run, driver_id)
    deadline_s = time.monotonic() + 30
    while not (asked := driver.poll()) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    heard.append(asked[0].request)
    driver.answer(asked[0], ok=ok, message="so it is" if ok else "there is no room")


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (["scale", "trial", "rollout=6", "learner=4"], Scale(rollout=6, learner=4)),
        (["scale", "trial", "learner=1"], Scale(learner=1)),
        (["pause", "trial"], Pause()),
        (["resume", "trial"], Resume()),
    ],
)
@pytest.mark.parametrize("ok", [True, False])
def test_a_running_job_is_asked(
    run: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], request_: Request, ok: bool
) -> None:
    monkeypatch.chdir(run.parents[1])
    heard: list[Request] = []
    with held(run) as lease:
        driver = threading.Thread(target=answer_one, args=(run, lease.mine.id, ok, heard))
        driver.start()
        result = slipstream(*arguments)
        driver.join()
    assert heard == [request_]
    said = (result.exit_code, result.stdout, result.stderr)
    assert said == ((0, "so it is\n", "") if ok else (1, "", "slipstream: there is no room\n"))


def test_no_answer_exits_with_1(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "ANSWER_TIMEOUT_S", 0.05)
    with held(run):
        result = slipstream("pause", run)
    assert result.exit_code == 1
    assert "no answer within 0.05 s" in result.stderr


def test_a_status_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    write_status(tmp_path / "nowhere", status().as_json())


def test_a_status_names_no_secret(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "correct-horse-battery")
    write_status(run, status(message="401 for correct-horse-battery").as_json())
    assert "horse" not in (run / "status.json").read_text()
    told = slipstream("status", run, "--json").stdout
    assert json.loads(told)["message"] == "401 for <redacted>"


def test_a_message_that_looks_like_markup_is_told(run: Path) -> None:
    message = "[/pytorch/c10/Error.cpp:52] said :smile:"
    write_status(run, status(state="failed", message=message).as_json())
    assert rows(slipstream("status", run).stdout)["message"] == [message]
