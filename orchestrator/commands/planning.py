"""Commands about a job that has not run yet: plan."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.commands.common import AsJson, print_report, refused, reported
from orchestrator.estimate.assemble import estimate
from orchestrator.estimate.devices import GPUS, Device, core_of, gpu_named
from orchestrator.estimate.probe import measure
from orchestrator.estimate.report import Machine, Mean
from orchestrator.estimate.shape import ModelShape, read_shape
from replay.render import renderer
from replay.sources import open_source
from slipstream.config.job import JobConfig
from slipstream.config.load import load_job
from slipstream.errors import SlipstreamError
from slipstream.text import load_tokenizer

NUM_PROMPTS = 64  # looked at for their length
NUM_STEPS = 20  # of an earlier run, the last ones


def plan(
    file: Annotated[Path, typer.Argument(help="the job file")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="dotted key=value pairs laid over the file")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help=f"the GPUs of a job that uses any: {', '.join(GPUS)}")
    ] = None,
    answer_tokens: Annotated[
        float | None,
        typer.Option(min=1, help="mean length of answers; default: an earlier run's, or a guess"),
    ] = None,
    prompt_tokens: Annotated[
        float | None,
        typer.Option(min=1, help="mean length of prompts; default: that of the first ones"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Memory, step time and balance of a job before it runs; what to change where it does not fit.

    Exit code 1: it does not fit; 2: bad input. Nothing is started and nothing is downloaded.
    """
    with reported():
        job = load_job(file, overrides)
    with refused():
        shape = read_shape(job.model.path)
        report = estimate(
            job,
            shape,
            machine_of(job, shape, gpu),
            prompt=prompts_of(job, prompt_tokens),
            answer=answers_of(job, answer_tokens),
        )
    print_report(report, as_json=as_json)
    raise typer.Exit(0 if report.fits else 1)


def machine_of(job: JobConfig, shape: ModelShape, gpu: str | None) -> Machine:
    """Each role's device; a core is measured where one is used."""
    on_gpus = (job.rollout.gpus > 0, job.learner.gpus_per_rank > 0)
    if gpu is None and any(on_gpus):
        raise SlipstreamError(f"the job uses GPUs; say which with --gpu: {', '.join(GPUS)}")
    if gpu is not None and not any(on_gpus):
        raise SlipstreamError(
            "--gpu: the job uses no GPUs; set rollout.gpus=1 and learner.gpus_per_rank=1"
        )
    known = gpu_named(gpu) if gpu is not None else None
    cores = sorted(os.sched_getaffinity(0))
    core: Device | None = None
    if not all(on_gpus):
        core = core_of(measure(shape.hidden, shape.intermediate, cores[-1]))
    rollout, learner = (known if on_gpu else core for on_gpu in on_gpus)
    assert rollout is not None and learner is not None
    memory_bytes = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Machine(
        rollout=rollout, learner=learner, num_cores=len(cores), memory_bytes=memory_bytes
    )


def answers_of(job: JobConfig, given: float | None) -> Mean:
    if given is not None:
        return Mean(tokens=min(given, job.rollout.max_new_tokens), source="as given")
    if (earlier := _earlier_mean(job.run_dir)) is not None:
        tokens = min(earlier, job.rollout.max_new_tokens)
        return Mean(tokens=tokens, source=f"the last steps of {job.run_dir}")
    half = max(1.0, job.rollout.max_new_tokens / 2)
    return Mean(tokens=half, source="a guess: half of rollout.max_new_tokens")


def _earlier_mean(run_dir: Path) -> float | None:
    """Tokens an answer in the newest steps of a run, if there is one."""
    steps: deque[Mapping[str, Any]] = deque(maxlen=NUM_STEPS)
    with suppress(OSError), (run_dir / "metrics.jsonl").open("rb") as lines:
        for line in lines:
            if b'"kind": "step"' in line:
                with suppress(ValueError):  # cut
                    steps.append(json.loads(line))
    num_answers = sum(event.get("num_rollouts", 0) for event in steps)
    return sum(event["num_answer_tokens"] for event in steps) / num_answers if num_answers else None


def prompts_of(job: JobConfig, given: float | None) -> Mean:
    if given is not None:
        return Mean(tokens=given, source="as given")
    try:
        tokenizer = load_tokenizer(job.model)
        render, items = renderer(job.data.train, tokenizer), open_source(job.data.train)
        lengths = [len(render(items[i], i)[1]) for i in range(min(NUM_PROMPTS, len(items)))]
    except (SlipstreamError, ImportError, OSError, ValueError):
        half = max(1.0, job.data.max_prompt_tokens / 2)
        return Mean(tokens=half, source="a guess: half of data.max_prompt_tokens")
    kept = [length for length in lengths if length <= job.data.max_prompt_tokens] or [1]
    return Mean(tokens=sum(kept) / len(kept), source=f"the first {len(kept)}")
