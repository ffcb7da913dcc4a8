"""`make scaling`: workers and ranks added and taken away while a job trains; writes
docs/results/scaling.md and .png.

The arithmetic example in `buffered` mode with vLLM and DeepSpeed, on more logical CPUs than the
machine has: it shows that nothing stops and nothing is lost, not that more workers are quicker.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from chaos.run import Run
from results import ROOT, signature, table, write

FILE = ROOT / "examples" / "arithmetic" / "buffered.yaml"
SETTINGS = (
    *("learner.num_steps=100000", "learner.warmup_steps=0", "data.eval=null"),
    *("checkpoint.every_steps=50", "replay.max_staleness=3", "learner.zero_stage=1"),
)
CHANGES = ("rollout=3", "rollout=1", "learner=2", "learner=1")
BETWEEN_S, SERVING_S, BIN_S = 30.0, 240.0, 2.0


def main() -> None:
    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": 8})
    run = Run(FILE, ROOT / "runs" / "scaling", SETTINGS)
    run.launch()
    assert run.wait_for_steps(5)
    time.sleep(BETWEEN_S)
    changes = [changed(run, counts) for counts in CHANGES]
    slipstream("stop", str(run.directory))
    run.finish()
    events = run.events()
    steps = [event for event in events if event["kind"] == "step"]
    versions = [step["version"] for step in steps]
    assert versions == list(range(1, len(versions) + 1)), "a step was lost, or made twice"
    figures = {
        "changes": changes,
        "steps": len(steps),
        "longest_pause_s": {
            change["counts"]: longest_pause(steps, change["asked_s"], change["serving_s"])
            for change in changes
        },
        "went_back": sum(event["kind"] == "went_back" for event in events),
        "ledger": run.ledger(),
        "left_behind": run.left_behind(),
    }
    plot(events, changes, ROOT / "docs" / "results" / "scaling.png")
    write("scaling", page(figures), figures)


def changed(run: Run, counts: str) -> dict[str, Any]:
    """Ask for it, and wait until all of them serve, and a while longer."""
    asked_s = time.time()
    slipstream("scale", str(run.directory), counts)
    kind, _, count = counts.partition("=")
    deadline_s = time.monotonic() + SERVING_S
    while not serve(run, kind, int(count)):
        assert time.monotonic() < deadline_s, f"{counts}: not serving"
        time.sleep(0.2)
    serving_s = time.time()
    time.sleep(BETWEEN_S)
    return {"counts": counts, "asked_s": asked_s, "serving_s": serving_s}


def serve(run: Run, kind: str, count: int) -> bool:
    status = json.loads((run.directory / "status.json").read_text())
    roles = [role for role in status["roles"] if role["name"].startswith(kind)]
    return len(roles) == count and all(role["state"] in ("serving", "syncing") for role in roles)


def slipstream(*arguments: str) -> None:
    command = [sys.executable, "-m", "orchestrator.cli", *arguments]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)


def longest_pause(steps: list[dict[str, Any]], from_s: float, until_s: float) -> float:
    """Between two steps, from one before the change to the first one after it."""
    times = [step["time_s"] for step in steps]
    before = max(s for s in times if s <= from_s)
    after = min((s for s in times if s >= until_s), default=until_s)
    inside = [before, *(s for s in times if from_s < s < until_s), after]
    return max(b - a for a, b in itertools.pairwise(inside))


def plot(events: list[dict[str, Any]], changes: list[dict[str, Any]], target: Path) -> None:
    start_s = min(event["time_s"] for event in events)
    trained, generated = Counter[int](), Counter[int]()
    for event in events:
        place = int((event["time_s"] - start_s) / BIN_S)
        if event["kind"] == "step":
            trained[place] += event["num_answer_tokens"]
        elif event["kind"] == "busy":
            generated[place] += event["num_tokens"]
    places = range(max(trained) + 1)
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    for name, counts in (("generated", generated), ("trained", trained)):
        seconds = [place * BIN_S for place in places]
        axes.plot(seconds, [counts[place] / BIN_S for place in places], label=name)
    top = axes.get_ylim()[1]
    for change in changes:
        asked_s, serving_s = (change[key] - start_s for key in ("asked_s", "serving_s"))
        axes.axvspan(asked_s, serving_s, color="0.9")
        axes.text(asked_s, top, change["counts"], fontsize=8, va="top")
    axes.set(xlabel="seconds", ylabel="tokens/s", ylim=(0, top))
    axes.legend(loc="lower right")
    figure.savefig(target, dpi=120)


def page(figures: dict[str, Any]) -> str:
    rows = [
        [
            f"`slipstream scale {change['counts']}`",
            f"{change['serving_s'] - change['asked_s']:.1f}",
            f"{figures['longest_pause_s'][change['counts']]:.1f}",
        ]
        for change in figures["changes"]
    ]
    return "\n".join(
        [
            "# Scaled while it trains",
            "",
            signature("make scaling"),
            f"`{FILE.relative_to(ROOT)}`, vLLM and DeepSpeed, on eight logical CPUs of this "
            "machine: more engines share the same cores, so the rate need not grow. "
            f"{figures['steps']} steps, none lost, none made twice; the ledger holds; the run "
            f"went back {figures['went_back']} times; left behind: "
            f"{'; '.join(figures['left_behind']) or 'nothing'}.",
            "",
            table(["", "until all serve, s", "longest pause between two steps, s"], rows),
            "",
            "![tokens per second over time](scaling.png)",
            "",
            "Grey: from the request until all serve.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
