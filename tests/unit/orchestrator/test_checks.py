from __future__ import annotations

import pytest

from orchestrator.checks import preflight
from slipstream.config.load import read_job_file
from tests.helpers.runs import ROOT

EXAMPLE = ROOT / "examples" / "arithmetic" / "buffered.yaml"


def test_a_tracker_that_is_missing_is_known_before_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.checks.is_installed", lambda name: name != "trackio")
    file = read_job_file(EXAMPLE, ["telemetry.trackers=[mlflow, trackio]"])
    (problem,) = preflight(file, EXAMPLE.parent, to_start=False, overwrite=True)
    assert problem.key == "telemetry.trackers"
    assert problem.message == (
        "trackio is not installed here; run `pip install 'slipstream-rl[trackers]'`, or leave it "
        "out"
    )
