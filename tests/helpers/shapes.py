"""Published shapes of models, and jobs that would train them on GPUs."""

from __future__ import annotations

from typing import Any

from slipstream.config.job import JobConfig
from tests.helpers.jobs import make_job

# 7.62 billion parameters by its model card.
QWEN2_5_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}


def gpu_job(
    learner: dict[str, Any] | None = None, rollout: dict[str, Any] | None = None, **sections: Any
) -> JobConfig:
    """Eight ranks and four engines in bfloat16, for a model of that size."""
    ranks = {"gpus_per_rank": 1, "num_ranks": 8, "zero_stage": 3, "groups_per_batch": 64}
    engines = {"gpus": 1, "num_workers": 4, "max_new_tokens": 2048, "num_slots": 64}
    job = make_job(learner=ranks | (learner or {}), rollout=engines | (rollout or {}), **sections)
    model = job.model.model_copy(update={"dtype": "bfloat16"})
    return job.model_copy(update={"model": model})
