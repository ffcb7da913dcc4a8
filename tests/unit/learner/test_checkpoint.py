"""Commits on disk: whole or not there, verified when read, never lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from learner import checkpoint, commit_files
from learner.checkpoint import LATEST, MANIFEST, Commit, find
from learner.commit_files import claim_timeline, set_aside
from slipstream.errors import SlipstreamError

GROUPS = {7: b"seven", 9: bytes(range(256))}


def commit(root: Path, version: int, timeline: int = 1, keep_last: int = 2) -> Path:
    root.mkdir(exist_ok=True)
    directory = commit_files.aside(root, version, timeline)
    commit_files.clean(root, keep=directory)

    def model(path: Path) -> None:
        path.mkdir()
        (path / "weights").write_bytes(bytes([version]) * 1000)

    files = {
        "learner/state": lambda path: path.write_text(f"state {version}"),
        "model": model,
        "replay.npz": lambda path: commit_files.save_groups(GROUPS, path),
    }
    commit_files.write_part(directory, 0, files)
    contents = {"job": {"seed": 0}, "job_hash": "", "replay": {"version": version}}
    path = commit_files.publish(
        root, version, timeline, num_ranks=1, timeout_s=1, contents=contents
    )
    commit_files.prune(root, keep_last)
    return path


def taken(root: Path) -> Commit:
    return find(root).required()


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_the_newest_commit_is_found_and_older_ones_go(tmp_path: Path) -> None:
    for version in (5, 10, 15):
        commit(tmp_path, version)
    found = taken(tmp_path)
    assert (found.version, found.timeline, found.job) == (15, 1, {"seed": 0})
    assert found.replay.state == {"version": 15}
    assert found.replay.groups == GROUPS
    assert (found.learner_dir / "state").read_text() == "state 15"
    assert names(tmp_path) == ["step-00000010-t0001", "step-00000015-t0001"]


def test_what_is_being_written_is_not_seen_and_is_cleaned_by_the_next(tmp_path: Path) -> None:
    commit(tmp_path, 5)
    commit_files.write_part(commit_files.aside(tmp_path, 10, 1), 0, {})
    assert taken(tmp_path).version == 5
    commit(tmp_path, 6, timeline=2)
    assert names(tmp_path) == ["step-00000005-t0001", "step-00000006-t0002"]


def test_a_version_trained_again_stands_beside_the_old_one(tmp_path: Path) -> None:
    old, new = commit(tmp_path, 5), commit(tmp_path, 5, timeline=2)
    assert old.is_dir()
    assert taken(tmp_path).path == new


def test_a_future_that_was_left_is_older_than_what_is_trained_now(tmp_path: Path) -> None:
    for version in (5, 10):
        commit(tmp_path, version)
    truncated(tmp_path / "step-00000010-t0001")
    found = find(tmp_path)
    commit(tmp_path, 11, keep_last=9)  # as by a learner that was given up, and has not heard of it
    set_aside(found)
    assert names(tmp_path) == [
        "aside-step-00000010-t0001",
        "aside-step-00000011-t0001",
        "step-00000005-t0001",
    ]
    commit(tmp_path, 6, timeline=2, keep_last=1)
    assert taken(tmp_path).version == 6


def test_a_learner_that_was_given_up_commits_no_more(tmp_path: Path) -> None:
    claim_timeline(tmp_path)
    commit(tmp_path, 5, timeline=0)
    claim_timeline(tmp_path)
    with pytest.raises(SlipstreamError, match="later timeline"):
        commit(tmp_path, 6, timeline=0)
    assert taken(tmp_path).version == 5


def test_every_launch_has_a_timeline_of_its_own(tmp_path: Path) -> None:
    assert [claim_timeline(tmp_path / "new"), claim_timeline(tmp_path / "new")] == [0, 1]
    commit(tmp_path, 5, timeline=7)
    (tmp_path / "aside-step-00000050-t0008").mkdir()
    assert claim_timeline(tmp_path) == 9
    assert [path.name for path in tmp_path.glob(".timeline-*")] == [".timeline-0009"]


def flipped(path: Path) -> None:
    (path / "model" / "weights").write_bytes(b"\x0a" * 999 + b"\x0b")


def truncated(path: Path) -> None:
    (path / "model" / "weights").write_bytes(b"\x0a" * 999)


def missing(path: Path) -> None:
    (path / "learner" / "state").unlink()


def cut_manifest(path: Path) -> None:
    manifest = path / MANIFEST
    manifest.write_text(manifest.read_text()[:-40])


def changed_manifest(path: Path) -> None:
    manifest = path / MANIFEST
    manifest.write_text(manifest.read_text().replace('"version": 10', '"version": 11'))


def no_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def spoilt_groups(path: Path) -> None:
    data = bytearray((path / "replay.npz").read_bytes())
    data[60] ^= 1
    (path / "replay.npz").write_bytes(data)


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (flipped, "model/weights is damaged: its checksum differs"),
    (truncated, "model/weights is damaged: 999 of 1000 bytes"),
    (missing, "learner/state is missing"),
    (cut_manifest, "commit.json is damaged: it is no manifest"),
    (changed_manifest, "commit.json is damaged: its checksum differs"),
    (no_manifest, "commit.json cannot be read: No such file"),
    (spoilt_groups, "replay.npz is damaged"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_commit_is_named_and_the_one_before_is_taken(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    commit(tmp_path, 5)
    newest = commit(tmp_path, 10)
    damage(newest)
    found = find(tmp_path)
    assert found.required().version == 5
    assert len(found.damaged) == 1
    assert str(newest) in found.damaged[0]
    assert message in found.damaged[0]
    set_aside(found)
    assert names(tmp_path) == [f"aside-{newest.name}", "step-00000005-t0001"]
    assert find(tmp_path).damaged == ()


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_with_none_left_it_says_what_there_is_and_changes_nothing(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(commit(tmp_path, 10))
    before = names(tmp_path)
    with pytest.raises(SlipstreamError, match=message) as error:
        taken(tmp_path)
    assert "--overwrite" in str(error.value)
    assert names(tmp_path) == before


def test_sizes_alone_tell_of_a_truncated_file(tmp_path: Path) -> None:
    path = commit(tmp_path, 10)
    flipped(path)
    assert find(tmp_path, contents=False).commit is not None
    truncated(path)
    assert find(tmp_path, contents=False).commit is None


@pytest.mark.parametrize(
    ("found_format", "message"),
    [
        (4, "was written by a newer Slipstream: format 4, this is 3"),
        (2, "was written by an older Slipstream: format 2, this is 3"),
    ],
)
def test_another_format_is_said(tmp_path: Path, found_format: int, message: str) -> None:
    manifest = commit(tmp_path, 10) / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": found_format}))
    with pytest.raises(SlipstreamError, match=message):
        taken(tmp_path)


def test_what_a_newer_slipstream_trained_is_never_left_for_an_older_commit(tmp_path: Path) -> None:
    commit(tmp_path, 5)
    manifest = commit(tmp_path, 10) / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 4}))
    assert find(tmp_path).commit is None


def test_latest_is_for_people_and_does_not_decide(tmp_path: Path) -> None:
    for version in (5, 10):
        commit(tmp_path, version)
    assert (tmp_path / LATEST).read_text() == "step-00000010-t0001\n"
    (tmp_path / LATEST).unlink()
    assert taken(tmp_path).version == 10


@pytest.mark.parametrize("root", ["none", "file"])
def test_nothing_to_resume_from(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SlipstreamError, match=r"holds no commit to resume from.*--overwrite"):
        taken(tmp_path / root)


def test_a_directory_that_cannot_be_written_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SlipstreamError, match="cannot be written.*checkpoint.dir"):
        claim_timeline(tmp_path / "file" / "checkpoints")


def test_parts_of_all_ranks_make_one_commit(tmp_path: Path) -> None:
    directory = commit_files.aside(tmp_path, 5, 1)
    commit_files.write_part(directory, 0, {"learner/a": lambda path: path.write_text("a")})

    def late() -> None:
        time.sleep(0.2)
        commit_files.write_part(directory, 1, {"learner/b": lambda path: path.write_text("b")})

    other = Thread(target=late)
    other.start()
    contents = {"job": {}, "replay": {}}
    path = commit_files.publish(tmp_path, 5, 1, num_ranks=2, timeout_s=5, contents=contents)
    other.join()
    assert list(checkpoint.read_manifest(path)["sha256"]) == ["learner/a", "learner/b"]
    assert taken(tmp_path).replay.groups == {}


def test_a_rank_that_is_late_or_failed_is_named(tmp_path: Path) -> None:
    directory = commit_files.aside(tmp_path, 5, 1)
    commit_files.write_part(directory, 0, {})
    arguments = {"num_ranks": 2, "timeout_s": 0.1, "contents": {}}
    with pytest.raises(SlipstreamError, match=r"part-00001.json was not there.*rank 1 is late"):
        commit_files.publish(tmp_path, 5, 1, **arguments)
    commit_files.mark_failed(directory, 1, "rank 1: its disk is full")
    with pytest.raises(SlipstreamError, match="rank 1: its disk is full"):
        commit_files.publish(tmp_path, 5, 1, **arguments)
