"""One rank of a learner, without Ray: trains 5 steps under each setting, saves the weights.

    python learner_ranks.py MODEL OUT SETTING...

A setting is `ZERO_STAGE:MAX_TOKENS_PER_MICROBATCH[:recompute|:critic|:head|:region|:bf16]`. Rank 0
writes OUT/<setting>.npz, with `critic` the critic's weights too.
As in a job, a probe follows every step. ZeRO-3 fetches ahead as little of this small model as it
does of a large one. Before some steps come others, without a finite loss or gradient, which must
leave no trace on any rank; not so with `:undisturbed`.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from tests.helpers.ranks import leave

MAX_KL = 3e-4
DISTURBED = (0, 2)  # before Adam has moments, and with them


def main() -> None:
    model, out, *settings = sys.argv[1:]
    import torch
    import torch.distributed as dist

    fetch_ahead_little()
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    for setting in settings:
        train(model, dist.get_world_size(), setting, Path(out))


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
    """Five steps, between steps that must change nothing."""
    import numpy as np
    import torch

    from learner.engine import LearnerEngine
    from learner.policy import load_critic, load_policy
    from learner.step import LearnerStep
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
    if "bf16" in options:
        bfloat16 = job.model.model_copy(update={"dtype": "bfloat16"})
        job = job.model_copy(update={"model": bfloat16})
    cpu = torch.device("cpu")
    policy = load_policy(job.model, has_value_head=job.algorithm.has_value_head)
    # Memory that nobody has written is NaN then.
    torch.use_deterministic_algorithms(True)
    engine, critic = LearnerEngine(policy, job, cpu), None
    if job.algorithm.has_own_critic:
        critic = LearnerEngine(load_critic(job.model, None), job, cpu)
    torch.use_deterministic_algorithms(False)
    step = LearnerStep(job, engine, None, critic)
    start = weights_of(engine)
    prober = Prober(engine, vocabulary=VOCABULARY, max_tokens=16, seed=0)
    norms = []
    for version in range(5):
        if version in DISTURBED and "undisturbed" not in options:
            disturb(step, engine, critic)
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
    for trained in (engine, critic):
        if trained is not None:
            trained.close()


def disturb(step: Any, engine: Any, critic: Any) -> None:
    """Steps that must leave every bit as it was, on every rank, whichever rank is to blame."""
    import learner.step
    from tests.helpers.jobs import make_batch

    plain_loss, is_to_blame = learner.step.loss_of, engine.rank == engine.num_ranks - 1

    def infinite_loss(*arguments: Any, **keywords: Any) -> Any:
        loss, metrics = plain_loss(*arguments, **keywords)
        return loss + math.inf, metrics  # its gradient is finite

    def run(what: str, reward: float | None = None) -> None:
        trained = [engine] if critic is None else [engine, critic]
        before = [tensor for each in trained for tensor in state_of(each)]
        metrics = step.run(make_batch(9, num_groups=8, reward=reward))
        assert (metrics["num_updates"], metrics["updates_skipped"]) == (0, 1), (what, metrics)
        after = [tensor for each in trained for tensor in state_of(each)]
        for mine, other in zip(after, before, strict=True):
            assert mine.equal(other), what
        assert all(bool(tensor.isfinite().all()) for tensor in after), what

    run("a reward", reward=math.nan)
    learner.step.loss_of = infinite_loss if is_to_blame else plain_loss
    run("the loss of one rank")
    learner.step.loss_of = plain_loss
    for each in (engine, critic):
        if each is not None:
            plain = each.backward
            if is_to_blame:
                each.backward = lambda loss, last, plain=plain: plain(loss * math.nan, last=last)
            run("the gradient of one rank")
            each.backward = plain


def state_of(engine: Any) -> list[Any]:
    """Copies of this rank's weights, of those that its optimizer changes, and of Adam's state."""
    optimizer = getattr(engine._optimizer, "optimizer", engine._optimizer)
    weights = [
        getattr(parameter, "ds_tensor", parameter) for parameter in engine.model.parameters()
    ]
    adam = [tensor for state in optimizer.state.values() for tensor in state.values()]
    return [tensor.detach().clone() for tensor in (*weights, *engine._masters(), *adam)]


def weights_of(engine: Any) -> dict[str, Any]:
    """Every weight as an array; empty on other ranks than 0."""
    from learner.weights import full_parameters

    buckets = full_parameters(engine, 10_000)
    return {name: tensor.float().numpy() for bucket in buckets for name, tensor in bucket}


if __name__ == "__main__":
    main()
    leave()
