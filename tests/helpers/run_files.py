"""Small run directories, written by hand, for what reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]
START_S = 1_000_000.0  # seconds since the epoch
JOB = """\
name: trial
mode: buffered
seed: 3
model: {path: models/tiny}
replay: {max_staleness: 2, on_stale: wait}
learner: {num_steps: 4, learning_rate: 0.001}
"""


def step(version: int, at_s: float, reward: float = 0.0, **more: Any) -> Event:
    """Two groups of 100 tokens; it waited for a quarter of its second."""
    fields = {
        "loss": 0.0,
        "reward": reward,
        "lags": {"0": 1, "1": 1},
        "num_groups": 2,
        "num_answer_tokens": 100,
        "seconds": {"wait": 0.25, "train": 0.75},
        "metrics": {},
    }
    return _event("step", "learner", at_s, version=version, **{**fields, **more})


def busy(at_s: float, index: int = 0, **more: Any) -> Event:
    fields = {"seconds": {"generate": 1.0}, "num_tokens": 50, "num_running": 1, "version": 0}
    return _event("busy", "rollout", at_s, index=index, **{**fields, **more})


def evaluated(version: int, at_s: float, accuracy: float, **more: Any) -> Event:
    fields = {
        "timeline": 0,
        "num_prompts": 10,
        "num_failures": 0,
        "greedy_accuracy": accuracy,
        "greedy_reward": accuracy,
        "sampled_reward": 0.5,
        "seconds": 1.0,
    }
    return _event("eval", "rollout", at_s, version=version, **{**fields, **more})


def went_back(version: int, timeline: int, at_s: float, cause: str = "learner-0 died") -> Event:
    fields = {"version": version, "timeline": timeline, "cause": cause}
    return _event("went_back", "driver", at_s, **fields)


def about_worker(kind: str, at_s: float, index: int = 0, **more: Any) -> Event:
    return _event(kind, "rollout", at_s, index=index, incarnation=0, **more)


def run_directory(
    path: Path, events: Iterable[Event], *, job: str = JOB, samples: Iterable[Event] = ()
) -> Path:
    """A run with these files alone."""
    path.mkdir(parents=True)
    (path / "job.yaml").write_text(job)
    (path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if lines := [json.dumps(sample) + "\n" for sample in samples]:
        (path / "samples.jsonl").write_text("".join(lines))
    return path


def _event(kind: str, role: str, at_s: float, *, index: int = 0, **fields: Any) -> Event:
    return {"kind": kind, "role": role, "index": index, "time_s": START_S + at_s, **fields}
