"""Predicted beside measured step time, on this machine's cores; writes docs/results/plan.md.

    python scripts/plan_check.py [KEY=VALUE ...]    overrides for all, e.g. learner.num_steps=30

The four modes of the arithmetic example, then two other settings, which show that it is no fit to
one point: fewer prompts a step, and long answers of another model. Before and after each run a core
is measured as `slipstream plan` does; the mean length of answers, which it cannot know, is the
run's.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from results import ROOT, signature, table, write
from two_nodes import two_nodes

from orchestrator.commands.planning import machine_of, prompts_of
from orchestrator.estimate.assemble import estimate
from orchestrator.estimate.report import Estimate, Machine, Mean
from orchestrator.estimate.shape import read_shape
from orchestrator.run_files import events
from slipstream.config.job import JobConfig
from slipstream.config.load import load_job

NUM_STEPS, NUM_LEFT_OUT = 50, 10
TARGET = 0.25
QUIET = ("data.eval=null", "checkpoint.every_steps=0", "learner.warmup_steps=0")
LONG = "scripts/bench/longtail.yaml"
LONG_MODEL = "runs/bench/longtail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run, and how it is called."""

    name: str
    file: str
    overrides: tuple[str, ...] = ()

    @property
    def run(self) -> str:
        """The name of its run."""
        return "plan-" + self.name.replace(", ", "-").replace(" ", "-")


def example(mode: str, *overrides: str, name: str = "") -> Case:
    file = f"examples/arithmetic/{mode}.yaml"
    return Case(name=name or f"{mode}, arithmetic", file=file, overrides=overrides)


LONG_STEPS = ("learner.num_steps=16",)  # of about 5 s each
CASES = (
    *(example(mode) for mode in ("sync", "split", "buffered", "multinode")),
    example("sync", "learner.groups_per_batch=12", name="sync, 96 answers a step"),
    example("buffered", "learner.groups_per_batch=12", name="buffered, 96 answers a step"),
    Case(
        name="sync, long answers",
        file=LONG,
        overrides=("mode=sync", "replay.max_staleness=0", *LONG_STEPS),
    ),
    Case(name="buffered, long answers", file=LONG, overrides=LONG_STEPS),
)


def main() -> None:
    overrides = sys.argv[1:]
    if not (ROOT / LONG_MODEL).is_dir():
        make = [sys.executable, "scripts/bench/longtail.py", LONG_MODEL]
        subprocess.run(make, cwd=ROOT, check=True)
    figures = {case.name: check(case, overrides) for case in CASES}
    write("plan", page(figures, overrides), figures)


def check(case: Case, overrides: list[str]) -> dict[str, Any]:
    """The machine measured, the run, and the prediction for the lengths that it had."""
    given = [f"learner.num_steps={NUM_STEPS}", *QUIET, *case.overrides, *overrides]
    given += [f"name={case.run}"]
    print(f"--- {case.name}", flush=True)
    job = load_job(ROOT / case.file, given)
    before = machine_of(job, read_shape(job.model.path), None)
    launch(case.file, given, in_two_nodes=job.mode == "multinode")
    run_dir = ROOT / "runs" / case.run
    steps = steps_of(run_dir)
    after = machine_of(job, read_shape(job.model.path), None)
    both = [predicted(job, machine, steps) for machine in (before, after)]
    step_s, found = statistics.mean(one.step_s for one in both), both[0]
    seconds = [b["time_s"] - a["time_s"] for a, b in pairwise(steps)]
    # What roles say of their work is without the waiting: where a prediction errs can be seen.
    parts = {name: mean_of(steps, name) for name in ("train", "publish", "wait")}
    return {
        "predicted_s": step_s,
        "measured_s": statistics.mean(seconds),
        "median_s": statistics.median(seconds),
        "ratio": step_s / statistics.mean(seconds),
        "num_steps": len(seconds),
        "answer_tokens": found.answer.tokens,
        "measured_parts_s": parts | rollout_parts(run_dir, steps),
        "plan": {key: found.as_json()[key] for key in ("parts_s", "modes", "work")},
        "cores": [
            {"flops": machine.learner.flops, "python_slower": machine.learner.slower}
            for machine in (before, after)
        ],
    }


