"""May a run go on under a job file that has changed since its commit? Pure but for symbolic links.

What gives a run its meaning must stay: the prompts and their order, the rewards, the model it
started from, and what its files depend on. Everything else may change between launches.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from slipstream.config.explain import explain
from slipstream.config.job import JobConfig
from slipstream.config.yaml_text import KeyPath

Difference = tuple[str, Any, Any]  # dotted key, the commit's value, today's
PATHS = ("model.path", "model.tokenizer", "model.chat_template", "data.train.path")
TRAVELLED = re.compile(r"^.*/working_dir_files/_ray_pkg_[^/]+/")  # where Ray unpacks
REWARD_KEYS = ("kind", "path", "answer_field")
MAX_PASSES = 5  # a key that gives way can uncover the next wrong one


def meaning(job: JobConfig) -> dict[str, Any]:
    """The keys that a run must keep, dotted, with JSON values; paths resolved."""
    raw = job.model_dump(mode="json")
    model = {name: value for name, value in raw["model"].items() if name != "trust_remote_code"}
    reward = {name: raw["reward"][name] for name in REWARD_KEYS if name in raw["reward"]}
    keys = {
        "seed": job.seed,
        **{f"model.{name}": value for name, value in model.items()},
        **{f"data.train.{name}": value for name, value in raw["data"]["train"].items()},
        "data.shuffle": job.data.shuffle,
        "data.max_prompt_tokens": job.data.max_prompt_tokens,
        **{f"reward.{name}": value for name, value in reward.items()},
        "rollout.group_size": job.rollout.group_size,
        **job.layout,
    }
    return {key: _resolved(value) if key in PATHS else value for key, value in keys.items()}


def job_hash(job: JobConfig) -> str:
    """SHA-256 of the job's meaning; runs with the same one can go on from each other's commits."""
    canonical = json.dumps(meaning(job), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def breaking_differences(committed: Mapping[str, Any], now: JobConfig) -> list[Difference]:
    """The keys that a run must keep and `now` has changed. `committed`: the job of a commit, as
    JSON; what an older Slipstream did not write down counts as today's default."""
    before_job, refused = _as_job(committed, now)
    before, after = meaning(before_job), meaning(now)
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    other_kinds = [key.removesuffix("kind") for key in changed if key.endswith(".kind")]
    differences = [
        (key, before.get(key), after.get(key))
        for key in changed
        # The keys of another kind are other keys.
        if key.endswith(".kind") or not key.startswith(tuple(other_kinds))
    ]
    today = now.model_dump(mode="json")
    for path, value in refused.items():
        dotted = ".".join(map(str, path))
        if any(f"{key}.".startswith(f"{dotted}.") for key in after):
            differences.append((dotted, value, _at(today, path)))
    return sorted(differences, key=lambda difference: difference[0])


def _as_job(committed: Mapping[str, Any], now: JobConfig) -> tuple[JobConfig, dict[KeyPath, Any]]:
    """`committed` as a job of today. Where it says what today's job files cannot, `now` speaks;
    and the values for which it does."""
    raw, today = copy.deepcopy(dict(committed)), now.model_dump(mode="json")
    refused: dict[KeyPath, Any] = {}
    for _ in range(MAX_PASSES):
        try:
            return JobConfig.model_validate(raw), refused
        except ValidationError as error:
            for path, _message in explain(error):
                section = _at(raw, path[:-1])
                known = _at(today, path)
                if isinstance(section, dict):
                    if path[-1] in section and known is not None:
                        refused[path] = section[path[-1]]
                    section[path[-1]] = known
                    if known is None:
                        del section[path[-1]]
    raise ValueError("the job in the commit is no job file of any Slipstream")


def _at(raw: Any, path: KeyPath) -> Any:
    for key in path:
        raw = raw.get(key) if isinstance(raw, dict) else None
    return raw


def _resolved(value: str | None) -> str | None:
    """Without symbolic links; what is not there may be a name on the Hugging Face hub.

    What travelled to a cluster with the job file lies in another directory each time.
    """
    if value is None:
        return value
    path = str(Path(value).resolve()) if Path(value).exists() else value
    return TRAVELLED.sub("", path)
