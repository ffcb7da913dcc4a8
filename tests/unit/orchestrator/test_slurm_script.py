"""Batch scripts for Slurm: which nodes they ask for, and that bash takes them. One runs for real in
tests/integration/test_slurm.py."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from orchestrator.deploy.slurm import Options, limit_of, nodes_of, script
from slipstream.config.load import load_job

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted(ROOT.glob("examples/*/*.yaml"))
MULTINODE = ROOT / "examples" / "arithmetic" / "multinode.yaml"
BUFFERED = ROOT / "examples" / "arithmetic" / "buffered.yaml"
SYNC = ROOT / "examples" / "arithmetic" / "sync.yaml"


def text_of(file: Path, *overrides: str, **options: object) -> str:
    made = Options(**options)  # type: ignore[arg-type]
    return script(load_job(file, list(overrides)), file, list(overrides), made)


def roles(file: Path, *overrides: str, **options: int) -> tuple[list[str], int, int]:
    """The role of each node, and the CPUs and GPUs that each has."""
    found = nodes_of(load_job(file, list(overrides)), Options(**options))
    return [node.labels["slipstream-role"] for node in found.nodes], found.cpus, found.gpus


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_bash_takes_every_one(file: Path) -> None:
    text = text_of(file)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, "-"], input=text, text=True, check=True)


def test_directives_come_before_any_command() -> None:
    lines = text_of(MULTINODE, time="4:00:00", partition="long", account="us").splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[1 : 1 + len(directives)] == directives
    for option in ("--time=4:00:00", "--partition=long", "--account=us", "--requeue", "--no-kill"):
        assert f"#SBATCH {option}" in directives
    assert not [line for line in directives if "gpus" in line]
    # A step may take 600 s, a worker 30 to hand over, a role 30 to close.
    assert "#SBATCH --signal=B:USR1@660" in directives


def test_as_few_nodes_as_hold_the_roles() -> None:
    # 20 workers of one GPU on nodes of 8: 3 nodes; 12 ranks: 2.
    counts = ("rollout.num_workers=20", "learner.num_ranks=12")
    gpus = ("rollout.gpus=1", "learner.gpus_per_rank=1", "rollout.cpus=2")
    found = roles(MULTINODE, *counts, *gpus)
    assert found == (["learner"] * 2 + ["rollout"] * 3, 16, 8)
    assert roles(MULTINODE, *counts, cpus_per_node=10) == (
        ["learner"] * 2 + ["rollout"] * 2,
        10,
        0,
    )
    scale = "rollout.autoscale={min_workers: 1, max_workers: 9}"
    assert roles(MULTINODE, scale, cpus_per_node=4)[0] == ["learner"] + ["rollout"] * 3


def test_a_small_job_has_one_node_unless_its_placement_says_otherwise() -> None:
    gpus = ("rollout.gpus=1", "learner.gpus_per_rank=1", "rollout.num_workers=3")
    assert roles(BUFFERED, *gpus, "learner.num_ranks=4") == (["all"], 7, 7)
    assert roles(BUFFERED, *gpus, "learner.num_ranks=6") == (["learner", "rollout"], 6, 6)
    assert roles(MULTINODE, *gpus) == (["learner", "rollout"], 3, 3)
    assert "placement" not in text_of(BUFFERED)
    large = text_of(BUFFERED, "rollout.num_workers=40")
    assert """'rollout.placement={"labels": {"slipstream-role": "rollout"}""" in large


def test_one_node_has_the_custom_resources_of_both_roles() -> None:
    asked = ("rollout.placement={resources: {fast: 2}}", "learner.placement={resources: {fast: 1}}")
    (node,) = nodes_of(load_job(BUFFERED, [*asked, "rollout.num_workers=3"]), Options()).nodes
    assert node.resources == {"fast": 7}


