"""What comes with a model, a data set or a commit is data: none of its code runs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from learner import checkpoint, commit_files
from learner.contents import load, save
from learner.policy import load_critic, load_policy
from orchestrator.cli import app
from replay.sources import DataError, open_source
from slipstream.config.cross_check import cross_check
from slipstream.config.job import HubSource, JobConfig, ModelConfig
from slipstream.errors import SlipstreamError
from slipstream.text import eos_token_ids, load_tokenizer
from tests.helpers.jobs import make_job, make_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = """\
from pathlib import Path
Path({marker!r}).touch()
class Config: pass
class Model: pass
class Tokenizer: pass
"""


class Bomb:
    """A pickle of it touches a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Is there once foreign code has run."""
    return tmp_path / "ran"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    make_model(directory)
    return directory


def change(file: Path, **keys: Any) -> None:
    content = json.loads(file.read_text())
    content.update(keys)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def bring_code(model: Path, marker: Path, **keys: Any) -> None:
    """As a model on the hub does that has code of its own."""
    (model / "canary.py").write_text(CODE.format(marker=str(marker)))
    classes = {
        "AutoConfig": "canary.Config",
        "AutoModel": "canary.Model",
        "AutoModelForCausalLM": "canary.Model",
    }
    change(model / "config.json", auto_map=classes, **keys)
    tokenizers = {"AutoTokenizer": ["canary.Tokenizer", "canary.Tokenizer"]}
    change(model / "tokenizer_config.json", auto_map=tokenizers)


def validate(tmp_path: Path, model: Path, *more: str) -> str:
    """What is said to a job with this model that must be refused."""
    file = tmp_path / "job.yaml"
    lines = [
        *("name: test", "mode: buffered", f"model: {{path: {model}, {', '.join(more)}}}"),
        "data: {train: {kind: reasoning_gym, task: chain_sum, size: 10}}",
        *("reward: {kind: reasoning_gym}", "learner: {num_steps: 1, groups_per_batch: 4}"),
    ]
    file.write_text("\n".join(lines))
    result = CliRunner().invoke(app, ["validate", str(file)])
    assert result.exit_code == 2, result.output
    return result.stderr


def job_with(model: dict[str, Any], **sections: Any) -> JobConfig:
    whole = make_job(**sections).model_dump(mode="json")
    return JobConfig.model_validate({**whole, "model": model})


# --- code beside a model ----------------------------------------------------------------


def test_the_canary_would_sing(model: Path, marker: Path) -> None:
    from transformers import AutoConfig

    bring_code(model, marker, model_type="yellow_bird")
    with pytest.raises(AttributeError):  # its class is no config
        AutoConfig.from_pretrained(model, trust_remote_code=True)
    assert marker.exists()


def test_code_beside_a_known_model_is_ignored(model: Path, marker: Path) -> None:
    bring_code(model, marker)
    config = ModelConfig(path=str(model))
    load_tokenizer(config)
    load_policy(config)
    load_critic(config, None)
    assert not marker.exists()


def test_a_model_that_needs_code_is_refused(tmp_path: Path, model: Path, marker: Path) -> None:
    bring_code(model, marker, model_type="yellow_bird")
    config = ModelConfig(path=str(model))
    for loads in (load_policy, lambda config: load_critic(config, None)):
        with pytest.raises(ValueError, match="trust_remote_code|does not recognize"):
            loads(config)
    said = validate(tmp_path, model)
    assert "job.yaml:3:9: model.path: " in said
    assert "brings Python code of its own, which is not run from a directory" in said
    assert not marker.exists()


def test_a_tokenizer_that_needs_code_does_not_run_it(model: Path, marker: Path) -> None:
    bring_code(model, marker, model_type="yellow_bird")
    change(model / "tokenizer_config.json", tokenizer_class="YellowBirdTokenizer")
    config = ModelConfig(path=str(model))
    with suppress(SlipstreamError):  # another class may read its files
        eos_token_ids(config, load_tokenizer(config))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("revision", "allowed"),
    [(None, False), ("main", False), ("v1.0", False), (COMMIT[:12], False), (COMMIT, True)],
)
def test_code_is_trusted_at_one_commit_alone(revision: str | None, allowed: bool) -> None:
    model = {"path": "some/model", "trust_remote_code": True, "revision": revision}
    job = job_with(model)
    keys = [key for key, _ in cross_check(job)]
    assert keys == ([] if allowed else ["model.trust_remote_code"])
    # Code of another repository, which the model may name, is looked for at this commit and not
    # found.
    assert job.model.code == {"trust_remote_code": True, "code_revision": revision}


def test_code_that_the_revision_does_not_pin_is_refused(tmp_path: Path, model: Path) -> None:
    trusted = {"path": "some/model", "trust_remote_code": True, "revision": COMMIT}
    algorithm = {"advantage": {"kind": "gae"}, "critic": {"path": "other/model"}}
    job = job_with({**trusted, "tokenizer": "other/model"}, algorithm=algorithm)
    keys = [key for key, _ in cross_check(job)]
    assert keys == ["model.tokenizer", "algorithm.critic.path"]
    said = validate(tmp_path, model, "trust_remote_code: true", f"revision: '{COMMIT}'")
    assert "is a directory, whose code no revision pins" in said


def test_a_script_beside_data_does_not_run(tmp_path: Path, marker: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / "data.py").write_text(CODE.format(marker=str(marker)))
    with pytest.raises(DataError):
        open_source(HubSource(kind="hub", name=str(directory)))
    assert not marker.exists()


# --- pickles ----------------------------------------------------------------------------


def test_the_bomb_would_go_off(marker: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()


def test_weights_that_are_a_pickle_are_not_read(tmp_path: Path, model: Path, marker: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Bomb(marker)}, model / "pytorch_model.bin")
    config = ModelConfig(path=str(model))
    for loads in (load_policy, lambda config: load_critic(config, None)):
        with pytest.raises(OSError, match="safetensors"):
            loads(config)
    assert "are pickles, which can run code" in validate(tmp_path, model)
    assert not marker.exists()


def test_safetensors_beside_a_pickle_are_read(model: Path, marker: Path) -> None:
    torch.save({"model.embed_tokens.weight": Bomb(marker)}, model / "pytorch_model.bin")
    load_policy(ModelConfig(path=str(model)))
    assert not marker.exists()


def test_a_changed_file_of_a_commit_is_not_read(tmp_path: Path, marker: Path) -> None:
    directory = commit_files.aside(tmp_path, 3, 1)
    name = "learner/state/optim_states.pt"
    commit_files.write_part(directory, 0, {name: lambda path: torch.save([1.0], path)})
    commit = commit_files.publish(
        tmp_path, 3, 1, num_ranks=1, timeout_s=1, contents={"job": {}, "replay": {}}
    )
    assert checkpoint.find(tmp_path).commit is not None
    torch.save(Bomb(marker), commit / name)
    found = checkpoint.find(tmp_path)
    assert found.commit is None
    assert "is damaged" in found.damaged[0]
    assert not marker.exists()


def test_random_states_and_references_hold_no_code(tmp_path: Path, marker: Path) -> None:
    save({"python": (3, (1, 2), None), "numpy": Bomb(marker)}, tmp_path / "random-00000.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load(tmp_path / "random-00000.pt")
    assert not marker.exists()


def test_groups_hold_no_code(tmp_path: Path, marker: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "replay.npz", **{"7": np.array([Bomb(marker)], dtype=object)})
    with pytest.raises(checkpoint.Damaged):
        checkpoint._groups(tmp_path / "replay.npz")
    assert not marker.exists()
