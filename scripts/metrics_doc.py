"""Writes the table of docs/metrics.md from the list in the code."""

from __future__ import annotations

from pathlib import Path

from orchestrator.metrics.catalog import METRICS, PREFIX

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
HEAD = "| metric | unit | tags | what |\n|---|---|---|---|\n"


def page(text: str) -> str:
    """The page `text` with the table as it is now."""
    before, _, rest = text.partition(HEAD)
    after = rest.partition("\n\n")[2]
    rows = "\n".join(
        f"| `{PREFIX}{m.name}`{' (histogram)' if m.kind == 'histogram' else ''} "
        f"| {m.unit} | {', '.join(m.tags)} | {m.help} |"
        for m in METRICS
    )
    return f"{before}{HEAD}{rows}\n\n{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