def test_times_as_sbatch_takes_them() -> None:
    given = ("90", "90:30", "1:30:30", "2-3", "2-3:30", "2-3:30:30", "UNLIMITED")
    hours = 3600
    assert [limit_of(time) for time in given] == [
        *(5400, 5430, 5430, 51 * hours, 51.5 * hours, 51.5 * hours + 30, math.inf)
    ]


def test_a_time_that_leaves_none_to_work_is_refused() -> None:
    text_of(MULTINODE, time="21")  # minutes; 660 s for the last step and 600 before
    with pytest.raises(ValueError, match=r"--time 20 is too short: .* give 21 minutes"):
        text_of(MULTINODE, time="20")


def test_on_shared_devices_there_are_the_learners_nodes_alone() -> None:
    assert roles(SYNC, "rollout.num_workers=2", "learner.num_ranks=20", cpus_per_node=8) == (
        ["learner"] * 3,
        8,
        0,
    )


def test_an_actor_that_fits_on_no_node_is_said() -> None:
    message = "one rollout actor asks for 32 CPUs, and --cpus-per-node is 16"
    with pytest.raises(ValueError, match=message):
        nodes_of(load_job(MULTINODE, ["rollout.cpus=32"]), Options())


def test_overrides_go_along_quoted() -> None:
    override = "data.train.prompt_template=it's {question} $HOME"
    (line,) = [
        line for line in text_of(MULTINODE, override).splitlines() if line.startswith("LAUNCH=(")
    ]
    assert shlex.split(line[len("LAUNCH=(") : -1]) == [str(MULTINODE), override]


PROGRAMS = {  # what the script calls; each says that it was
    "hostname": "echo 127.0.0.1",
    "python": '[ ! -e "$HERE/slow" ] || { touch "$HERE/joining"; exec sleep 30; }',
    "ray": "",
    "scontrol": '[ "$1" != show ] || echo node1',
    "slipstream": "",
    "srun": "exec sleep 30",
}


def batch(directory: Path, script_text: str) -> subprocess.Popen[str]:
    """`sbatch` of a script whose programs do nothing."""
    for name, body in PROGRAMS.items():
        file = directory / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'#!/bin/bash\necho "{name} $*" >>"$HERE/calls"\n{body}\n')
        file.chmod(0o755)
    (directory / "job.sh").write_text(script_text)
    settings = {
        "PATH": f"{directory / 'bin'}:{os.environ['PATH']}",
        "HERE": str(directory),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node1",
    }
    return subprocess.Popen(
        ["bash", "job.sh"], cwd=directory, env={**os.environ, **settings}, text=True
    )


def calls(directory: Path) -> str:
    return (directory / "calls").read_text()


def test_a_run_without_a_commit_is_begun_anew_and_one_with_it_goes_on(tmp_path: Path) -> None:
    text = text_of(BUFFERED, "name=trial")
    run = tmp_path / "runs" / "trial"
    for expected in ("--address 127.0.0.1:20007", "--overwrite", "--resume"):
        if expected == "--overwrite":
            run.mkdir()
        if expected == "--resume":
            (run / "checkpoints" / "step-00000001-t0000").mkdir(parents=True)
        assert batch(tmp_path, text).wait(timeout=30) == 0
        launches = [line for line in calls(tmp_path).splitlines() if "slipstream launch" in line]
        assert launches[-1].strip().endswith(expected)
    assert run.parent.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(("number", "requeues"), [(signal.SIGUSR1, 1), (signal.SIGTERM, 0)])
def test_a_signal_while_nodes_join(tmp_path: Path, number: signal.Signals, requeues: int) -> None:
    (tmp_path / "slow").touch()
    job = batch(tmp_path, text_of(BUFFERED, "name=trial"))
    deadline_s = time.monotonic() + 30
    while not (tmp_path / "joining").exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    job.send_signal(number)
    assert job.wait(timeout=20) == 130
    assert calls(tmp_path).count("scontrol requeue 7") == requeues
    assert "slipstream launch" not in calls(tmp_path)