def launch(file: str, overrides: list[str], *, in_two_nodes: bool) -> None:
    command = [sys.executable, "-m", "orchestrator.cli", "launch", file, "--overwrite"]
    with two_nodes() if in_two_nodes else nullcontext() as address:
        where = ["--address", address] if address else []
        subprocess.run([*command, *overrides, *where], cwd=ROOT, check=True)


def steps_of(run_dir: Path) -> list[dict[str, Any]]:
    """The steps that count: engines and learner are warm, and there is work for both."""
    found = events(run_dir / "metrics.jsonl")
    steps = [event for event in found if event["kind"] == "step"]
    return steps[min(NUM_LEFT_OUT, len(steps) // 4) :]


def predicted(job: JobConfig, machine: Machine, steps: list[dict[str, Any]]) -> Estimate:
    tokens = sum(s["num_answer_tokens"] for s in steps) / sum(s["num_rollouts"] for s in steps)
    answer = Mean(tokens=tokens, source="the run's")
    shape = read_shape(job.model.path)
    return estimate(job, shape, machine, prompt=prompts_of(job, None), answer=answer)


def mean_of(steps: list[dict[str, Any]], name: str) -> float:
    return statistics.mean(step["seconds"].get(name, 0.0) for step in steps)


def rollout_parts(run_dir: Path, steps: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds a step of what the worker was busy with."""
    first_s, last_s = steps[0]["time_s"], steps[-1]["time_s"]
    told = [
        event["seconds"]
        for event in events(run_dir / "metrics.jsonl")
        if event["kind"] == "busy" and first_s < event["time_s"] < last_s
    ]
    return {
        name: sum(seconds.get(name, 0.0) for seconds in told) / (len(steps) - 1)
        for name in ("generate", "adopt", "score", "hand_over")
    }


def page(figures: dict[str, dict[str, Any]], overrides: list[str]) -> str:
    head = ["run", "predicted, s a step", "measured", "predicted over measured", "what bounds it"]
    head += ["generation: predicted, measured", "training: predicted, measured", "steps"]
    off = [name for name, figure in figures.items() if abs(figure["ratio"] - 1) > TARGET]
    verdict = f"off by more: {', '.join(off)}." if off else "all are."
    return "\n".join(
        [
            "# Predicted and measured step time",
            "",
            signature(" ".join(["make plan", *overrides])),
            "Each run was predicted by `slipstream plan` from the job file and a measurement of "
            "one core just before and after it (the mean of both); the mean length of answers is "
            "the run's. Measured is the mean over the steps after the first ones. Generation is "
            "the engine's time a step, "
            "training the learner's, both with whatever else used the cores.",
            "",
            table(head, [row(name, figure) for name, figure in figures.items()]),
            "",
            f"Target: within {TARGET:.0%}; {verdict}",
            "",
        ]
    )


def row(name: str, figure: dict[str, Any]) -> list[str]:
    parts, measured = figure["plan"]["parts_s"], figure["measured_parts_s"]
    mode = name.split(",")[0]
    generation = parts["generation"]["alone_s" if mode == "sync" else "flow_s"]
    return [
        name,
        f"{figure['predicted_s']:.3f}",
        f"{figure['measured_s']:.3f}",
        f"{figure['ratio']:.2f}",
        figure["plan"]["modes"][mode]["bound"],
        f"{generation:.3f}, {measured['generate']:.3f}",
        f"{parts['training_s']:.3f}, {measured['train']:.3f}",
        str(figure["num_steps"]),
    ]


if __name__ == "__main__":
    main()
