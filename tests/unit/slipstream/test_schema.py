"""The JSON schema for editors: it is in step, takes what is shipped, and refuses mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML
from typer.testing import CliRunner

from orchestrator.cli import app
from slipstream.config.schema import job_schema
from tests.helpers.jobs import make_job

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "docs" / "job.schema.json"
SHIPPED = sorted(ROOT.glob("examples/**/*.yaml"))
MARK = "# yaml-language-server: $schema="


def errors(job: Any) -> list[str]:
    found = Draft202012Validator(job_schema()).iter_errors(job)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text())


def test_the_committed_schema_is_in_step() -> None:
    result = CliRunner().invoke(app, ["schema"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads(SCHEMA.read_text()), (
        "run `slipstream schema > docs/job.schema.json`"
    )


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(job_schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_job_names_it_and_passes(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith(MARK)
    assert (path.parent / first.removeprefix(MARK)).resolve() == SCHEMA
    assert errors(read(path)) == []


def test_a_resolved_job_passes() -> None:
    assert errors(make_job().model_dump(mode="json")) == []


@pytest.mark.parametrize(
    "section",
    [
        {"algorithm": {"loss": {"clip_high": 0.3}}},  # of the usual kind, which need not be named
        {"algorithm": {"correction": {}}},
        {"algorithm": {"correction": {"kind": "none"}}},
        {"replay": {"on_stale": "requeue"}},  # its mode gives max_staleness
    ],
)
def test_what_presets_supply_may_be_left_out(section: dict[str, Any]) -> None:
    job = read(ROOT / "examples" / "arithmetic" / "buffered.yaml")
    assert errors({**job, **section}) == []
    assert errors({**{key: job[key] for key in job if key not in ("rollout", "replay")}}) == []


@pytest.mark.parametrize(
    ("section", "part"),
    [
        ({"rewrad": {}}, "'rewrad' was unexpected"),
        ({"rollout": {"group_sise": 4}}, "'group_sise' was unexpected"),
        ({"rollout": {"group_size": 0}}, "less than the minimum of 1"),
        ({"mode": "async"}, "is not one of"),
        ({"algorithm": {"loss": {"kind": "gspo", "dual_clip": 3}}}, "is not valid under any"),
        ({"algorithm": {"mask": {"kind": "geometric", "lwo": 1}}}, "is not valid under any"),
        ({"reward": {"timeout_s": 3}}, "is not valid under any"),
        ({"learner": {"num_steps": 3}}, "'groups_per_batch' is a required property"),
    ],
)
def test_mistakes_are_refused(section: dict[str, Any], part: str) -> None:
    job = read(ROOT / "examples" / "arithmetic" / "buffered.yaml")
    (error,) = errors({**job, **section})
    assert part in error


def test_it_says_what_the_comments_say() -> None:
    sections = job_schema()["$defs"]
    assert sections["RolloutConfig"]["properties"]["group_size"]["description"] == (
        "G, rollouts of one prompt"
    )
    assert sections["FunctionReward"]["properties"]["timeout_s"]["description"] == (
        "of one call; then its process is killed"
    )
    words = sections["KlConfig"]["properties"]["reference_step"]["description"]
    assert words.startswith("The reference is the start model; after every step")
    assert "title" not in json.dumps(sections)
