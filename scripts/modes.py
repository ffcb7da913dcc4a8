"""Runs the arithmetic example in all four modes, same seed and number of trained groups, and
writes docs/results/modes.md.

    python scripts/modes.py [KEY=VALUE ...]      overrides for all four, e.g. learner.num_steps=20
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from results import ROOT, result_of, signature, table, write
from two_nodes import two_nodes

MODES = ("sync", "split", "buffered", "multinode")
# Fewer than in the job files, for four runs in a quarter of an hour.
STEPS = "learner.num_steps=250"


def main() -> None:
    overrides = sys.argv[1:]
    results = {mode: run(mode, overrides) for mode in MODES}
    write("modes", page(results, overrides), results)


def run(mode: str, overrides: list[str]) -> dict[str, Any]:
    """Launch one mode in a process of its own; `multinode` on two Ray nodes on this machine."""
    command = [
        *("slipstream", "launch", f"examples/arithmetic/{mode}.yaml", "--overwrite"),
        *(f"name=modes-{mode}", STEPS, *overrides),
    ]
    print(f"--- {mode}", flush=True)
    if mode == "multinode":
        with two_nodes() as address:
            subprocess.run([*command, "--address", address], cwd=ROOT, check=True)
    else:
        subprocess.run(command, cwd=ROOT, check=True)
    return result_of(f"modes-{mode}")


def page(results: dict[str, dict[str, Any]], overrides: list[str]) -> str:
    sync = results["sync"]["evals"][-1]
    head = [
        "mode",
        "held-out accuracy (greedy)",
        "held-out reward (sampled)",
        "training wall time",
        "generated tok/s",
        "trained tok/s",
        "lag: share of groups",
        "dropped",
    ]
    rows = [row(mode, result, sync) for mode, result in results.items()]
    steps = {result["steps"] for result in results.values()}
    groups = {result["trained_groups"] for result in results.values()}
    return "\n".join(
        [
            "# The four modes side by side",
            "",
            signature(" ".join(["make modes", *overrides])),
            f"The same seed, {set_of(steps)} steps, {set_of(groups)} trained groups each. Points "
            "in brackets: difference to `sync`. Wall time is from the roles' readiness to the last "
            "step, evaluations included; starting up is not.",
            "",
            table(head, rows),
            "",
            f"Before training: {sync_before(results)}.",
            "",
        ]
    )


def row(mode: str, result: dict[str, Any], sync: dict[str, Any]) -> list[str]:
    last = result["evals"][-1]
    groups = max(1, sum(result["lags"].values()))
    lags = ", ".join(f"{lag}: {count / groups:.0%}" for lag, count in result["lags"].items())
    replay = result["replay"]
    dropped = sum(replay.get("drops", {}).values()) / max(1, replay.get("num_issued", 1))
    return [
        f"`{mode}`",
        *(
            f"{last[key]:.1%} ({100 * (last[key] - sync[key]):+.1f})"
            for key in ("greedy_accuracy", "sampled_reward")
        ),
        f"{result['training_wall_s']:.0f} s",
        f"{result['generated_tokens_per_s']:,.0f}",
        f"{result['trained_tokens_per_s']:,.0f}",
        lags,
        f"{dropped:.1%}",
    ]


def sync_before(results: dict[str, dict[str, Any]]) -> str:
    first = results["sync"]["evals"][0]
    return (
        f"accuracy {first['greedy_accuracy']:.1%}, sampled reward {first['sampled_reward']:.1%}, "
        f"{first['num_prompts']} held-out prompts"
    )


def set_of(values: set[int]) -> str:
    return ", ".join(f"{value:,}" for value in sorted(values))


if __name__ == "__main__":
    main()
