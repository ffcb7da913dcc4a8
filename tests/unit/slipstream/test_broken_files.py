"""Broken job files, and to the letter what `slipstream validate` says of each.

The files lie in tests/broken_jobs, each with what it is told beside it. After a change of words

    SLIPSTREAM_WRITE_MESSAGES=1 pytest tests/unit/slipstream/test_broken_files.py

writes the messages anew. Then read `git diff tests/broken_jobs` as the one who wrote those files
would: does each message say what is wrong, where, and what to do?
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app

ROOT = Path(__file__).parents[3]
DIRECTORY = ROOT / "tests" / "broken_jobs"
FILES = sorted(DIRECTORY.glob("*.yaml"))
WRITE = "SLIPSTREAM_WRITE_MESSAGES"


def test_there_are_forty_of_them() -> None:
    assert len(FILES) >= 40
    assert {path.stem for path in DIRECTORY.glob("*.txt")} == {path.stem for path in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_broken_file_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DIRECTORY)
    result = CliRunner().invoke(app, ["validate", file.name])
    said = result.stderr.replace(str(ROOT), "<root>")
    expected = file.with_suffix(".txt")
    if os.environ.get(WRITE):
        expected.write_text(said, encoding="utf-8")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in said
    assert "pydantic" not in said
    for line in said.splitlines():
        assert re.match(rf"{re.escape(file.name)}:\d+:\d+: .", line), line
    assert said == expected.read_text(encoding="utf-8")
