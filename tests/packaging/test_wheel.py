"""The wheel, in an environment of its own, away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("slipstream", "rollout_worker", "learner", "replay", "orchestrator")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an environment that holds the wheel and what it depends on."""
    directory = tmp_path_factory.mktemp("elsewhere")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory]
    run(*build, ROOT, cwd=ROOT)
    uv = Path(sys.executable).parent / "uv"
    run(uv, "venv", "--quiet", "--python", sys.executable, directory / "env", cwd=directory)
    places = os.environ.get("PIP_FIND_LINKS", "").split()
    find_links = [word for place in places for word in ("--find-links", place)]
    wheel = next(directory.glob("*.whl"))
    install = [uv, "pip", "install", "--quiet", "--python", directory / "env", *find_links]
    run(*install, wheel, cwd=directory)
    return directory


def test_every_package_is_imported_from_the_wheel(elsewhere: Path) -> None:
    code = f"import {', '.join(PACKAGES)}; print({', '.join(f'{p}.__file__' for p in PACKAGES)})"
    files = run(elsewhere / "env/bin/python", "-c", code, cwd=elsewhere).split()
    assert len(files) == len(PACKAGES)
    assert all(Path(file).is_relative_to(elsewhere / "env") for file in files)


def test_the_command_reads_a_job_without_the_heavy_libraries(elsewhere: Path) -> None:
    """No torch, vllm or deepspeed is in that environment."""
    command = elsewhere / "env/bin/slipstream"
    job = ROOT / "examples" / "arithmetic" / "buffered.yaml"
    assert "mode: buffered" in run(command, "launch", job, "--dry-run", cwd=elsewhere)
    assert "ok" in run(command, "validate", job, cwd=elsewhere)
    assert "ray start" in run(command, "render", "slurm", job, cwd=elsewhere)
