"""`make bench`: each side alone, the pipeline, and TRL, on two workloads, in one run.

Writes docs/results/bench.json and bench.md. Everything is measured on the machine that runs it;
compare the ratios, not the seconds, with another.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slipstream.config.job import JobConfig
from slipstream.config.load import load_job

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
OUT = ROOT / "runs" / "bench"
TARGET = ROOT / "docs" / "results" / "bench.md"
NUM_WARM_STEPS = 4
WORKLOADS: dict[str, dict[str, Any]] = {
    "short": {
        "file": ROOT / "examples" / "arithmetic" / "buffered.yaml",
        "steps": 40,
        "trl_steps": 12,
        "target": 1.3,
    },
    "long-tailed": {"file": HERE / "longtail.yaml", "steps": 16, "trl_steps": 4, "target": 5.0},
}


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    run([sys.executable, str(HERE / "longtail.py"), str(OUT / "longtail")])
    run(["bash", str(HERE / "install_trl.sh")])
    results = {name: measure(name, workload) for name, workload in WORKLOADS.items()}
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    TARGET.write_text(page(results))
    print(page(results))


def measure(name: str, workload: dict[str, Any]) -> dict[str, Any]:
    """All figures of one workload."""
    file = workload["file"]
    job = load_job(file)
    alone = {
        side: last_json([sys.executable, str(HERE / "alone.py"), side, str(file)])
        for side in ("rollout", "learner")
    }
    ours = pipeline(name, file, workload["steps"])
    theirs = trl_side(name, job, workload["trl_steps"])
    slower_s = max(alone["rollout"]["step_s"], alone["learner"]["step_s"])
    return {
        "samples_per_step": job.learner.groups_per_batch * job.rollout.group_size,
        "alone": alone,
        "pipeline": ours,
        "trl": theirs,
        "step_over_slower_side": ours["step_s"] / slower_s,
        "trained_tokens_over_trl": ours["trained_tokens_per_s"] / theirs["trained_tokens_per_s"],
        "target_over_trl": workload["target"],
    }


def pipeline(name: str, file: Path, num_steps: int) -> dict[str, float]:
    """A `buffered` job; the first steps, which fill the buffer, are left out."""
    run(
        [
            *("slipstream", "launch", str(file), "--overwrite", f"name={name}"),
            *(f"checkpoint.dir={OUT}", "checkpoint.every_steps=0", "data.eval=null"),
            f"learner.num_steps={num_steps}",
        ],
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )
    lines = (OUT / name / "metrics.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, lines) if event["kind"] == "step"]
    # The last steps find no more prompts being generated beside them.
    warm = steps[NUM_WARM_STEPS:-2]
    seconds = warm[-1]["time_s"] - steps[NUM_WARM_STEPS - 1]["time_s"]
    trained = sum(step["num_answer_tokens"] for step in warm)
    return {
        "step_s": seconds / len(warm),
        "trained_tokens_per_s": trained / seconds,
        "mean_tokens": trained / sum(step["num_rollouts"] for step in warm),
        "mean_lag": statistics.mean(
            int(lag) for step in warm for lag, count in step["lags"].items() for _ in range(count)
        ),
    }


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
    return last_json([str(ROOT / ".venv-trl/bin/python"), str(HERE / "trl_side.py"), str(path)])


def last_json(command: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(command).strip().splitlines()[-1])
    return found


def run(command: list[str], **options: Any) -> str:
    print("$", " ".join(map(str, command)), flush=True)
    env = {"PYTHONWARNINGS": "ignore", **os.environ}
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, **{"env": env, **options}
    )
    return done.stdout


def page(results: dict[str, dict[str, Any]]) -> str:
    head = "| | " + " | ".join(results) + " |"
    rows = [
        ("samples a step", lambda r: f"{r['samples_per_step']}"),
        ("mean answer, tokens", lambda r: f"{r['pipeline']['mean_tokens']:.1f}"),
        ("rollout alone, tokens/s", lambda r: f"{r['alone']['rollout']['tokens_per_s']:,.0f}"),
        ("rollout alone, s a step", lambda r: f"{r['alone']['rollout']['step_s']:.2f}"),
        ("learner alone, tokens/s", lambda r: f"{r['alone']['learner']['tokens_per_s']:,.0f}"),
        ("learner alone, s a step", lambda r: f"{r['alone']['learner']['step_s']:.2f}"),
        ("pipeline, s a step", lambda r: f"{r['pipeline']['step_s']:.2f}"),
        (
            "pipeline over the slower side (target ≤ 1.15)",
            lambda r: f"**{r['step_over_slower_side']:.2f}**",
        ),
        ("pipeline, trained tokens/s", lambda r: f"{r['pipeline']['trained_tokens_per_s']:,.0f}"),
        ("TRL, s a step", lambda r: f"{r['trl']['step_s']:.2f}"),
        ("TRL, mean answer, tokens", lambda r: f"{r['trl']['mean_tokens']:.1f}"),
        ("TRL, trained tokens/s", lambda r: f"{r['trl']['trained_tokens_per_s']:,.0f}"),
        (
            "trained tokens/s over TRL",
            lambda r: f"**{r['trained_tokens_over_trl']:.2f}** (target ≥ {r['target_over_trl']})",
        ),
    ]
    versions = next(iter(results.values()))["trl"]
    return "\n".join(
        [
            "# Speed",
            "",
            f"`make bench`, {datetime.now(tz=UTC):%Y-%m-%d}, {os.cpu_count()} cores "
            f"({platform.machine()}), no GPU, float32. TRL {versions['trl']} with transformers "
            f"{versions['transformers']} and torch {versions['torch']}, "
            f"{versions['threads']} threads.",
            "Workloads: *short* is the arithmetic example; *long-tailed* an untrained model whose "
            "answers end by chance, cut at 512 tokens. Each side alone has one core; the pipeline "
            "has both, one for each role; TRL has both for each phase in turn.",
            "",
            head,
            "|" + "---|" * (len(results) + 1),
            *(
                f"| {name} | " + " | ".join(map(show, results.values())) + " |"
                for name, show in rows
            ),
            "",
        ]
    )


if __name__ == "__main__":
    main()
