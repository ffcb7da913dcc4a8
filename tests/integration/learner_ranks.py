"""One rank of a learner, without Ray: trains 5 steps under each setting, saves the weights.

    python learner_ranks.py MODEL OUT RANK NUM_RANKS PORT SETTING...

A setting is `ZERO_STAGE:MAX_TOKENS_PER_MICROBATCH[:recompute|:critic|:head|:region]`. Rank 0 writes
OUT/<setting>.npz, with `critic` the critic's weights too.
As in a job, a probe follows every step. ZeRO-3 fetches ahead as little of this small model as it
does of a large one. A last step whose gradient is not finite must be refused on every rank.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

MAX_KL = 3e-4


def main() -> None:
    model, out, rank, num_ranks, port, *settings = sys.argv[1:]
    os.environ.update(
        RANK=rank,
        LOCAL_RANK=rank,
        WORLD_SIZE=num_ranks,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
        DS_ACCELERATOR="cpu",
        OMP_NUM_THREADS="1",
    )
    import torch
    import torch.distributed as dist

    fetch_ahead_little()
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    for setting in settings:
        train(model, int(num_ranks), setting, Path(out))


def fetch_ahead_little() -> None:
    """ZeRO-3's limits are in numbers of parameters: this model's share of a large model's."""
    import learner.engine

    plain = learner.engine._deepspeed_config

    def of_a_large_model(job: Any) -> dict[str, Any]:
        config = plain(job)
        # Not with a trust region: whatever stays fetched must not outlive an update taken back.
        if config["zero_optimization"]["stage"] == 3 and job.algorithm.trust_region is None:
            ahead = {"stage3_max_reuse_distance": 11_000, "stage3_prefetch_bucket_size": 550}
            config["zero_optimization"].update(ahead)
        return config

    learner.engine._deepspeed_config = of_a_large_model


def train(model: str, num_ranks: int, setting: str, out: Path) -> None:
    """Five steps, then one that must be refused."""
    import numpy as np
    import torch

    from learner.engine import LearnerEngine
    from learner.policy import load_critic, load_policy
    from learner.step import LearnerStep, NotFinite
    from learner.weights import Prober
    from tests.helpers.jobs import VOCABULARY, make_batch, make_job

    stage, max_tokens, *options = setting.split(":")
    job = make_job(
        model,
        algorithm={
            "advantage": {"kind": "gae" if {"critic", "head"} & set(options) else "grpo"},
            "critic": {"learning_rate": 3e-4, "shared": "head" in options},
            # Of which about two thirds of these updates keep inside.
            "trust_region": {"max_kl": MAX_KL} if "region" in options else None,
        },
        learner={
            "zero_stage": int(stage),
            "max_tokens_per_microbatch": int(max_tokens),
            "gradient_checkpointing": "recompute" in options,
            "num_ranks": num_ranks,
            "max_grad_norm": 0.1,
            # Adam turns rounding noise of tiny gradients into steps of this size.
            "learning_rate": 3e-4,
        },
    )
    cpu = torch.device("cpu")
    policy = load_policy(job.model, has_value_head=job.algorithm.has_value_head)
    engine, critic = LearnerEngine(policy, job, cpu), None
    if job.algorithm.has_own_critic:
        critic = LearnerEngine(load_critic(job.model, None), job, cpu)
    step = LearnerStep(job, engine, None, critic)
    start = weights_of(engine)
    prober = Prober(engine, vocabulary=VOCABULARY, max_tokens=16, seed=0)
    norms = []
    for version in range(5):
        norms.append(step.run(make_batch(version, num_groups=8))["grad_norm"])
        prober.measure()
        weights_of(engine)
    weights = weights_of(engine)
    if critic is not None:
        weights |= {f"critic.{name}": array for name, array in weights_of(critic).items()}
        head = critic.model.head.weight
        with critic.gathered([head]):
            weights["critic.head"] = head.detach().clone().numpy()
        assert abs(weights["critic.head"]).max() > 1e-4, "the critic did not train"
    if engine.rank == 0:
        moved = max(float(abs(weights[name] - start[name]).max()) for name in start)
        arrays = {"grad_norms": np.array(norms), "moved": np.array(moved)}
        np.savez(out / f"{setting}.npz", **arrays, **weights)
    try:
        step.run(make_batch(5, num_groups=8, reward=math.nan))
    except NotFinite:
        pass
    else:
        raise AssertionError(f"{setting}: a gradient that is not finite was applied")
    for trained in (engine, critic):
        if trained is not None:
            trained.close()


def weights_of(engine: Any) -> dict[str, Any]:
    """Every weight as an array; empty on other ranks than 0."""
    from learner.weights import full_parameters

    buckets = full_parameters(engine, 10_000)
    return {name: tensor.numpy() for bucket in buckets for name, tensor in bucket}


if __name__ == "__main__":
    main()
