"""What can be known to be wrong before anything is started.

`preflight` looks at files and imports the reward; `fits` compares a plan with a cluster.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from learner.checkpoint import find
from orchestrator import run_lease
from orchestrator.plan import Plan
from orchestrator.run_files import no_run, outside
from orchestrator.trackers.tracker import is_installed
from rollout_worker.rewards import build_reward
from slipstream.config.compare import breaking_differences
from slipstream.config.job import (
    DataConfig,
    DataSource,
    HubSource,
    JobConfig,
    JsonlSource,
    ModelConfig,
    ParquetSource,
    RewardConfig,
    TelemetryConfig,
)
from slipstream.config.load import JobFile, read_job_file
from slipstream.errors import JobFileError, Problem, SlipstreamError


def checked_job(
    path: Path,
    overrides: list[str] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    to_start: bool = True,
) -> JobConfig:
    """The job, if neither the file nor what it names is wrong. Raises JobFileError with every
    problem at once."""
    read = read_job_file(path, overrides)
    problems = [
        *read.problems,
        *preflight(read, path.parent, resume=resume, overwrite=overwrite, to_start=to_start),
    ]
    if problems or read.job is None:
        raise JobFileError(problems)
    return read.job


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
        findings += _model(sections["model"], job_dir)
    if "data" in sections:
        findings += _data(sections["data"])
    if "reward" in sections:
        findings += _reward(sections["reward"], job_dir)
    if "telemetry" in sections:
        findings += _telemetry(sections["telemetry"])
    if file.job is not None:
        findings += _run_dir(file.job, resume=resume, overwrite=overwrite, to_start=to_start)
        inside = Path(file.places.file).resolve().is_relative_to(file.job.run_dir.resolve())
        if inside and overwrite and to_start:
            where = f"{file.places.file} lies in {file.job.run_dir}"
            findings.append(("name", f"{where}, which --overwrite deletes; copy it elsewhere"))
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


def _model(model: ModelConfig, job_dir: Path) -> Iterator[tuple[str, str]]:
    path = Path(model.path)
    if model.chat_template is not None and not model.chat_template.is_file():
        yield "model.chat_template", f"{model.chat_template} does not exist"
    if path.is_dir():
        yield from _model_dir(model, path)
    elif path.is_absolute() or model.path.startswith(".") or model.path.count("/") != 1:
        there = path if path.is_absolute() else job_dir.resolve() / path
        yield "model.path", f"there is no directory {there}; a name is of the form owner/model"


def _model_dir(model: ModelConfig, path: Path) -> Iterator[tuple[str, str]]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield "model.path", f"{path} has no config.json; expected a Hugging Face model directory"
    except (OSError, ValueError) as error:
        yield "model.path", f"{path / 'config.json'} cannot be read: {error}"
    else:
        if "auto_map" in config and not _is_known(config):
            yield (
                "model.path",
                f"{path} brings Python code of its own, which is not run from a directory; name "
                "the model as owner/model, with trust_remote_code and a commit as revision",
            )
    if model.trust_remote_code:
        yield (
            "model.trust_remote_code",
            f"{path} is a directory, whose code no revision pins; name the model as owner/model, "
            "or set it to false",
        )
    if not any(path.glob("*.safetensors")):
        pickled = any(path.glob("*.bin")) or any(path.glob("*.pt"))
        remedy = (
            "; its *.bin or *.pt files are pickles, which can run code: where you trust them, save "
            "the model again with transformers (from_pretrained, then save_pretrained)"
        )
        yield (
            "model.path",
            f"{path} holds no weights; expected *.safetensors{remedy if pickled else ''}",
        )
    if model.tokenizer is None and not any(path.glob("tokenizer*")):
        yield "model.tokenizer", f"{path} holds no tokenizer; name one"


def _is_known(config: Mapping[str, Any]) -> bool:
    """Whether transformers has the model itself, so that it needs no code of its own."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING


def _data(data: DataConfig) -> Iterator[tuple[str, str]]:
    for key, source in _sources(data):
        if not isinstance(source, JsonlSource | ParquetSource):
            continue
        if not source.path.exists():
            yield f"{key}.path", f"{source.path} does not exist"
        elif source.path.is_file() and source.path.stat().st_size == 0:
            yield f"{key}.path", f"{source.path} is empty"


def _sources(data: DataConfig) -> Iterator[tuple[str, DataSource | None]]:
    yield "data.train", data.train
    yield "data.eval", data.eval
    for name, source in data.eval_sets.items():
        yield f"data.eval_sets.{name}", source


def _telemetry(telemetry: TelemetryConfig) -> Iterator[tuple[str, str]]:
    for name in telemetry.trackers:
        if not is_installed(name):
            yield (
                "telemetry.trackers",
                f"{name} is not installed here; run `pip install 'slipstream-rl[trackers]'`, or "
                "leave it out",
            )


def _reward(reward: RewardConfig, job_dir: Path) -> Iterator[tuple[str, str]]:
    if reward.kind != "function":
        return
    before, looked = list(sys.path), dict.fromkeys(import_dirs(job_dir))
    sys.path[:0] = looked
    try:
        build_reward(reward)
    except SlipstreamError as error:
        said = str(error).removeprefix("reward.path ")
        yield "reward.path", f"{said} (looked in {' and '.join(looked)} first)"
    finally:
        sys.path[:] = before


def import_dirs(job_dir: Path) -> list[str]:
    """Where a reward function is looked for before the installed packages."""
    return [str(job_dir.resolve()), str(Path.cwd())]


def _run_dir(
    job: JobConfig, *, resume: bool, overwrite: bool, to_start: bool
) -> Iterator[tuple[str, str]]:
    run_dir = job.run_dir.resolve()
    if message := outside(job.checkpoint.dir, job.run_dir):
        yield "name", message
        return
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
    if to_start and overwrite and (message := no_run(run_dir)):
        yield "name", message
    if to_start and overwrite:
        for key, path in _paths(job):
            if path.resolve().is_relative_to(run_dir):
                yield key, f"{path} lies in {job.run_dir}, which --overwrite deletes; move one"
    there = next(path for path in [run_dir, *run_dir.parents] if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        yield (
            "checkpoint.dir",
            f"{there} cannot be written; make it a directory that can, or name another one",
        )


def _paths(job: JobConfig) -> Iterator[tuple[str, Path]]:
    """What the job reads; a name on the hub is no less a path that is nowhere."""
    yield "model.path", Path(job.model.path)
    if job.model.tokenizer is not None:
        yield "model.tokenizer", Path(job.model.tokenizer)
    if job.model.chat_template is not None:
        yield "model.chat_template", job.model.chat_template
    for key, source in _sources(job.data):
        if isinstance(source, JsonlSource | ParquetSource):
            yield f"{key}.path", source.path
        elif isinstance(source, HubSource):
            yield f"{key}.name", Path(source.name)
    if job.reward.kind == "function":
        module = sys.modules.get(job.reward.path.partition(":")[0])  # `_reward` has imported it
        if module is not None and module.__file__ is not None:
            yield "reward.path", Path(module.__file__)


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
