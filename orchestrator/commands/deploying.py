"""Commands that write files for clusters: render kuberay, render slurm."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from orchestrator.commands.common import reported
from orchestrator.deploy import kuberay, slurm
from orchestrator.deploy.groups import ROLES, Role
from orchestrator.deploy.manifest_yaml import to_yaml
from orchestrator.deploy.rules import violations
from slipstream import __version__
from slipstream.config.job import JobConfig
from slipstream.config.load import load_job
from slipstream.errors import JobFileError, Problem

app = typer.Typer(no_args_is_help=True, help="Write a job as files for a cluster.")
COMMAND_LINE = "command line"

File = Annotated[Path, typer.Argument(help="the job file")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="dotted key=value pairs laid over the file")
]
Out = Annotated[Path | None, typer.Option(help="the file to write; default: print")]


@app.command("kuberay")
def render_kuberay(
    file: File,
    volume: Annotated[str, typer.Option(help="claim of a volume that all pods may write")],
    overrides: Overrides = None,
    out: Out = None,
    namespace: Annotated[str | None, typer.Option(help="default: kubectl's")] = None,
    queue: Annotated[
        str | None, typer.Option(help="Kueue's LocalQueue; then there is no autoscaler")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="IMAGE, or ROLE=IMAGE; roles: head, rollout, learner")
    ] = None,
    memory: Annotated[
        list[str] | None, typer.Option(help="ROLE=GIB of a pod; default: by rule of thumb")
    ] = None,
    spot: Annotated[
        str | None, typer.Option(help="KEY=VALUE, label and taint of nodes for rollout workers")
    ] = None,
    secret: Annotated[
        str | None, typer.Option(help="a Secret whose keys become environment variables")
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option(help="where the model and data beside FILE lie in the pods [VOLUME/files]"),
    ] = None,
    ranks_per_pod: Annotated[int, typer.Option(min=1, help="learner ranks in one pod")] = 8,
) -> None:
    """Write a RayJob for KubeRay (1.5.1 or later), with a ConfigMap that holds the job file."""
    with reported():
        job = load_job(file, overrides)
        options = kuberay.Options(
            volume=volume,
            ray_version=version("ray"),
            images=_images(job, image or []),
            memory_gib=_memory(memory or []),
            namespace=namespace,
            queue=queue,
            spot=_pair("--spot", spot) if spot else None,
            secret=secret,
            files=_absolute("--files", files) if files else None,
            ranks_per_pod=ranks_per_pod,
        )
        try:
            manifests, carried = kuberay.render(job, file.parent, options)
        except ValueError as error:
            raise _bad(str(error)) from None
        if problems := violations(manifests[-1]):
            raise JobFileError([Problem(str(file), "", f"KubeRay: {one}") for one in problems])
        _write(to_yaml(manifests), out)
    if (name := manifests[-1]["metadata"]["name"]) != job.name:
        _note(f"Kubernetes takes no name {job.name!r}: the RayJob is called {name}")
    if carried.needs:
        _note(f"must be there in the pods, by image or volume: {', '.join(carried.needs)}")


@app.command("slurm")
def render_slurm(
    file: File,
    overrides: Overrides = None,
    out: Out = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="of nodes with GPUs")] = 8,
    cpus_per_node: Annotated[int, typer.Option(min=1, help="of nodes without GPUs")] = 16,
    time: Annotated[str | None, typer.Option(help="limit, as sbatch takes it")] = None,
    partition: Annotated[str | None, typer.Option(help="as sbatch takes it")] = None,
    account: Annotated[str | None, typer.Option(help="as sbatch takes it")] = None,
) -> None:
    """Write a batch script for Slurm. Submit it from a directory that all nodes share."""
    with reported():
        job = load_job(file, overrides)
        options = slurm.Options(
            gpus_per_node=gpus_per_node,
            cpus_per_node=cpus_per_node,
            time=time,
            partition=partition,
            account=account,
        )
        try:
            text = slurm.script(job, file, overrides or [], options)
        except ValueError as error:
            raise _bad(str(error)) from None
        _write(text, out)


def _images(job: JobConfig, given: Sequence[str]) -> dict[Role, str]:
    """Of each role: those of deploy/docker where nothing is said. The head reads the data, as the
    rollout image can."""
    if job.rollout.gpus or job.learner.gpus_per_rank:
        usual = {"head": "rollout", "rollout": "rollout", "learner": "learner"}
    else:
        usual = dict.fromkeys(ROLES, "cpu")
    images: dict[Role, str] = {role: f"slipstream-{usual[role]}:{__version__}" for role in ROLES}
    if job.rollout.colocate and usual["learner"] == "learner":
        images["learner"] = f"slipstream-all:{__version__}"
    for text in given:
        name, equals, value = text.partition("=")
        images.update({_role("--image", name): value} if equals else dict.fromkeys(ROLES, text))
    return images


def _memory(given: Sequence[str]) -> Mapping[Role, int]:
    pairs = [_pair("--memory", text) for text in given]
    if wrong := [value for _, value in pairs if not value.isdigit() or int(value) == 0]:
        raise _bad(f"--memory: {wrong[0]!r} is no whole number of GiB")
    return {_role("--memory", name): int(value) for name, value in pairs}


def _role(option: str, name: str) -> Role:
    for role in ROLES:
        if role == name:
            return role
    raise _bad(f"{option}: {name!r} is no role; expected one of {', '.join(ROLES)}")


def _pair(option: str, text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not key or not value:
        raise _bad(f"{option}: {text!r} is not of the form KEY=VALUE")
    return key, value


def _absolute(option: str, path: Path) -> PurePosixPath:
    if not path.is_absolute():
        raise _bad(f"{option}: {path} is not absolute; pods have no directory to start from")
    return PurePosixPath(path)


def _bad(message: str) -> JobFileError:
    return JobFileError([Problem(COMMAND_LINE, "", message)])


def _write(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _bad(f"--out: {out} cannot be written: {error.strerror}") from None


def _note(message: str) -> None:
    print(f"slipstream: {message}", file=sys.stderr)
