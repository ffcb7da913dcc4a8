"""What is left of a launch of which the roles cannot be opened."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from orchestrator.fleet import Fleet
from orchestrator.launch import _opened, _recorded
from orchestrator.plan import Plan
from orchestrator.progress import Progress
from orchestrator.run_dir import RunDir
from orchestrator.run_lease import held
from orchestrator.run_state import RunState
from orchestrator.status import read_status
from slipstream.errors import SlipstreamError
from tests.helpers.jobs import make_job


def test_a_launch_that_fails_before_its_roles_are_there_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object, **__: object) -> Any:
        raise SlipstreamError("train.jsonl: line 3 is cut")

    monkeypatch.setattr(Fleet, "start", start)
    job = make_job(checkpoint={"dir": str(tmp_path)})
    progress, plan = Progress(Console(file=io.StringIO())), cast("Plan", None)
    run_dir = RunDir.open(job, overwrite=False)

    def open_roles() -> None:
        with (
            held(job.run_dir) as lease,
            _recorded(job, run_dir, lease, progress),
            _opened(job, plan, run_dir, RunState(num_steps=5), progress, resume=False),
        ):
            raise AssertionError("there are no roles")

    with pytest.raises(SlipstreamError, match="is cut"):
        open_roles()
    status = read_status(job.run_dir).status
    assert (status.state, status.message) == ("failed", "train.jsonl: line 3 is cut")
    assert "line 3 is cut" in (job.run_dir / "log.txt").read_text()
    assert run_dir._metrics.closed
    assert not any(feed._thread.is_alive() for feed in run_dir._feeds)
