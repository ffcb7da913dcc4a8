"""What can be known to be wrong before anything is started.

`preflight` looks at files and imports the reward; `fits` compares a plan with a cluster.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.plan import Plan
from rollout_worker.rewards import build_reward
from slipstream.config.job import JobConfig, JsonlSource, ParquetSource
from slipstream.errors import Problem, SlipstreamError


def preflight(
    job: JobConfig, job_file: Path, *, resume: bool = False, overwrite: bool = False
) -> list[Problem]:
    """Everything that this machine's files tell against the job."""
    findings = [*_model(job), *_data(job), *_reward(job, job_file.parent)]
    findings += _run_dir(job, resume=resume, overwrite=overwrite)
    return [Problem(str(job_file), key, message) for key, message in findings]


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


def _model(job: JobConfig) -> Iterator[tuple[str, str]]:
    path = Path(job.model.path)
    if not path.is_dir():
        if path.is_absolute() or job.model.path.startswith(".") or job.model.path.count("/") != 1:
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
    if job.model.tokenizer is None and not any(path.glob("tokenizer*")):
        yield "model.tokenizer", f"{path} holds no tokenizer; name one"
    if job.model.chat_template is not None and not job.model.chat_template.is_file():
        yield "model.chat_template", f"{job.model.chat_template} does not exist"


def _data(job: JobConfig) -> Iterator[tuple[str, str]]:
    for key, source in (("data.train", job.data.train), ("data.eval", job.data.eval)):
        if not isinstance(source, JsonlSource | ParquetSource):
            continue
        if not source.path.exists():
            yield f"{key}.path", f"{source.path} does not exist"
        elif source.path.is_file() and source.path.stat().st_size == 0:
            yield f"{key}.path", f"{source.path} is empty"


def _reward(job: JobConfig, job_dir: Path) -> Iterator[tuple[str, str]]:
    if job.reward.kind != "function":
        return
    before = list(sys.path)
    sys.path[:0] = import_dirs(job_dir)
    try:
        build_reward(job.reward)
    except SlipstreamError as error:
        yield "reward.path", f"{error} (looked in {job_dir.resolve()} and {Path.cwd()} first)"
    finally:
        sys.path[:] = before


def import_dirs(job_dir: Path) -> list[str]:
    """Where a reward function is looked for before the installed packages."""
    return [str(job_dir.resolve()), str(Path.cwd())]


def _run_dir(job: JobConfig, *, resume: bool, overwrite: bool) -> Iterator[tuple[str, str]]:
    latest = job.run_dir / "checkpoints" / "latest"
    if resume and not latest.is_file():
        yield "name", f"{job.run_dir} holds no commit to resume from; launch without --resume"
    if job.run_dir.exists() and not (resume or overwrite):
        yield (
            "name",
            f"{job.run_dir} exists; go on with --resume, start anew with --overwrite, or choose "
            "another name",
        )
