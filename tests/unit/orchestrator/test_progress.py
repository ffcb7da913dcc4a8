"""What a launch says in the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator.progress import Progress, closing_table
from orchestrator.run_state import RunState

QUOTED = "RuntimeError: [/pytorch/c10/Error.cpp:52] expected [bold] :smile:"


def test_what_looks_like_markup_is_said_as_it_is() -> None:
    out = io.StringIO()
    Progress(Console(file=out)).note(QUOTED)
    assert out.getvalue() == f"{QUOTED}\n"


def test_secrets_are_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "correct-horse-battery")
    out, heard = io.StringIO(), list[str]()
    progress = Progress(Console(file=out))
    progress.log = heard.append
    progress.note("401 for correct-horse-battery")
    assert heard == ["401 for <redacted>"]
    assert out.getvalue() == "401 for <redacted>\n"


class Full(io.StringIO):
    def flush(self) -> None:
        raise OSError(28, "No space left on device")


class Closed(io.StringIO):
    def flush(self) -> None:
        raise BrokenPipeError


@pytest.mark.parametrize(("out", "is_terminal"), [(Full, True), (Full, False), (Closed, False)])
def test_what_nobody_can_hear_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, out: type[io.StringIO], is_terminal: bool
) -> None:
    monkeypatch.setattr("os.dup2", lambda *_: None)  # rich would close this test's stdout
    state = RunState(num_steps=2)
    progress = Progress(Console(file=out(), force_terminal=is_terminal))
    with progress:
        progress.note(QUOTED)
        progress.show(state)
    progress.close(closing_table(state, wall_s=1.0, model_dir="m", metrics_file="f"))


def test_the_last_version_is_told_at_once_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100, 200))
    monkeypatch.setattr("orchestrator.progress.time.time", lambda: next(clock))
    heard = list[str]()
    progress = Progress(Console(file=io.StringIO()))
    progress.log = heard.append
    state = RunState(num_steps=1, training_started_at_s=90.0, num_trained_tokens=100)
    for state.version in (0, 1, 1, 1):
        progress.show(state)
    assert [line.split("  ")[0] for line in heard] == ["step 0/1", "step 1/1"]
