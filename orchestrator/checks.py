"""What can be known to be wrong before anything is started.

`preflight` looks at files and imports the reward; `fits` compares a plan with a cluster.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from learner.checkpoint import find
from orchestrator import run_lease
from orchestrator.plan import Plan
from orchestrator.trackers.tracker import is_installed
from rollout_worker.rewards import build_reward
from slipstream.config.compare import breaking_differences
from slipstream.config.job import (
    DataConfig,
    JobConfig,
    JsonlSource,
    ModelConfig,
    ParquetSource,
    RewardConfig,
    TelemetryConfig,
)
from slipstream.config.load import JobFile
from slipstream.errors import Problem, SlipstreamError


def preflight(
    file: JobFile,
    job_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    to_start: bool = True,
) -> list[Problem]:
    """Everything that this machine's files tell against the sections that could be read.

    `to_start`: the job is to be started now, so no other driver may be at work on its run.
    """
    sections = file.sections
    findings: list[tuple[str, str]] = []
    if "model" in sections:
        findings += _model(sections["model"])
    if "data" in sections:
        findings += _data(sections["data"])
    if "reward" in sections:
        findings += _reward(sections["reward"], job_dir)
    if "telemetry" in sections:
        findings += _telemetry(sections["telemetry"])
    if file.job is not None:
        findings += _run_dir(file.job, resume=resume, overwrite=overwrite, to_start=to_start)
    return [file.problem(key, message) for key, message in findings]


def fits(plan: Plan, available: Mapping[str, float], where: str) -> list[Problem]:
    """What the plan asks for and the cluster does not have at all."""
    return [
        Problem(
            where,
            "",
            f"the job asks for {asked} {name}, the cluster has {available.get(name, 0):g}; lower "
            f"rollout.num_workers, learner.num_ranks or their {name}s, or add nodes",
        )
        for name, asked in plan.totals().items()
        if asked > available.get(name, 0)
    ]


def _model(model: ModelConfig) -> Iterator[tuple[str, str]]:
    path = Path(model.path)
    if not path.is_dir():
        if path.is_absolute() or model.path.startswith(".") or model.path.count("/") != 1:
            yield "model.path", f"{path} is no directory here, and no name of the form owner/model"
        return
    try:
        json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield "model.path", f"{path} has no config.json; expected a Hugging Face model directory"
    except (OSError, ValueError) as error:
        yield "model.path", f"{path / 'config.json'} cannot be read: {error}"
    if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")):
        yield "model.path", f"{path} holds no weights; expected *.safetensors"
    if model.tokenizer is None and not any(path.glob("tokenizer*")):
        yield "model.tokenizer", f"{path} holds no tokenizer; name one"
    if model.chat_template is not None and not model.chat_template.is_file():
        yield "model.chat_template", f"{model.chat_template} does not exist"


def _data(data: DataConfig) -> Iterator[tuple[str, str]]:
    for key, source in (("data.train", data.train), ("data.eval", data.eval)):
        if not isinstance(source, JsonlSource | ParquetSource):
            continue
        if not source.path.exists():
            yield f"{key}.path", f"{source.path} does not exist"
        elif source.path.is_file() and source.path.stat().st_size == 0:
            yield f"{key}.path", f"{source.path} is empty"


def _telemetry(telemetry: TelemetryConfig) -> Iterator[tuple[str, str]]:
    for place, name in enumerate(telemetry.trackers):
        if not is_installed(name):
            yield (
                f"telemetry.trackers[{place}]",
                f"{name} is not installed here; run `pip install 'slipstream-rl[trackers]'`, or "
                "leave it out",
            )


def _reward(reward: RewardConfig, job_dir: Path) -> Iterator[tuple[str, str]]:
    if reward.kind != "function":
        return
    before = list(sys.path)
    sys.path[:0] = import_dirs(job_dir)
    try:
        build_reward(reward)
    except SlipstreamError as error:
        yield "reward.path", f"{error} (looked in {job_dir.resolve()} and {Path.cwd()} first)"
    finally:
        sys.path[:] = before


def import_dirs(job_dir: Path) -> list[str]:
    """Where a reward function is looked for before the installed packages."""
    return [str(job_dir.resolve()), str(Path.cwd())]


def _run_dir(
    job: JobConfig, *, resume: bool, overwrite: bool, to_start: bool
) -> Iterator[tuple[str, str]]:
    run_dir = job.run_dir.resolve()
    if to_start and (message := run_lease.refusal(run_dir)):
        yield "name", message
        return
    if resume and overwrite:
        yield "name", "--overwrite would delete the commit that --resume starts from; choose one"
    elif resume:
        yield from _commit(job, run_dir)
    elif run_dir.exists() and not overwrite:
        yield (
            "name",
            f"{job.run_dir} exists; go on with --resume, start anew with --overwrite, or choose "
            "another name",
        )
    if overwrite and Path(job.model.path).resolve().is_relative_to(run_dir):
        yield "model.path", f"lies in {job.run_dir}, which --overwrite deletes; choose another name"
    there = next(path for path in [run_dir, *run_dir.parents] if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        yield (
            "checkpoint.dir",
            f"{there} cannot be written; make it a directory that can, or name another one",
        )


def _commit(job: JobConfig, run_dir: Path) -> Iterator[tuple[str, str]]:
    """The run may go on from its newest commit under this job. The learner's files, many GB, are
    read when the job starts; a truncated one is found here too."""
    try:
        commit = find(run_dir / "checkpoints", contents=False).required()
    except SlipstreamError as error:
        yield "name", str(error)
        return
    for key, committed, mine in breaking_differences(commit.job, job):
        yield (
            key,
            f"is {mine}, but the commit was made with {committed} ({commit.path}), and the run "
            "would be another one; set it back, or launch under another name",
        )
