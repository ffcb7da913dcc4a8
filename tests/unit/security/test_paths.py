"""A run writes and deletes in <checkpoint.dir>/<name> and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from learner.checkpoint import find, steps
from learner.commit_files import point_at
from orchestrator.cli import app
from orchestrator.run_dir import RunDir
from slipstream.config.job import JobConfig
from slipstream.errors import SlipstreamError
from tests.helpers.jobs import make_job

ROOT = Path(__file__).parents[3]
JOB = str(ROOT / "examples" / "arithmetic" / "buffered.yaml")


def launch(runs: Path, *arguments: str) -> str:
    """What is said to a launch that must be refused."""
    result = CliRunner().invoke(
        app, ["launch", JOB, f"checkpoint.dir={runs}", "name=mine", *arguments]
    )
    assert result.exit_code == 2, result.output
    return result.stderr


def job_in(runs: Path) -> JobConfig:
    return make_job(name="mine", checkpoint={"dir": str(runs)})


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A directory outside the runs, with a file that nobody may touch."""
    directory = tmp_path / "precious"
    directory.mkdir()
    (directory / "thesis.txt").write_text("years of work")
    return directory


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    directory = tmp_path / "runs"
    directory.mkdir()
    return directory


@pytest.mark.parametrize(
    "name",
    ["..", ".", "../x", "a/b", "/etc", "a\\n", ".hidden", "-rf", "", "a" * 65, "a b", "~", "ä"],
)
def test_names_that_could_leave(tmp_path: Path, name: str) -> None:
    said = launch(tmp_path, f'name="{name}"', "--overwrite")
    assert "use letters, digits" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--overwrite", "--resume", "--dry-run"])
def test_a_run_that_is_a_link_is_refused(runs: Path, precious: Path, option: str) -> None:
    (runs / "mine").symlink_to(precious)
    if option != "--dry-run":  # which writes nothing
        assert f"is a link to {precious}" in launch(runs, option)
    for overwrite in (True, False):
        with pytest.raises(SlipstreamError, match="is a link"):
            RunDir.open(job_in(runs), overwrite=overwrite)
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"]


def test_commits_that_are_a_link_are_refused(runs: Path, precious: Path) -> None:
    (runs / "mine").mkdir()
    (runs / "mine" / "checkpoints").symlink_to(precious)
    for option in ("--overwrite", "--resume"):
        assert f"is a link to {precious}" in launch(runs, option)
    assert (precious / "thesis.txt").exists()


def test_links_inside_a_run_are_removed_and_not_followed(runs: Path, precious: Path) -> None:
    run = runs / "mine"
    (run / "deeper").mkdir(parents=True)
    (run / "job.yaml").touch()
    (run / "notes").symlink_to(precious)
    (run / "deeper" / "deep").symlink_to(precious)
    RunDir.open(job_in(runs), overwrite=True).close()
    assert not (run / "notes").is_symlink()
    assert not (run / "deeper").exists()
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_the_root_of_the_runs_may_be_a_link(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(runs)
    RunDir.open(job_in(tmp_path / "link"), overwrite=True).close()
    assert (runs / "mine" / "job.yaml").exists()


def test_what_is_no_run_is_never_emptied(runs: Path, precious: Path) -> None:
    said = launch(precious.parent, "name=precious", "--overwrite")
    assert "is no run" in said
    assert (precious / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["checkpoints", "job.yaml", "metrics.jsonl"])
def test_a_directory_with_a_name_of_a_run_is_none(runs: Path, name: str) -> None:
    mine = runs / "mine"
    (mine / "checkpoints").mkdir(parents=True)
    if name != "checkpoints":
        (mine / name).write_text("years of work")
    assert "is no run" in launch(runs, "--overwrite")
    assert (mine / "checkpoints").exists()


def test_what_the_job_reads_is_never_deleted(runs: Path, tmp_path: Path) -> None:
    mine = runs / "mine"
    mine.mkdir()
    for name in ("metrics.jsonl", "train.jsonl", "template.jinja"):
        (mine / name).write_text("{}")
    (mine / "job.yaml").write_text(Path(JOB).read_text())
    said = launch(
        runs,
        *("--overwrite", f"model.chat_template={mine}/template.jinja"),
        f"data.eval_sets={{hard: {{kind: jsonl, path: {mine}/train.jsonl}}}}",
    )
    assert "model.chat_template: " in said and "data.eval_sets.hard.path: " in said
    assert said.count("which --overwrite deletes") == 2
    file = [str(mine / "job.yaml"), f"checkpoint.dir={runs}", "name=mine", "--overwrite"]
    assert "name: " in (again := CliRunner().invoke(app, ["launch", *file]).stderr)
    assert f"{mine / 'job.yaml'} lies in {mine}, which --overwrite deletes" in again
    assert (mine / "train.jsonl").exists()


def test_a_commit_that_is_a_link_is_no_commit(runs: Path, precious: Path) -> None:
    root = runs / "mine" / "checkpoints"
    root.mkdir(parents=True)
    (root / "step-00000005-t0001").symlink_to(precious)
    assert steps(root) == []
    assert find(root).commit is None


def test_the_pointer_to_the_newest_commit_is_never_followed(runs: Path, precious: Path) -> None:
    root = runs / "mine" / "checkpoints"
    root.mkdir(parents=True)
    (root / "latest").symlink_to(precious / "thesis.txt")
    (root / ".latest").symlink_to(precious / "thesis.txt")
    assert find(root).commit is None
    point_at(root, "step-00000005-t0001")
    assert (root / "latest").read_text() == "step-00000005-t0001\n"
    assert (precious / "thesis.txt").read_text() == "years of work"
