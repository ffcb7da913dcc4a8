"""What the commands that measure have in common: where results go and how they are signed."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def result_of(run: str) -> dict[str, Any]:
    """The figures of a finished run, without the path of its model."""
    result: dict[str, Any] = json.loads((ROOT / "runs" / run / "result.json").read_text())
    del result["checkpoint"]
    return result


def signature(command: str) -> str:
    """Which command made the figures, when, and on what machine."""
    machine = f"{os.cpu_count()} cores ({platform.machine()}), no GPU"
    return f"`{command}`, {datetime.now(tz=UTC):%Y-%m-%d}, {machine}."


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def write(name: str, text: str, figures: Any) -> None:
    """docs/results/NAME.md and NAME.json; also to the terminal."""
    target = ROOT / "docs" / "results" / f"{name}.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    target.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    print(text)
