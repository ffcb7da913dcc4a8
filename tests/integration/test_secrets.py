"""A secret of the environment is in nothing that a job writes, Ray's logs included."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.runs import ROOT, events, started

JOB = ROOT / "examples" / "arithmetic" / "buffered.yaml"
SETTINGS = (
    *("name=quiet", "learner.num_steps=2", "learner.warmup_steps=0", "data.eval=null"),
    *("learner.groups_per_batch=4", "rollout.group_size=4", "checkpoint.every_steps=1"),
    *("rollout.engine=scripted", "weights.probe=false"),
)
PLANTED = "zq7-planted-secret-zq7"
SECRETS = {
    name: f"{PLANTED}-{name.lower()}"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN")
}


@pytest.fixture
def ray_dir() -> Iterator[Path]:
    """Where Ray keeps what its session logs; its sockets want a short path."""
    directory = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def holding(directory: Path, secret: str) -> list[str]:
    """The files in `directory` that hold the secret, in their content or their name."""
    files = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    return [
        str(path) for path in files if secret in path.name or secret.encode() in path.read_bytes()
    ]


def test_what_a_job_writes_holds_no_secret(tmp_path: Path, ray_dir: Path) -> None:
    with started(JOB, tmp_path, *SETTINGS, more={**SECRETS, "RAY_TMPDIR": str(ray_dir)}) as job:
        assert job.wait(timeout=300) == 0, (tmp_path / "launch.log").read_text()
    assert len(events(tmp_path / "quiet", "step")) == 2
    assert (tmp_path / "launch.log").is_file()
    assert holding(tmp_path, PLANTED) == []
    assert list(ray_dir.rglob("*.log")), "the session's logs were looked at"
    assert holding(ray_dir, PLANTED) == []
