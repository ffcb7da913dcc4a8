"""What the driver and the roles say, and `slipstream logs`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator import cli, run_log
from orchestrator.run_lease import held
from orchestrator.run_log import Line, NoLog, RunLog, follow, last_lines, parse


def written(run_dir: Path) -> RunLog:
    run_dir.mkdir(exist_ok=True)
    log = RunLog(run_dir)
    log.driver("all roles ready\nstep 1")
    log.write("rollout-0", ["a | b", " 10%\r 50%\r100%", "", "half\r"])
    log.write("rollout-10", ["other"])
    log.write("learner-0", ["loss"])
    return log


def texts(lines: list[Line]) -> list[tuple[str, str]]:
    return [(line.role, line.text) for line in lines]


def test_lines_come_back_as_a_terminal_would_show_them(tmp_path: Path) -> None:
    written(tmp_path)
    assert texts(last_lines(tmp_path, None, 100)) == [
        *(("driver", "all roles ready"), ("driver", "step 1")),
        *(("rollout-0", "a | b"), ("rollout-0", "100%"), ("rollout-0", ""), ("rollout-0", "half")),
        *(("rollout-10", "other"), ("learner-0", "loss")),
    ]


def test_secrets_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "correct-horse-battery")
    RunLog(tmp_path).write("rollout-0", ["401 for correct-horse-battery", "and on"])
    assert [line.text for line in last_lines(tmp_path, None, 9)] == ["401 for <redacted>", "and on"]


@pytest.mark.parametrize(
    ("role", "num_lines", "found"),
    [
        ("rollout-1", 100, []),
        ("rollout", 3, ["", "half", "other"]),
        ("rollout-0", 1, ["half"]),
        ("driver", 0, []),
        (None, 2, ["other", "loss"]),
    ],
)
def test_a_role_or_a_kind_and_the_newest_lines(
    tmp_path: Path, role: str | None, num_lines: int, found: list[str]
) -> None:
    written(tmp_path)
    assert [line.text for line in last_lines(tmp_path, role, num_lines)] == found


def test_a_line_of_nobody_stays(tmp_path: Path) -> None:
    assert parse("torn in two") == Line(time="", role="", text="torn in two")
    assert parse("a b c | d").role == ""


def test_following_ends_with_the_run_and_misses_nothing(tmp_path: Path) -> None:
    log = written(tmp_path)
    looks = 0

    def is_over() -> bool:
        """Something is said before each look, and half a line after the second."""
        nonlocal looks
        looks += 1
        log.driver(f"look {looks}")
        if looks == 2:
            with (tmp_path / "log.txt").open("a") as file:
                file.write("2026-01-01 driver | ha")
        if looks == 3:
            with (tmp_path / "log.txt").open("a") as file:
                file.write("lf\n")
        return looks == 4

    found = [line.text for line in follow(tmp_path, "driver", 1, is_over)]
    assert found[:3] == ["step 1", "look 1", "look 2"]
    assert found[-1] == "look 4"


def test_a_log_that_is_full_begins_anew_and_is_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "MAX_BYTES", 200)
    monkeypatch.setattr(run_log, "BLOCK_BYTES", 7)
    log, num_said = RunLog(tmp_path), 0

    def say_more() -> bool:
        """One file is full after five lines."""
        nonlocal num_said
        for _ in range(4 if num_said < 24 else 0):
            log.driver(f"line {num_said}")
            num_said += 1
        return num_said >= 24

    say_more()
    found = [line.text for line in follow(tmp_path, "driver", 2, say_more)]
    assert found == [f"line {number}" for number in range(2, 24)]
    sizes = [(tmp_path / name).stat().st_size for name in ("log.txt", "log.txt.1")]
    assert all(0 < size < 300 for size in sizes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "log.txt.1"]
    last = [line.text for line in last_lines(tmp_path, None, 7)]
    assert last == [f"line {number}" for number in range(17, 24)]


def test_the_command(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with held(run):
        written(run)
    done = CliRunner().invoke(cli.app, ["logs", str(run), "--role", "learner-0", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["text"] == "loss"
    done = CliRunner().invoke(cli.app, ["logs", str(run), "--follow", "--lines", "1"])
    assert done.stdout.endswith(" learner-0 | loss\n")
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(cli.app, ["logs", str(tmp_path / "empty")])
    assert done.exit_code == 2
    assert "no job has begun there" in done.stderr
    with pytest.raises(NoLog, match="does not exist"):
        last_lines(tmp_path, None, 1)
