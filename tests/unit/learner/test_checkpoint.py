"""Commits on disk: whole or not there, verified when read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from learner import checkpoint
from slipstream.errors import SlipstreamError


def commit(root: Path, version: int, keep_last: int = 2) -> Path:
    checkpoint.begin(root, version)
    directory = checkpoint.aside(root, version)
    (directory / "learner" / "state").write_text(f"state {version}")
    (directory / "model").mkdir()
    (directory / "model" / "weights").write_bytes(bytes([version]) * 1000)
    return checkpoint.finish(
        root, version, {"version": version}, layout={"zero_stage": 0}, keep_last=keep_last
    )


def test_the_newest_commit_is_found_and_older_ones_go(tmp_path: Path) -> None:
    for version in (5, 10, 15):
        commit(tmp_path, version)
    found = checkpoint.newest(tmp_path)
    assert (found.version, found.replay) == (15, {"version": 15})
    assert (found.learner_dir / "state").read_text() == "state 15"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "step-00000010",
        "step-00000015",
    ]


def test_what_is_being_written_is_not_seen(tmp_path: Path) -> None:
    commit(tmp_path, 5)
    checkpoint.begin(tmp_path, 10)
    assert checkpoint.newest(tmp_path).version == 5


def test_the_same_version_can_be_committed_again(tmp_path: Path) -> None:
    commit(tmp_path, 5)
    commit(tmp_path, 5)
    assert checkpoint.newest(tmp_path).version == 5


def test_a_commit_never_removes_itself_nor_a_future_that_was_left(tmp_path: Path) -> None:
    for version in (5, 10):
        commit(tmp_path, version)
    checkpoint.begin(tmp_path, 15)  # interrupted
    (tmp_path / checkpoint.LATEST).write_text("step-00000005\n")  # by hand: back to 5
    commit(tmp_path, 6, keep_last=1)
    assert checkpoint.newest(tmp_path).version == 6
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert names == ["step-00000006", "step-00000010"]


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(SlipstreamError, match="holds no commit"):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest", "format"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    path = commit(tmp_path, 5)
    weights, manifest = path / "model" / "weights", path / checkpoint.MANIFEST
    match damage:
        case "changed":
            weights.write_bytes(b"\x05" * 999 + b"\x06")
        case "missing":
            weights.unlink()
        case "manifest":
            manifest.write_text(manifest.read_text()[:-40])
        case "format":
            manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    named = {"changed": "model/weights is damaged", "missing": "model/weights is damaged"}
    with pytest.raises(SlipstreamError, match=named.get(damage, "commit.json cannot|format 99")):
        checkpoint.newest(tmp_path)
