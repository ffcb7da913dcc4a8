"""Commits of real DeepSpeed engines hold what was there at the step boundary, and bring it back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.jobs import make_model
from tests.helpers.ranks import run_ranks

PROGRAM = Path(__file__).with_name("commit_deepspeed.py")


@pytest.mark.parametrize(("num_ranks", "stages"), [(1, "03"), (2, "3")])
def test_a_commit_is_of_its_step_boundary_and_restores_it(
    tmp_path: Path, num_ranks: int, stages: str
) -> None:
    model = make_model(tmp_path / "model")
    run_ranks(PROGRAM, num_ranks, tmp_path, str(model), str(tmp_path), *stages)
