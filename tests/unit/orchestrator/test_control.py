from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import control
from orchestrator.control import (
    Answer,
    Asked,
    BadRequest,
    Control,
    NoDriver,
    Pause,
    Request,
    Resume,
    Scale,
    Stop,
    ask,
    scale_of,
)
from orchestrator.run_lease import RunLease, held


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[RunLease]:
    with held(tmp_path) as lease:
        yield lease


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(control, "LOOK_FOR_DRIVER_EVERY_S", 0.1)


class Client:
    """Asks beside the test."""

    def __init__(self, run: Path, request: Request, timeout_s: float = 30) -> None:
        self.answer: Answer | None = None
        self._thread = threading.Thread(target=self._ask, args=(run, request, timeout_s))
        self._thread.start()

    def _ask(self, run: Path, request: Request, timeout_s: float) -> None:
        self.answer = ask(run, request, timeout_s)

    def heard(self) -> Answer | None:
        self._thread.join(timeout=30)
        return self.answer


def polled(driver: Control) -> Asked:
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        if asked := driver.poll():
            assert len(asked) == 1
            return asked[0]
        time.sleep(0.01)
    raise AssertionError("nothing was asked")


def put(run: Path, name: str, content: str | bytes) -> None:
    """A file that nobody waits for."""
    (run / "control").mkdir(exist_ok=True)
    (run / "control" / name).write_bytes(content.encode() if isinstance(content, str) else content)


def answers(run: Path) -> dict[str, dict[str, object]]:
    """What lies there in the end, by name; None where it is no answer."""
    return {path.name: json.loads(path.read_bytes()) for path in (run / "control").iterdir()}


@pytest.mark.parametrize(
    "request_",
    [Scale(rollout=6), Scale(rollout=1, learner=2), Pause(), Resume(), Stop(reason="enough")],
)
def test_what_is_asked_is_answered(tmp_path: Path, lease: RunLease, request_: Request) -> None:
    driver = Control(tmp_path, lease.mine.id)
    assert driver.poll() == []
    client = Client(tmp_path, request_)
    asked = polled(driver)
    assert asked.request == request_
    assert driver.poll() == [], "each is told once"
    driver.answer(asked, ok=True, message="it will be so")
    assert client.heard() == Answer(ok=True, message="it will be so")
    assert list((tmp_path / "control").iterdir()) == []


def test_requests_come_in_their_order(tmp_path: Path) -> None:
    for name, kind in (("12", "resume"), ("11", "pause")):
        put(tmp_path, f"{name}-a.json", f'{{"driver": "me", "request": {{"kind": "{kind}"}}}}')
    driver = Control(tmp_path, "me")
    first, second = driver.poll()
    assert (first.request, second.request) == (Pause(), Resume())
    driver.answer(second, ok=False, message="no")
    assert answers(tmp_path)["12-a.answer.json"] == {"ok": False, "message": "no"}
    assert (tmp_path / "control" / "11-a.json").exists()


def test_what_was_asked_of_an_earlier_driver_is_refused(tmp_path: Path, lease: RunLease) -> None:
    client = Client(tmp_path, Pause())
    while not list(tmp_path.glob("control/*.json")):
        time.sleep(0.01)
    assert Control(tmp_path, "a later one").poll() == []
    assert client.heard() == Answer(ok=False, message="the job had ended")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "Invalid JSON"),
        ("{", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        ("[" * 100_000, "Invalid JSON"),
        ("3", "should be an object"),
        ('{"driver": "me"}', "request: Field required"),
        ('{"driver": "me", "request": {"kind": "dance"}}', "'dance'"),
        ('{"driver": "me", "request": {"kind": "scale"}}', "neither rollout nor learner"),
        ('{"driver": "me", "request": {"kind": "scale", "rollout": 0}}', "rollout: "),
        ('{"driver": "me", "request": {"kind": "pause", "for_s": 3}}', "for_s: "),
        ('{"driver": "me", "request": {"kind": "stop"}}', "reason: Field required"),
    ],
)
def test_what_is_no_request_is_refused(tmp_path: Path, content: str | bytes, part: str) -> None:
    driver = Control(tmp_path, "me")
    put(tmp_path, "1-a.json", content)
    assert driver.poll() == []
    (name, answer), *more = answers(tmp_path).items()
    assert (name, answer["ok"], more) == ("1-a.answer.json", False, [])
    assert str(answer["message"]).startswith("this is no request: ")
    assert part in str(answer["message"])
    assert "\n" not in str(answer["message"])


def test_what_lies_there_otherwise_is_left(tmp_path: Path) -> None:
    (tmp_path / "control" / "1-a.json").mkdir(parents=True)
    put(tmp_path, "notes.txt", "")
    put(tmp_path, "2-a.json.0.tmp", "")
    put(tmp_path, "3-a.answer.json", "")
    driver = Control(tmp_path, "me")
    assert driver.poll() == []
    assert driver.poll() == []
    assert (tmp_path / "control" / "notes.txt").exists()


def test_no_answer_in_time_is_said_and_withdrawn(tmp_path: Path, lease: RunLease) -> None:
    answer = ask(tmp_path, Pause(), timeout_s=0.05)
    assert not answer.ok
    assert answer.message.startswith("no answer within 0.05 s")
    assert Control(tmp_path, lease.mine.id).poll() == []


def test_a_late_answer_leaves_nothing_behind(tmp_path: Path, lease: RunLease) -> None:
    driver = Control(tmp_path, lease.mine.id)
    client = Client(tmp_path, Pause(), timeout_s=0.5)
    asked = polled(driver)
    assert client.heard() is not None
    driver.answer(asked, ok=True, message="done")
    assert list((tmp_path / "control").iterdir()) == []


def test_a_job_that_ends_meanwhile_is_said(tmp_path: Path) -> None:
    with held(tmp_path) as lease:
        client = Client(tmp_path, Pause())
        polled(Control(tmp_path, lease.mine.id))
    assert client.heard() == Answer(ok=False, message="the job ended before it answered")


def test_a_run_without_a_driver_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoDriver, match="has no driver at work"):
        ask(tmp_path, Pause(), timeout_s=1)
    assert list(tmp_path.iterdir()) == []


def test_counts_are_read() -> None:
    assert scale_of(["rollout=6"]) == Scale(rollout=6)
    assert scale_of(["learner=4", "rollout=6"]) == Scale(rollout=6, learner=4)


@pytest.mark.parametrize(
    ("counts", "part"),
    [
        (["rollout"], "rollout: "),
        (["rollout=many"], "integer"),
        (["rollout=0"], "greater"),
        (["rollout=1.5"], "integer"),
        (["replay=2"], "replay: "),
        (["rollout=2", "rollout=3"], "twice"),
        ([], "neither"),
    ],
)
def test_counts_that_make_no_sense(counts: list[str], part: str) -> None:
    with pytest.raises(BadRequest, match=part):
        scale_of(counts)
