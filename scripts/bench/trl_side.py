"""TRL's GRPOTrainer on the same model, prompts, dtype and number of samples.

    .venv-trl/bin/python scripts/bench/trl_side.py SETTINGS.json

Runs in an environment of its own (`scripts/environment.sh`), with Hugging Face generate and both
cores for both phases, as TRL does without a GPU. The whole batch is one forward and backward,
which is the quickest of its settings here. Prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from bench_rewards import even_share
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class StepTimes(TrainerCallback):  # type: ignore[misc]
    """When each optimizer step ended."""

    def __init__(self) -> None:
        self.ended_s: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended_s.append(time.perf_counter())


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    num_samples = settings["num_prompts"] * settings["group_size"]
    tokens: list[int] = []

    def reward(completion_ids: list[list[int]], completions: list[str], **item: Any) -> list[float]:
        tokens.append(sum(len(ids) for ids in completion_ids))
        if "answer" in item:
            return [float(c == a) for c, a in zip(completions, item["answer"], strict=True)]
        return [even_share("", completion, {}) for completion in completions]

    times = StepTimes()
    trainer = GRPOTrainer(
        model=settings["model"],
        reward_funcs=reward,
        args=config(settings, num_samples),
        train_dataset=Dataset.from_list(settings["items"]),
        callbacks=[times],
    )
    trainer.train()
    warm = settings["num_warm_steps"]
    steps = [
        (num_tokens, ended_s - before_s)
        for num_tokens, before_s, ended_s in zip(
            tokens[warm:], times.ended_s[warm - 1 :], times.ended_s[warm:], strict=False
        )
    ]
    versions = {
        "trl": trl.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps({"steps": steps, "versions": versions}))


def config(settings: dict[str, Any], num_samples: int) -> GRPOConfig:
    return GRPOConfig(
        output_dir=settings["out"],
        use_cpu=True,
        bf16=False,
        model_init_kwargs={"dtype": "float32"},
        per_device_train_batch_size=num_samples,
        gradient_accumulation_steps=1,
        num_generations=settings["group_size"],
        max_completion_length=settings["max_new_tokens"],
        max_steps=settings["num_warm_steps"] + settings["num_steps"],
        learning_rate=settings["learning_rate"],
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        loss_type="dapo",  # the mean over all tokens of the batch
        gradient_checkpointing=False,
        logging_steps=1000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=1,
    )


if __name__ == "__main__":
    main()
