"""Each side alone on its own core, with the workload of a job file.

    python scripts/bench/alone.py rollout JOB.yaml NUM_STEPS [KEY=VALUE ...]
    python scripts/bench/alone.py learner JOB.yaml NUM_STEPS [KEY=VALUE ...]

Prints one JSON line: for every step its answer tokens and its seconds, the first steps left out.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from orchestrator.plan import make_plan
from slipstream.affinity import bind_process
from slipstream.config.job import JobConfig
from slipstream.config.load import load_job

NUM_WARM_STEPS = 2
NUM_BATCHES = 8  # that the learner trains on, again and again


def main() -> None:
    side, file, num_steps, *overrides = sys.argv[1:]
    job = load_job(Path(file), overrides)
    steps = {"rollout": rollout, "learner": learner}[side](job, NUM_WARM_STEPS + int(num_steps))
    print(json.dumps(list(steps)[NUM_WARM_STEPS:]))


def rollout(job: JobConfig, num_steps: int) -> Iterator[tuple[int, float]]:
    """(answer tokens, seconds) of generating one batch after another."""
    cores = make_plan(job).worker_cores[0]
    bind_process(cores)
    engine, prompts = open_engine(job, cores)
    for step in range(num_steps):
        start_s, answers = time.perf_counter(), generate(job, engine, prompts, step)
        yield sum(len(answer.token_ids) for answer in answers), time.perf_counter() - start_s
    engine.close()


def open_engine(job: JobConfig, cores: Any) -> tuple[Any, list[Any]]:
    """The engine with the start model's weights as version 0, and a batch of prompts."""
    from replay.render import renderer
    from replay.sources import open_source
    from rollout_worker.vllm_engine import VllmEngine, import_vllm
    from slipstream.text import eos_token_ids, load_tokenizer

    import_vllm(job.rollout, cores)
    tokenizer = load_tokenizer(job.model)
    render = renderer(job.data.train, tokenizer)
    items = open_source(job.data.train)
    count = job.learner.groups_per_batch
    prompts = [render(items[i % len(items)], i)[1] for i in range(count)]
    engine = VllmEngine(
        job.model,
        job.rollout,
        max_tokens=job.data.max_prompt_tokens + job.rollout.max_new_tokens,
        eos_token_ids=eos_token_ids(job.model, tokenizer),
        seed=job.seed,
    )
    engine.load(0, iter(start_weights(job).items()))
    return engine, prompts


def start_weights(job: JobConfig) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job.model.path, dtype=torch.float32)
    return {n: p.detach() for n, p in model.named_parameters(remove_duplicate=False)}


def generate(job: JobConfig, engine: Any, prompts: list[Any], step: int) -> list[Any]:
    """One batch, keeping `num_slots` rollouts in flight as the worker does."""
    from rollout_worker.engine import GenerationRequest

    requests = [
        GenerationRequest(
            request_id=f"{step}/{index}/{place}",
            prompt_token_ids=prompt,
            max_new_tokens=job.rollout.max_new_tokens,
            temperature=job.rollout.temperature,
            top_p=job.rollout.top_p,
            seed=(step * len(prompts) + index) * job.rollout.group_size + place,
        )
        for index, prompt in enumerate(prompts)
        for place in range(job.rollout.group_size)
    ]
    done: list[Any] = []
    while requests or engine.num_running:
        while requests and engine.num_running < job.rollout.num_slots:
            engine.submit(requests.pop())
        done.extend(engine.step())
    return done


def learner(job: JobConfig, num_steps: int) -> Iterator[tuple[int, float]]:
    """(answer tokens, seconds) of training on one batch after another, as generated."""
    # An engine changes the threads of its process: the batches are made in another.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        batches = pool.submit(make_batches, job).result()
    bind_process(make_plan(job).rank_cores[0])
    step = open_learner(job)
    for batch in islice(cycle(batches), num_steps):
        start_s = time.perf_counter()
        step.run(batch)
        yield batch.num_answer_tokens, time.perf_counter() - start_s


def make_batches(job: JobConfig) -> list[Any]:
    engine, prompts = open_engine(job, make_plan(job).worker_cores[0])
    batches = [
        to_batch(generate(job, engine, prompts, step), prompts, step) for step in range(NUM_BATCHES)
    ]
    engine.close()
    return batches


def to_batch(answers: list[Any], prompts: list[Any], step: int) -> Any:
    from slipstream.records import Batch, BatchGroup, Group, Rollout

    groups: dict[int, list[Rollout]] = {}
    for answer in sorted(answers, key=lambda a: [int(n) for n in a.request_id.split("/")]):
        index = int(answer.request_id.split("/")[1])
        groups.setdefault(index, []).append(
            Rollout(
                token_ids=answer.token_ids,
                logprobs=answer.logprobs,
                spans=answer.spans,
                finish_reason=answer.finish_reason,
                reward=float(answer.token_ids.sum() % 2),
            )
        )
    return Batch(
        version=step,
        groups=tuple(
            BatchGroup(
                group=Group(
                    lease_id=index,
                    worker="bench",
                    incarnation=0,
                    ordinal=index,
                    attempt=0,
                    prompt_token_ids=prompts[index],
                    rollouts=tuple(rollouts),
                ),
                lag=0,
                use=1,
            )
            for index, rollouts in groups.items()
        ),
    )


def open_learner(job: JobConfig) -> Any:
    os.environ.update(
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
        DS_ACCELERATOR="cpu",
    )
    import torch
    import torch.distributed as dist

    from learner.engine import LearnerEngine
    from learner.policy import load_policy
    from learner.step import LearnerStep

    torch.set_num_threads(job.learner.cpus_per_rank)
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    engine = LearnerEngine(load_policy(job.model), job, torch.device("cpu"))
    return LearnerStep(job, engine, None)


def free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    main()
