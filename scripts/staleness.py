"""`make staleness`: what training on old samples costs, with correction and without; writes
docs/results/staleness.md and staleness.png.

The learner passes twice over every batch in two minibatches, which makes it the slower side: the
queue fills and groups are as old as `replay.max_staleness` allows.
"""

from __future__ import annotations

import subprocess
from typing import Any

import matplotlib.pyplot as plt
from results import ROOT, result_of, signature, table, write

FILE = "examples/arithmetic/buffered.yaml"
BOUNDS = (0, 1, 4, 16)
CORRECTIONS = {
    "none": ("algorithm.correction.kind=none", "algorithm.old_logprobs=learner"),
    "truncated": ("algorithm.correction.kind=truncated",),
    "bypass": ("algorithm.correction.kind=none", "algorithm.old_logprobs=behaviour"),
}
COMMON = (
    *("learner.num_steps=150", "learner.warmup_steps=15", "data.eval_every_steps=30"),
    *("algorithm.epochs=2", "algorithm.minibatches=2"),
)


def main() -> None:
    results = {
        f"{bound}/{correction}": run(bound, correction)
        for bound in BOUNDS
        for correction in CORRECTIONS
    }
    plot(results)
    write("staleness", page(results), results)


def run(bound: int, correction: str) -> dict[str, Any]:
    name = f"staleness-{bound}-{correction}"
    command = [
        *("slipstream", "launch", FILE, "--overwrite", f"name={name}"),
        *(f"replay.max_staleness={bound}", *COMMON, *CORRECTIONS[correction]),
    ]
    print(f"--- {name}", flush=True)
    subprocess.run(command, cwd=ROOT, check=True)
    return result_of(name)


def plot(results: dict[str, dict[str, Any]]) -> None:
    figure, axes = plt.subplots(1, len(CORRECTIONS), figsize=(11, 3.6), sharey=True)
    for axis, correction in zip(axes, CORRECTIONS, strict=True):
        for bound in BOUNDS:
            result = results[f"{bound}/{correction}"]
            per_step = result["trained_groups"] / result["steps"]
            evals = result["evals"]
            groups = [per_step * evaluation["version"] for evaluation in evals]
            rewards = [100 * evaluation["sampled_reward"] for evaluation in evals]
            axis.plot(groups, rewards, marker="o", markersize=3, label=f"at most {bound}")
        axis.set_title(f"correction: {correction}")
        axis.set_xlabel("trained groups")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("held-out reward, sampled (%)")
    axes[0].legend(title="staleness")
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "results" / "staleness.png", dpi=110)


def page(results: dict[str, dict[str, Any]]) -> str:
    head = [
        "max_staleness",
        "mean lag",
        *(f"{name}: greedy, sampled" for name in CORRECTIONS),
        *(f"{name}: wall time" for name in CORRECTIONS),
    ]
    first = results[f"0/{next(iter(CORRECTIONS))}"]
    before = first["evals"][0]
    return "\n".join(
        [
            "# What stale samples cost",
            "",
            signature("make staleness"),
            f"GRPO on `{FILE}`, {first['steps']} steps of {first['trained_groups']:,} groups in "
            "all, one seed; four updates a step. `none`: pi_old is the learner's, and nothing "
            "corrects for what sampled; `truncated`: its ratio to that, capped at 2, weighs every "
            "token (decoupled PPO); `bypass`: pi_old is what sampled. Held-out figures after the "
            f"last step; before training {before['greedy_accuracy']:.1%} greedy, "
            f"{before['sampled_reward']:.1%} sampled, {before['num_prompts']} prompts.",
            "",
            table(head, [row(bound, results) for bound in BOUNDS]),
            "",
            "![Held-out reward against trained groups](staleness.png)",
            "",
        ]
    )


def row(bound: int, results: dict[str, dict[str, Any]]) -> list[str]:
    of_bound = [results[f"{bound}/{correction}"] for correction in CORRECTIONS]
    lags = [lag_of(result) for result in of_bound]
    lasts = [result["evals"][-1] for result in of_bound]
    return [
        str(bound),
        f"{sum(lags) / len(lags):.1f}",
        *(f"{last['greedy_accuracy']:.1%}, {last['sampled_reward']:.1%}" for last in lasts),
        *(f"{result['training_wall_s']:.0f} s" for result in of_bound),
    ]


def lag_of(result: dict[str, Any]) -> float:
    groups = sum(result["lags"].values())
    return float(sum(int(lag) * count for lag, count in result["lags"].items()) / groups)


if __name__ == "__main__":
    main()
