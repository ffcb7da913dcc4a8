"""What a commit holds of one learner rank: copies on the way out, restored on the way in.

    learner/state/         weights and optimizer, in DeepSpeed's files
    learner/critic/state/  the critic's, where it is a model of its own
    learner/reference.pt   the reference, where it moves
    learner/random-00000.pt
    model/                 the policy in Hugging Face format

Schedules need nothing: they are functions of the version.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learner.commit_files import Write
from learner.engine import LearnerEngine, copied
from learner.policy import Policy
from learner.step import LearnerStep
from learner.weights import full_parameters
from slipstream.config.job import JobConfig
from slipstream.text import load_tokenizer

MIB = 2**20
LEARNER, CRITIC, REFERENCE = "learner", "critic", "reference.pt"
# safetensors holds Python's lock while it writes a file, and the step's thread waits for it.
MAX_MODEL_FILE = "512MB"
# What a pickle of numpy's random state names.
NUMPY_ARRAYS = [
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    np.ndarray,
    np.dtype,
    np.dtypes.UInt32DType,
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The models of one rank, and what else changes as it trains."""

    job: JobConfig
    engine: LearnerEngine
    critic: LearnerEngine | None
    reference: Policy | None
    step: LearnerStep

    def copy(self) -> dict[str, Write]:
        """Files for a commit of this moment, held in memory; every rank calls it."""
        rank = self.engine.rank
        states = self.engine.copy_state(LEARNER, self.step.state.snapshot(self.job.algorithm))
        if self.critic is not None:
            states |= self.critic.copy_state(f"{LEARNER}/{CRITIC}", {})
        if rank == 0 and self.reference is not None and self.job.algorithm.reference_moves:
            states[f"{LEARNER}/{REFERENCE}"] = copied(self.reference.state_dict(), {})
        states[f"{LEARNER}/{_random(rank)}"] = random_state(self.engine.device)
        files: dict[str, Write] = {name: partial(save, state) for name, state in states.items()}
        weights: dict[str, torch.Tensor] = {}
        for bucket in full_parameters(self.engine, self.job.weights.bucket_mib * MIB):
            weights.update(bucket)
        if rank == 0:
            files["model"] = partial(self._save_model, weights)
        return files

    def restore(self, directory: Path) -> None:
        """Go on from a commit's `learner/`; every rank calls it.

        The commit may be of another number of ranks or ZeRO stage. A rank that it has no random
        state of begins with one drawn from the job's seed and the rank.
        """
        self.step.state.resume(self.job.algorithm, self.engine.load(directory))
        if self.critic is not None:
            self.critic.load(directory / CRITIC)
        if self.reference is not None and self.job.algorithm.reference_moves:
            self.reference.load_state_dict(load(directory / REFERENCE))
        random_file = directory / _random(self.engine.rank)
        if random_file.exists():
            set_random_state(load(random_file), self.engine.device)
        else:
            seed_random_state(self.job.seed, self.engine.rank)

    def _save_model(self, weights: Mapping[str, torch.Tensor], target: Path) -> None:
        """Hugging Face format: safetensors, config and tokenizer."""
        hf = self.engine.model.hf
        hf.save_pretrained(target, state_dict=dict(weights), max_shard_size=MAX_MODEL_FILE)
        load_tokenizer(self.job.model).save_pretrained(target)


def save(state: Any, path: Path) -> None:
    # Through a file of Python's: torch's own says no reason when the disk is full.
    with path.open("wb") as file:
        torch.save(state, file)


def load(path: Path) -> Any:
    """What `save` wrote: tensors, plain values and numpy's arrays, nothing that could run code."""
    with torch.serialization.safe_globals(NUMPY_ARRAYS):
        return torch.load(path, map_location="cpu", weights_only=True)


def random_state(device: torch.device) -> dict[str, Any]:
    """Of every generator that is not seeded anew in each step."""
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_random_state(seed: int, rank: int) -> None:
    """Another state for every rank, the same in every launch."""
    drawn = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    random.seed(drawn)
    np.random.seed(drawn)
    torch.manual_seed(drawn)  # of every device


def _random(rank: int) -> str:
    return f"random-{rank:05d}.pt"
