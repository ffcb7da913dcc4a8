from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from orchestrator.run_dir import RunDir
from slipstream.config.job import JobConfig
from tests.helpers.jobs import make_job


def test_it_holds_the_resolved_job_and_every_event(tmp_path: Path) -> None:
    job = make_job(checkpoint={"dir": str(tmp_path)})
    run = RunDir.open(job, overwrite=False)
    run.write({"kind": "step", "loss": np.float32(0.5)})
    run.close()
    resolved = YAML(typ="safe").load((tmp_path / "test" / "job.yaml").read_text())
    assert JobConfig.model_validate(resolved) == job
    again = RunDir.open(job, overwrite=False)
    again.write({"kind": "step", "loss": 0.25})
    again.close()
    lines = again.metrics_file.read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.5, 0.25]


def test_overwrite_starts_anew(tmp_path: Path) -> None:
    job = make_job(checkpoint={"dir": str(tmp_path)})
    first = RunDir.open(job, overwrite=False)
    first.write({"kind": "step"})
    first.close()
    RunDir.open(job, overwrite=True).close()
    assert (tmp_path / "test" / "metrics.jsonl").read_text() == ""


def test_samples_have_a_file_of_their_own(tmp_path: Path) -> None:
    run = RunDir.open(make_job(checkpoint={"dir": str(tmp_path)}), overwrite=False)
    run.write({"kind": "sample", "ordinal": 3})
    run.write({"kind": "step", "loss": 0.5})
    run.flush()
    found = {name: (run.path / name).read_text() for name in ("samples.jsonl", "metrics.jsonl")}
    run.close()
    assert found == {
        "samples.jsonl": '{"kind": "sample", "ordinal": 3}\n',
        "metrics.jsonl": '{"kind": "step", "loss": 0.5}\n',
    }
