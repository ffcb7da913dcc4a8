"""What a job file may change between two launches of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slipstream.config.compare import breaking_differences, job_hash
from slipstream.config.job import JobConfig
from tests.helpers.jobs import make_job

JSONL: dict[str, Any] = {"kind": "jsonl", "path": "a.jsonl"}


def job_with(model: Any = None, **sections: Any) -> JobConfig:
    job = make_job(**sections)
    raw = job.model_dump(mode="json")
    return JobConfig.model_validate({**raw, "model": {**raw["model"], **(model or {})}})


def changed(**sections: Any) -> list[tuple[str, Any, Any]]:
    return breaking_differences(make_job().model_dump(mode="json"), job_with(**sections))


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"name": "other", "mode": "split"},
        {"model": {"trust_remote_code": True}},
        {"data": {"eval": JSONL, "eval_every_steps": 5}},
        {"reward": {"timeout_s": 1.0, "num_processes": 3}},
        {"rollout": {"num_workers": 3, "temperature": 0.5, "max_new_tokens": 100}},
        {"learner": {"num_steps": 500, "learning_rate": 1.0, "groups_per_batch": 8}},
        {"learner": {"num_ranks": 2, "zero_stage": 3}},
        {"algorithm": {"kl": {"coefficient": 0.1}}},
        {"replay": {"max_staleness": 5}, "checkpoint": {"keep_last": 9}},
    ],
)
def test_harmless_keys_may_change(sections: dict[str, Any]) -> None:
    assert changed(**sections) == []
    assert job_hash(job_with(**sections)) == job_hash(make_job())


@pytest.mark.parametrize(
    ("sections", "difference"),
    [
        ({"seed": 1}, ("seed", 0, 1)),
        ({"model": {"path": "other"}}, ("model.path", "model", "other")),
        ({"model": {"dtype": "bfloat16"}}, ("model.dtype", "float32", "bfloat16")),
        ({"data": {"shuffle": False}}, ("data.shuffle", True, False)),
        ({"data": {"max_prompt_tokens": 9}}, ("data.max_prompt_tokens", 1024, 9)),
        ({"data": {"train": JSONL}}, ("data.train.kind", "reasoning_gym", "jsonl")),
        ({"reward": {"kind": "exact_match"}}, ("reward.kind", "reasoning_gym", "exact_match")),
        ({"rollout": {"group_size": 8}}, ("rollout.group_size", 4, 8)),
        (
            {"algorithm": {"advantage": {"kind": "gae"}}},
            ("algorithm.advantage", "one without a critic", "one with a critic"),
        ),
    ],
)
def test_keys_that_break_the_meaning_are_told_with_both_values(
    sections: dict[str, Any], difference: tuple[str, Any, Any]
) -> None:
    assert changed(**sections) == [difference]
    assert job_hash(job_with(**sections)) != job_hash(make_job())


def test_every_difference_is_told() -> None:
    differences = changed(seed=3, rollout={"group_size": 8}, model={"revision": "main"})
    assert [key for key, _, _ in differences] == ["model.revision", "rollout.group_size", "seed"]


def test_defaults_that_were_not_written_down_are_equal() -> None:
    committed = make_job().model_dump(mode="json")
    for section, key in (("model", "revision"), ("data", "shuffle"), ("checkpoint", "keep_last")):
        del committed[section][key]
    del committed["telemetry"], committed["seed"]
    assert breaking_differences(committed, make_job()) == []
    assert breaking_differences(committed, make_job(seed=5)) == [("seed", 0, 5)]


def test_keys_and_values_that_are_not_known_any_more() -> None:
    committed = make_job().model_dump(mode="json")
    committed["replay"]["forgotten"] = 1
    committed["replay"]["on_stale"] = "pray"
    committed["gone"] = {"with": "the wind"}
    assert breaking_differences(committed, make_job()) == []
    committed["model"]["dtype"] = "float8"
    assert breaking_differences(committed, make_job()) == [("model.dtype", "float8", "float32")]


def test_paths_are_compared_as_what_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").touch()
    (tmp_path / "link.jsonl").symlink_to("data.jsonl")
    jobs = [
        make_job(data={"train": {"kind": "jsonl", "path": str(tmp_path / name)}})
        for name in ("data.jsonl", "link.jsonl", "other.jsonl")
    ]
    assert breaking_differences(jobs[0].model_dump(mode="json"), jobs[1]) == []
    differences = breaking_differences(jobs[0].model_dump(mode="json"), jobs[2])
    assert [key for key, _, _ in differences] == ["data.train.path"]


def test_what_travels_to_a_cluster_lies_elsewhere_each_time(tmp_path: Path) -> None:
    """Ray unpacks the job file's directory under the session's and the content's names."""
    packages = "runtime_resources/working_dir_files/_ray_pkg_"
    first = tmp_path / "session_1" / f"{packages}0a1b" / "models" / "small"
    second = tmp_path / "session_2" / f"{packages}2c3d" / "models" / "small"
    second.mkdir(parents=True)  # the first cluster is gone, and its files with it
    committed = make_job(first).model_dump(mode="json")
    assert breaking_differences(committed, make_job(second)) == []
    other = second.with_name("other")
    assert breaking_differences(committed, make_job(other)) == [
        ("model.path", "models/small", "models/other")
    ]
