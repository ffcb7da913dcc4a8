"""`make seeds`: the quickstart on three seeds; writes docs/results/quickstart.md.

    python scripts/seeds.py [KEY=VALUE ...]      overrides for all three

Memory is the peak of the proportional set size of the launched process and everything it
started, summed and sampled twice a second: shared pages count once.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import psutil
from results import ROOT, result_of, signature, table, write

SEEDS = (1, 2, 3)
FILE = "examples/arithmetic/buffered.yaml"
MAX_WALL_S, MAX_GIB, MIN_SAMPLED_POINTS, MIN_GREEDY_POINTS = 300, 8, 25, 8
SAMPLE_EVERY_S = 0.5


def main() -> None:
    overrides = sys.argv[1:]
    figures = {seed: measure(seed, overrides) for seed in SEEDS}
    write("quickstart", page(figures, overrides), figures)


def measure(seed: int, overrides: list[str]) -> dict[str, Any]:
    name = f"quickstart-seed-{seed}"
    command = ["slipstream", "launch", FILE, "--overwrite", f"name={name}", f"seed={seed}"]
    start_s, peak_bytes = time.perf_counter(), 0
    with subprocess.Popen([*command, *overrides], cwd=ROOT) as process:
        while process.poll() is None:
            peak_bytes = max(peak_bytes, memory_bytes(process.pid))
            time.sleep(SAMPLE_EVERY_S)
    if process.returncode != 0:
        raise SystemExit(f"seed {seed} ended with exit code {process.returncode}")
    wall_s = time.perf_counter() - start_s
    return {"process_wall_s": wall_s, "peak_gib": peak_bytes / 2**30, **result_of(name)}


def memory_bytes(pid: int) -> int:
    """Proportional set size of a process and its descendants."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        launched = psutil.Process(pid)
        for process in [launched, *launched.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
    return total


def page(figures: dict[int, dict[str, Any]], overrides: list[str]) -> str:
    head = [
        "seed",
        f"sampled reward (gain ≥ {MIN_SAMPLED_POINTS})",
        f"greedy accuracy (gain ≥ {MIN_GREEDY_POINTS})",
        f"wall time (< {MAX_WALL_S} s)",
        "training alone",
        f"memory (< {MAX_GIB} GiB)",
        "trained tok/s",
        "mean lag",
        "busy: learner, rollout",
    ]
    first = next(iter(figures.values()))
    before = first["evals"][0]
    return "\n".join(
        [
            "# The quickstart on three seeds",
            "",
            signature(" ".join(["make seeds", *overrides])),
            f"{first['steps']} steps of `{FILE}` from the bundled base model; "
            f"{before['num_prompts']} held-out prompts, none of which is trained on. Wall time and "
            "memory are of the whole job, from the command to its end.",
            "",
            table(head, [row(seed, result) for seed, result in figures.items()]),
            "",
            "Held-out figures on the way (sampled reward / greedy accuracy):",
            "",
            curves(figures),
            "",
        ]
    )


def row(seed: int, result: dict[str, Any]) -> list[str]:
    first, last = result["evals"][0], result["evals"][-1]
    groups = sum(result["lags"].values())
    lag = sum(int(lag) * count for lag, count in result["lags"].items()) / groups
    busy = result["busy_share"]
    return [
        str(seed),
        *(
            f"{first[key]:.1%} → {last[key]:.1%} (**{100 * (last[key] - first[key]):+.1f}**)"
            for key in ("sampled_reward", "greedy_accuracy")
        ),
        f"**{result['process_wall_s']:.0f} s**",
        f"{result['training_wall_s']:.0f} s",
        f"**{result['peak_gib']:.1f} GiB**",
        f"{result['trained_tokens_per_s']:,.0f}",
        f"{lag:.2f}",
        f"{busy['learner-0']:.0%}, {busy['rollout-0']:.0%}",
    ]


def curves(figures: dict[int, dict[str, Any]]) -> str:
    """Seed by seed; an evaluation can start a version or two late."""
    first = next(iter(figures.values()))
    head = ["seed", *(f"about v{e['version']}" for e in first["evals"])]
    rows = [
        [
            str(seed),
            *(f"{e['sampled_reward']:.0%} / {e['greedy_accuracy']:.0%}" for e in result["evals"]),
        ]
        for seed, result in figures.items()
    ]
    return table(head, rows)


if __name__ == "__main__":
    main()
