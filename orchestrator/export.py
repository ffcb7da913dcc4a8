"""`slipstream export`: the model of a commit as a directory that transformers and vLLM load.

    <run>/checkpoints/<commit>/model/* ──verified, copied──▶ OUT/
    <run>/job.yaml, metrics.jsonl ──────────────────────────▶ OUT/job.yaml, OUT/README.md

The directory is made aside and renamed: it is whole, or not there.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from uuid import uuid4

from rich.text import Text

from learner.best import read_best
from learner.checkpoint import Commit, find, read_manifest, sha256_of, steps, verified, version_of
from orchestrator.report.history import Evaluation
from orchestrator.report.read import RunRecord, record_of
from slipstream import __version__
from slipstream.errors import SlipstreamError

MODEL = "model"


class CannotExport(SlipstreamError):
    """The model cannot be copied; `str()` says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What the command says."""

    path: Path
    version: int
    commit: Path

    def as_json(self) -> dict[str, Any]:
        return {"path": str(self.path), "version": self.version, "commit": str(self.commit)}

    def as_text(self) -> Text:
        return Text(f"{self.path}: version {self.version}, from {self.commit}")


def export(run_dir: Path, out: Path, *, version: int | None, best: bool) -> Exported:
    """Copy the model of a commit: the newest, that of a version, or the best.

    Raises CannotExport, Damaged and OtherFormat.
    """
    if out.exists() or out.is_symlink():
        raise CannotExport(f"{out} exists; name a directory that does not")
    commit = _chosen(run_dir / "checkpoints", version=version, best=best)
    aside = out.with_name(f".{out.name}.{uuid4().hex}.tmp")
    try:
        _copy(commit, aside)
        _describe(record_of(run_dir), commit, aside)
        aside.rename(out)
    except OSError as error:
        raise CannotExport(f"{out} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Exported(path=out, version=commit.version, commit=commit.path)


def _chosen(root: Path, *, version: int | None, best: bool) -> Commit:
    """The commit that is asked for, its files compared with their checksums."""
    if best:
        return verified(_best(root))
    if version is None:
        found = find(root)
        if found.commit is None:
            raise CannotExport(f"{root} holds no sound commit. {'; '.join(found.damaged)}".strip())
        return found.commit
    for path in steps(root):  # the newest timeline first
        if version_of(path) == version:
            return verified(path)
    kept = ", ".join(str(v) for v in sorted({version_of(path) for path in steps(root)}))
    raise CannotExport(f"{root} holds no commit of version {version}; it holds {kept or 'none'}")


def _best(root: Path) -> Path:
    """The commit that `best` names, which must be one of this run's own."""
    best = read_best(root)
    if best is None:
        raise CannotExport(f"{root} names no best commit; leave out --best")
    return root / best.commit


def _copy(commit: Commit, target: Path) -> None:
    """Every file of the model that the commit's manifest has, compared as it came to lie."""
    checksums = read_manifest(commit.path)["sha256"]
    files = {name: expected for name, expected in checksums.items() if _is_model(name)}
    if not files:
        raise CannotExport(f"{commit.path} holds no model")
    for name, expected in files.items():
        copy = target / PurePath(name).relative_to(MODEL)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(commit.path / name, copy)
        if sha256_of(copy) != expected:
            raise CannotExport(f"{commit.path / name} changed while it was copied; try again")


def _is_model(name: str) -> bool:
    path = PurePath(name)
    return path.parts[0] == MODEL and ".." not in path.parts


# --- the model card ---------------------------------------------------------------


def _describe(run: RunRecord, commit: Commit, target: Path) -> None:
    if run.job_text:
        (target / "job.yaml").write_text(run.job_text, encoding="utf-8")
    (target / "README.md").write_text(card(run, commit.version), encoding="utf-8")


def card(run: RunRecord, version: int) -> str:
    """The model card: where the weights come from, and what they were measured to do."""
    evals = [found for (_, v), found in sorted(run.history.evals.items()) if v == version]
    base = PurePath(str(run.setting("model.path", "unknown"))).name
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [reinforcement-learning, slipstream]
---

# {_plain(run.name)}, version {version}

`{_plain(base)}`, trained with reinforcement learning by Slipstream {__version__}.

- policy version {version} of the run `{_plain(run.name)}`
- mode {run.setting("mode", "unknown")}, seed {run.setting("seed", "unknown")}
- `job.yaml` holds all settings of the run

## Evaluation

{_evaluation(evals, version)}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```

With vLLM: `vllm serve PATH`. PATH is this directory.
"""


def _evaluation(evals: Sequence[Evaluation], version: int) -> str:
    if not evals:
        return f"Version {version} was not evaluated on held-out prompts."
    lines = ["| held-out set | prompts | greedy accuracy | pass@k |", "|---|---|---|---|"]
    for found in evals:
        passes = ", ".join(f"{k}: {v:.1%}" for k, v in sorted(found.pass_at.items())) or "-"
        name = _plain(found.set).replace("|", " ")
        lines.append(f"| {name} | {found.num_prompts:,} | {_percent(found.accuracy)} | {passes} |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _plain(text: str) -> str:
    """A name in one line, that ends no code span."""
    return " ".join(text.replace("`", "'").split())
