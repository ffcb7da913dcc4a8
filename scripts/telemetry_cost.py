"""`make telemetry-cost`: what telemetry costs; writes docs/results/telemetry.md.

The arithmetic example in `buffered` mode, launched in turns with everything on and everything off
(on off, off on, on off, ...), so that a machine that gets slower or quicker meanwhile favours
neither. Throughput is counted from a step after the start to the last one.

    python scripts/telemetry_cost.py [--pairs N] [KEY=VALUE ...]      overrides for every launch
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from results import ROOT, signature, table, write

FILE = "examples/arithmetic/buffered.yaml"
# No evaluation and no commit on the way: both would be noise.
SETTINGS = ("learner.num_steps=300", "data.eval=null", "checkpoint.every_steps=0")
SKIPPED_STEPS = 20  # in which caches and buffers fill
TARGET = 0.03
ON = ("telemetry.sample_every_groups=1",)  # all else is on by default
OFF = ("telemetry.enabled=false",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    pairs = [pair_of_launches(number, asked.overrides) for number in range(asked.pairs)]
    figures = {"pairs": pairs, **cost_of([ratio_of(pair) for pair in pairs])}
    write("telemetry", page(figures, asked.overrides), figures)


def pair_of_launches(number: int, overrides: list[str]) -> dict[str, Any]:
    """One launch with all of it and one with nothing, every other time in the other order."""
    order = ("on", "off") if number % 2 == 0 else ("off", "on")
    return {which: measured(which, overrides) for which in order}


def measured(which: str, overrides: list[str]) -> dict[str, Any]:
    """Trained groups a second, and what the run left on the disk."""
    name = f"telemetry-{which}"
    settings = [*SETTINGS, *(ON if which == "on" else OFF), *overrides]
    command = ["slipstream", "launch", FILE, "--overwrite", f"name={name}", *settings]
    print(f"--- {which}", flush=True)
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    run = ROOT / "runs" / name
    lines = (run / "metrics.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, lines) if event["kind"] == "step"]
    found = {
        "rate": rate_of(steps),
        "num_steps": len(steps),
        "num_events": len(lines),
        "log_bytes": log_bytes(run),
    }
    print(f"{found['rate']:.2f} groups/s", flush=True)
    return found


def rate_of(steps: list[dict[str, Any]]) -> float:
    """Groups a second after the first `SKIPPED_STEPS`."""
    first, *rest = steps[SKIPPED_STEPS:]
    groups: int = sum(step["num_groups"] for step in rest)
    return groups / (rest[-1]["time_s"] - first["time_s"])


def log_bytes(run: Path) -> int:
    """All that is written for people and tools."""
    files = [run / name for name in ("metrics.jsonl", "samples.jsonl", "trace.json")]
    files += (run / "tensorboard").glob("*")
    return sum(file.stat().st_size for file in files if file.exists())


def ratio_of(pair: dict[str, Any]) -> float:
    return float(pair["on"]["rate"] / pair["off"]["rate"])


def cost_of(ratios: list[float]) -> dict[str, float]:
    """Of the rates with telemetry to those without, a pair each: the share of throughput that is
    lost, and the standard error of it."""
    logs = [math.log(ratio) for ratio in ratios]
    spread = statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.nan
    return {"cost": 1.0 - math.exp(statistics.mean(logs)), "standard_error": spread}


def page(figures: dict[str, Any], overrides: list[str]) -> str:
    on, off = figures["pairs"][-1]["on"], figures["pairs"][-1]["off"]
    rows = [
        [str(number), *(f"{p[which]['rate']:.2f}" for which in ("on", "off")), f"{ratio_of(p):.3f}"]
        for number, p in enumerate(figures["pairs"], 1)
    ]
    cost, error = figures["cost"], figures["standard_error"]
    verdict = "within" if cost <= TARGET else "not within"
    lines = [
        "# What telemetry costs",
        "",
        signature(" ".join(["make telemetry-cost", *overrides])),
        f"The arithmetic example, mode `buffered`, {on['num_steps']} steps a launch; the driver "
        "shares the cores of engine and learner. On: spans, every group as a sample, TensorBoard "
        "files, trace, and the metrics of job and engine that go to Prometheus. "
        "Off: `telemetry.enabled: false`; `metrics.jsonl` is written all the same.",
        "",
        f"**It costs {cost:.1%} of throughput, ± {error:.1%}** (standard error of {len(rows)} "
        f"pairs; below 0: none was seen); {verdict} the {TARGET:.0%} allowed.",
        "",
        table(["pair", "on, groups/s", "off, groups/s", "on / off"], rows),
        "",
        f"With it a run wrote {on['num_events']:,} events and {on['log_bytes'] / 1e6:.1f} MB for "
        f"people and tools, without it {off['num_events']:,} events and "
        f"{off['log_bytes'] / 1e6:.1f} MB.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    started_s = time.monotonic()
    main()
    print(f"{time.monotonic() - started_s:.0f} s")
