"""`make algorithms`: every algorithm on the arithmetic example, one seed, `buffered`; writes
docs/results/algorithms.md.

    python scripts/algorithms.py [NAME ...]      only these, the others' figures stay
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from results import ROOT, result_of, signature, table, write

FILE = "examples/arithmetic/buffered.yaml"
# Fewer steps than in the job file, for all of them in half an hour.
COMMON = ("learner.num_steps=200", "learner.warmup_steps=20", "data.eval_every_steps=0")
TWO_UPDATES = "algorithm.minibatches=2"  # where only a ratio away from 1 shows the difference
NO_RATIO = "algorithm.loss.kind=policy_gradient"

ALGORITHMS: dict[str, tuple[str, ...]] = {
    "GRPO": (),
    "Dr.GRPO": ("algorithm.advantage.scale=none", "algorithm.aggregate=token_sum_norm"),
    "DAPO": (
        "algorithm.loss.clip_high=0.28",
        "algorithm.overlong.filter=true",
        "replay.dynamic_sampling=true",
        TWO_UPDATES,
    ),
    "REINFORCE, batch mean": ("algorithm.advantage.kind=reinforce", NO_RATIO),
    "REINFORCE, moving average": (
        "algorithm.advantage={kind: reinforce, baseline: moving_average}",
        NO_RATIO,
    ),
    "OPO": ("algorithm.advantage={kind: reinforce, baseline: optimal}", NO_RATIO),
    "RLOO": ("algorithm.advantage.kind=rloo", NO_RATIO),
    "ReMax": ("algorithm.advantage.kind=remax", NO_RATIO),
    "REINFORCE++": (
        "algorithm.advantage.kind=reinforce_plus_plus",
        "algorithm.kl={coefficient: 0.01, estimator: k1, place: reward}",
    ),
    "REINFORCE++-baseline": (
        "algorithm.advantage={kind: reinforce_plus_plus, baseline: group_mean}",
        "algorithm.kl={coefficient: 0.01, estimator: k2}",
    ),
    "PPO, GAE": (
        "algorithm.advantage.kind=gae",
        "algorithm.critic={learning_rate: 5e-4, warmup_steps: 10}",
        TWO_UPDATES,
    ),
    "PPO, n-step": (
        "algorithm.advantage={kind: n_step, n: 4}",
        "algorithm.critic={learning_rate: 5e-4, warmup_steps: 10}",
        TWO_UPDATES,
    ),
    "PPO with a KL penalty": ("algorithm.loss={kind: ppo_kl, target: 0.01}", TWO_UPDATES),
    "GSPO": (
        "algorithm.loss={kind: gspo, clip_low: 0.03, clip_high: 0.04}",
        "algorithm.aggregate=seq_mean_token_mean",
        TWO_UPDATES,
    ),
    "CISPO": ("algorithm.loss.kind=cispo", TWO_UPDATES),
    "SAPO": ("algorithm.loss.kind=sapo", TWO_UPDATES),
    "GRPO, KL to the start": (
        "algorithm.kl={coefficient: 0.02, adaptive: {target: 0.05, horizon: 5000}}",
    ),
    "GRPO, entropy held": ("algorithm.entropy={coefficient: 0.003, target: 0.3}",),
}


def main() -> None:
    results: dict[str, dict[str, Any]] = {}
    if sys.argv[1:]:
        results = json.loads((ROOT / "docs" / "results" / "algorithms.json").read_text())
    results |= {name: run(name) for name in sys.argv[1:] or ALGORITHMS}
    write("algorithms", page(results), results)


def run(name: str) -> dict[str, Any]:
    """Launch one in a process of its own."""
    run_name = "algorithm-" + "".join(c if c.isalnum() else "-" for c in name.lower())
    command = [
        *("slipstream", "launch", FILE, "--overwrite", f"name={run_name}"),
        *COMMON,
        *ALGORITHMS[name],
    ]
    print(f"--- {name}", flush=True)
    subprocess.run(command, cwd=ROOT, check=True)
    return result_of(run_name)


def page(results: dict[str, dict[str, Any]]) -> str:
    first = next(iter(results.values()))
    before = first["evals"][0]
    head = [
        "algorithm",
        "held-out accuracy (greedy)",
        "held-out reward (sampled)",
        "training wall time",
        "settings beside the job file's",
    ]
    return "\n".join(
        [
            "# Every algorithm on the arithmetic example",
            "",
            signature("make algorithms"),
            f"{first['steps']} steps of `{FILE}` from the same base model with the same seed and "
            "learning rate; nothing was tuned for any of them, so this shows that each learns, and "
            f"not which is best. {before['num_prompts']} held-out prompts; before training "
            f"{before['greedy_accuracy']:.1%} greedy, {before['sampled_reward']:.1%} sampled. "
            "Points in brackets: gained. The settings of all: "
            + ", ".join(f"`{setting}`" for setting in COMMON)
            + ".",
            "",
            table(head, [row(name, result) for name, result in results.items()]),
            "",
        ]
    )


def row(name: str, result: dict[str, Any]) -> list[str]:
    first, last = result["evals"][0], result["evals"][-1]
    return [
        name,
        *(
            f"{last[key]:.1%} ({100 * (last[key] - first[key]):+.1f})"
            for key in ("greedy_accuracy", "sampled_reward")
        ),
        f"{result['training_wall_s']:.0f} s",
        "<br>".join(f"`{setting}`" for setting in ALGORITHMS[name]) or "none",
    ]


if __name__ == "__main__":
    main()
