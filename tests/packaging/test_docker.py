"""The image files, by their structure: no Docker engine is at hand where these tests run."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy" / "docker").glob("Dockerfile.*"))
USER = "1000"  # that rendered pods run as


def instructions(file: Path) -> list[tuple[str, str]]:
    """Of an image file: each with its arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(word, rest) for word, rest in lines]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the context out; the last pattern that fits decides."""
    parts, verdict = path.split("/"), False
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        names = parts if pattern.startswith("**/") else above
        if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            verdict = not line.startswith("!")
    return verdict


def test_there_is_one_for_each_role() -> None:
    assert [file.suffix for file in FILES] == [".cpu", ".learner", ".rollout"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.suffix[1:])
def test_an_image_file_is_sound(file: Path) -> None:
    found = instructions(file)
    (base,) = [rest for word, rest in found if word == "FROM"]
    name, _, tag = base.rpartition(":")
    assert name and re.search(r"\d+\.\d+", tag), "the base is pinned by a version"
    assert "NOT BUILT BY US" in file.read_text()
    users = [rest for word, rest in found if word == "USER"]
    assert users == [f"{USER}:{USER}"]
    last_user = max(index for index, (word, _) in enumerate(found) if word == "USER")
    assert all(word not in ("RUN", "COPY") for word, _ in found[last_user:])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.suffix[1:])
def test_what_is_copied_exists_and_is_in_the_context(file: Path) -> None:
    for word, rest in instructions(file):
        if word == "COPY":
            *sources, _ = rest.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                assert not ignored(source), source


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.suffix[1:])
def test_every_package_and_its_extra_are_installed(file: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    text = file.read_text()
    copied = {rest.split()[0] for word, rest in instructions(file) if word == "COPY"}
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied
    extra = file.suffix[1:]
    assert extra in project["project"]["optional-dependencies"]
    assert f".[{extra}]" in text or (f"ARG EXTRAS={extra}\n" in text and '".[$EXTRAS]"' in text)


def test_nothing_else_goes_into_an_image() -> None:
    for path in (".git/config", ".env", "runs/x/metrics.jsonl", ".venv/bin/python", "tests/x.py"):
        assert ignored(path), path
    assert ignored("learner/__pycache__/loop.pyc")
    assert not ignored("learner/algorithms/kl.py")
