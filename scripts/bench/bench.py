"""`make bench`: each side alone, the pipeline, and TRL, on two workloads, in one run.

Writes docs/results/bench.json and bench.md. The machine may be shared and change its speed, so
everything is measured in turns, `NUM_ROUNDS` times, and a step's time is the median over blocks
of `BLOCK` steps of their mean. The policy stays as it is (a learning rate of nearly 0), so that
all sides have answers of the same length.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from results import ROOT, signature, table, write

from slipstream.config.job import JobConfig
from slipstream.config.load import load_job

HERE = Path(__file__).parent
OUT = ROOT / "runs" / "bench"
NUM_ROUNDS = 2
NUM_WARM_STEPS = 4
BLOCK = 4
SIDES = ("rollout alone", "learner alone", "pipeline", "TRL")
OVERRIDES = (
    *("learner.learning_rate=1e-9", "replay.max_staleness=2", "data.eval=null"),
    *("checkpoint.every_steps=0", f"checkpoint.dir={OUT}"),
)
Step = tuple[int, float]  # answer tokens, seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    file: Path
    num_steps: int  # measured in one round, of each side
    num_trl_steps: int
    target_over_trl: float


WORKLOADS = {
    "short": Workload(
        file=ROOT / "examples" / "arithmetic" / "buffered.yaml",
        num_steps=80,
        num_trl_steps=16,
        target_over_trl=1.3,
    ),
    "long-tailed": Workload(
        file=HERE / "longtail.yaml", num_steps=12, num_trl_steps=4, target_over_trl=5.0
    ),
}


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    run([sys.executable, str(HERE / "longtail.py"), str(OUT / "longtail")])
    run(["scripts/environment.sh", ".venv-trl", "scripts/bench/trl_requirements.txt"])
    figures = {name: measure(name, workload) for name, workload in WORKLOADS.items()}
    write("bench", page(figures), figures)


def measure(name: str, workload: Workload) -> dict[str, Any]:
    """All figures of one workload."""
    job = load_job(workload.file, list(OVERRIDES))
    steps: dict[str, list[Step]] = {side: [] for side in SIDES}
    block_s: dict[str, list[float]] = {side: [] for side in SIDES}
    versions: dict[str, Any] = {}
    for _ in range(NUM_ROUNDS):
        theirs = trl_side(name, job, workload.num_trl_steps)
        versions = theirs["versions"]
        taken = {
            "rollout alone": alone("rollout", workload),
            "learner alone": alone("learner", workload),
            "pipeline": pipeline(name, workload),
            "TRL": theirs["steps"],
        }
        for side, its_steps in taken.items():
            steps[side] += its_steps
            block_s[side] += blocks([seconds for _, seconds in its_steps])
    num_rollouts = job.learner.groups_per_batch * job.rollout.group_size
    sides = {side: summary(steps[side], block_s[side], num_rollouts) for side in SIDES}
    slower_s = max(sides[side]["step_s"] for side in ("rollout alone", "learner alone"))
    rate = "tokens_per_s"
    return {
        "rollouts_per_step": num_rollouts,
        "sides": sides,
        "pipeline_over_slower_side": sides["pipeline"]["step_s"] / slower_s,
        "pipeline_over_trl": sides["pipeline"][rate] / sides["TRL"][rate],
        "target_over_trl": workload.target_over_trl,
        "trl_versions": versions,
    }


def blocks(seconds: Sequence[float]) -> list[float]:
    """Mean of every whole block of steps."""
    starts = range(0, len(seconds) - BLOCK + 1, BLOCK)
    return [statistics.mean(seconds[start : start + BLOCK]) for start in starts]


def summary(steps: list[Step], block_s: list[float], num_rollouts: int) -> dict[str, float]:
    """Of one side. Tokens a second are those of the typical step."""
    step_s = statistics.median(block_s)
    tokens_per_step = statistics.mean(tokens for tokens, _ in steps)
    return {
        "step_s": step_s,
        "quickest_block_step_s": min(block_s),
        "slowest_block_step_s": max(block_s),
        "tokens_per_s": tokens_per_step / step_s,
        "mean_answer_tokens": tokens_per_step / num_rollouts,
        "num_steps": len(steps),
    }


def alone(side: str, workload: Workload) -> list[Step]:
    command = [sys.executable, str(HERE / "alone.py"), side, str(workload.file)]
    steps: list[Step] = last_json([*command, str(workload.num_steps), *OVERRIDES])
    return steps


def pipeline(name: str, workload: Workload) -> list[Step]:
    """A `buffered` job, without the steps that fill the buffer and those that empty it."""
    num_steps = NUM_WARM_STEPS + workload.num_steps + 2
    run(
        [
            *("slipstream", "launch", str(workload.file), "--overwrite", f"name={name}"),
            *(*OVERRIDES, f"learner.num_steps={num_steps}"),
        ]
    )
    lines = (OUT / name / "metrics.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, lines) if event["kind"] == "step"]
    pairs = list(pairwise(events))[NUM_WARM_STEPS - 1 : -2]
    return [(b["num_answer_tokens"], b["time_s"] - a["time_s"]) for a, b in pairs]


def trl_side(name: str, job: JobConfig, num_steps: int) -> dict[str, Any]:
    from replay.render import renderer
    from replay.sources import open_source
    from slipstream.text import load_tokenizer

    items = open_source(job.data.train)
    render = renderer(job.data.train, load_tokenizer(job.model))
    count = min(len(items), job.learner.groups_per_batch * (num_steps + 2))
    settings = {
        "model": job.model.path,
        "out": str(OUT / f"trl-{name}"),
        "num_prompts": job.learner.groups_per_batch,
        "group_size": job.rollout.group_size,
        "max_new_tokens": job.rollout.max_new_tokens,
        "learning_rate": job.learner.learning_rate,
        "num_warm_steps": 2,
        "num_steps": num_steps,
        "items": [
            {"prompt": render(items[i], i)[0]}
            | ({"answer": items[i]["answer"]} if "answer" in items[i] else {})
            for i in range(count)
        ],
    }
    path = OUT / f"trl-{name}.json"
    path.write_text(json.dumps(settings))
    command = [str(ROOT / ".venv-trl/bin/python"), str(HERE / "trl_side.py"), str(path)]
    result: dict[str, Any] = last_json(command)
    return result


def last_json(command: list[str]) -> Any:
    return json.loads(run(command).strip().splitlines()[-1])


def run(command: list[str]) -> str:
    print("$", " ".join(command), flush=True)
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, env=env)
    return done.stdout


def page(figures: dict[str, dict[str, Any]]) -> str:
    versions = next(iter(figures.values()))["trl_versions"]
    return "\n".join(
        [
            "# Speed",
            "",
            signature("make bench"),
            f"TRL {versions['trl']} with transformers {versions['transformers']} and torch "
            f"{versions['torch']}, {versions['threads']} threads. float32 on all sides.",
            "",
            "*short* is the arithmetic example; *long-tailed* an untrained model whose answers end "
            "by chance, cut at 512 tokens. Each side alone has one core; the pipeline (`buffered`, "
            "`max_staleness: 2`) has both, one for each role; TRL has both for each phase in turn, "
            "and without a GPU generates with transformers. All sides were measured in turns, "
            f"{NUM_ROUNDS} times. Seconds a step are the median over blocks of {BLOCK} steps, with "
            "the quickest and the slowest block in brackets: the spread is the machine's.",
            "",
            *(part(name, figure) for name, figure in figures.items()),
        ]
    )


def part(name: str, figure: dict[str, Any]) -> str:
    head = ["", "s a step", "tokens/s", "mean answer, tokens", "steps"]
    rows = [
        [
            side,
            f"{its['step_s']:.3f} ({its['quickest_block_step_s']:.3f}"
            f" to {its['slowest_block_step_s']:.3f})",
            f"{its['tokens_per_s']:,.0f}",
            f"{its['mean_answer_tokens']:.1f}",
            f"{its['num_steps']}",
        ]
        for side, its in figure["sides"].items()
    ]
    return "\n".join(
        [
            f"## {name}: {figure['rollouts_per_step']} rollouts a step",
            "",
            table(head, rows),
            "",
            f"- pipeline over the slower side, seconds a step: "
            f"**{figure['pipeline_over_slower_side']:.2f}** (target ≤ 1.15)",
            f"- pipeline over TRL, trained tokens/s: **{figure['pipeline_over_trl']:.2f}** "
            f"(target ≥ {figure['target_over_trl']})",
            "",
        ]
    )


if __name__ == "__main__":
    main()
