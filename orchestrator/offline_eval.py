"""`slipstream eval`: a saved model on a job's held-out sets, with the same engine and rewards.

MODEL_DIR, or RUN ──▶ a transformers directory ──▶ evaluate_alone ──▶ a table, or JSON
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from learner.best import read_best
from learner.checkpoint import read_manifest, steps, version_of
from orchestrator.run_files import NoRun, find_run
from slipstream.config.job import JobConfig
from slipstream.errors import JobFileError, Problem, SlipstreamError

FIGURES = ("greedy_accuracy", "greedy_reward", "sampled_reward")
MODEL = "model"  # of a commit's directory


class NoModel(SlipstreamError):
    """There is no such model; `str()` says what there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A directory in Hugging Face format; `version` where it is of a run."""

    path: Path
    version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """What came of each held-out set: the fields of its `eval` event."""

    model: Model
    sets: Mapping[str, Mapping[str, Any]]

    def as_json(self) -> dict[str, Any]:
        return {
            "model": str(self.model.path),
            "version": self.model.version,
            "sets": {name: dict(found) for name, found in self.sets.items()},
        }

    def as_text(self) -> RenderableType:
        title = f"Evaluation of {self.model.path}"
        table = Table(title=title, title_justify="left")
        ks = sorted({k for found in self.sets.values() for k in found["pass_at"]})
        headings = ("set", "prompts", "failures", *FIGURES, *(f"pass@{k}" for k in ks), "seconds")
        for heading in headings:
            table.add_column(heading.replace("_", " "))
        for name, found in self.sets.items():
            counts = (str(found["num_prompts"]), str(found["num_failures"]))
            values = (*(found[f] for f in FIGURES), *(found["pass_at"].get(k) for k in ks))
            shown = ("-" if value is None else f"{value:.3f}" for value in values)
            table.add_row(name, *counts, *shown, f"{found['seconds']:.1f}")
        return table


def find_model(name: str, *, version: int | None, best: bool) -> Model:
    """A model's directory, or one of a run's commits: the newest, the best, or that of `version`.

    Raises NoModel, NoRun.
    """
    directory = Path(name)
    if (directory / "config.json").is_file():
        if version is not None or best:
            raise NoModel(f"{name} is one model and no run: --version and --best choose of a run")
        return Model(path=directory)
    try:
        checkpoints = find_run(name) / "checkpoints"
    except NoRun:
        raise NoModel(
            f"there is no {name}: expected a model's directory, with its config.json, or a run's "
            "directory or name"
        ) from None
    commit = _commit(checkpoints, version=version, best=best)
    return Model(path=commit / MODEL, version=read_manifest(commit)["version"])


def _commit(checkpoints: Path, *, version: int | None, best: bool) -> Path:
    commits = steps(checkpoints)  # newest first
    if not commits:
        raise NoModel(f"{checkpoints} holds no commit")
    if best:
        found = read_best(checkpoints)
        if found is None:
            raise NoModel(
                f"{checkpoints} names no best commit; set checkpoint.keep_best in its job"
            )
        return checkpoints / found.commit
    wanted = [path for path in commits if version in (None, version_of(path))]
    if not wanted:
        there = ", ".join(str(version_of(path)) for path in reversed(commits))
        raise NoModel(f"{checkpoints} holds no commit of version {version}; there is {there}")
    return wanted[0]


def evaluate(job: JobConfig, model: Model) -> EvalReport:
    """Answer every held-out set of `job`. Raises JobFileError, SlipstreamError."""
    # Heavy imports, which only this needs.
    from replay.held_out import held_out_prompts
    from replay.sources import DataError
    from rollout_worker.alone import evaluate_alone
    from slipstream.text import load_tokenizer

    own = job_of(job, model)
    try:
        sets = held_out_prompts(own, load_tokenizer(own.model))
    except DataError as error:
        raise JobFileError([Problem("data", "", str(error))]) from None
    cores = sorted(os.sched_getaffinity(0))[: own.rollout.cpus]
    events = evaluate_alone(own, sets, () if own.rollout.gpus else cores)
    return EvalReport(model=model, sets={event["set"]: _figures(event) for event in events})


def job_of(job: JobConfig, model: Model) -> JobConfig:
    """`job` with that model; with the tokenizer of its own, where the model brings none."""
    has_tokenizer = any(model.path.glob("tokenizer*"))
    tokenizer = job.model.tokenizer or (None if has_tokenizer else job.model.path)
    changed = {"path": str(model.path), "revision": None, "tokenizer": tokenizer}
    # Nobody shares the device with it.
    rollout = job.rollout.model_copy(update={"colocate": False})
    weights = job.weights.model_copy(update={"transport": "object_store"})
    update = {
        "model": job.model.model_copy(update=changed),
        "rollout": rollout,
        "weights": weights,
    }
    return job.model_copy(update=update)


def _figures(event: Mapping[str, Any]) -> dict[str, Any]:
    keys: Sequence[str] = ("num_prompts", "num_failures", *FIGURES, "pass_at", "seconds")
    return {key: event[key] for key in keys}
