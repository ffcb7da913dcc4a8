"""A commit of a real DeepSpeed engine: copies that training does not change, and the way back.

    python commit_deepspeed.py MODEL OUT ZERO_STAGE...

Trains two steps, starts a commit, trains two more while its files are held back, then lets
them be written. A fresh engine restored from them must be, bit for bit, what was there at the
commit, and must train on to the same weights.
"""

from __future__ import annotations

import random
import sys
import threading
from pathlib import Path
from typing import Any

from tests.helpers.ranks import leave


def main() -> None:
    model, out, *stages = sys.argv[1:]
    import torch.distributed as dist

    dist.init_process_group("gloo")
    for stage in stages:
        check(model, Path(out) / stage, int(stage), dist.get_world_size())


def check(model: str, root: Path, stage: int, num_ranks: int) -> None:
    import torch

    from learner import checkpoint
    from learner.commit_writer import CommitWriter
    from slipstream.records import ReplaySnapshot
    from slipstream.telemetry import EventLog
    from tests.helpers.jobs import make_batch

    contents = make(model, stage, num_ranks)
    rank = contents.engine.rank
    may_write = threading.Event()

    def held_back() -> dict[str, Any]:
        def wait_and(write: Any) -> Any:
            return lambda path: (may_write.wait(), write(path))

        return {name: wait_and(write) for name, write in contents.copy().items()}

    events = EventLog("learner", 0)
    writer = CommitWriter(
        contents.job,
        root,
        timeline=1,
        rank=rank,
        copy=held_back,
        rank_0_says=bool,
        events=events,
    )
    for version in range(2):
        contents.step.run(make_batch(version))
    draws()
    before = everything(contents)
    writer.start(2, ReplaySnapshot(state={"version": 2}, groups={}))
    drawn = draws()
    for version in range(2, 4):
        contents.step.run(make_batch(version))
    after = everything(contents)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    may_write.set()
    writer.wait()
    contents.engine.barrier()
    found = checkpoint.find(root)
    assert found.commit is not None, found
    assert found.commit.version == 2
    contents.engine.close()
    contents.critic.close()

    torch.manual_seed(7)
    again = make(model, stage, num_ranks)
    again.restore(found.commit.learner_dir)
    assert draws() == drawn, "the random states differ"
    compare(everything(again), before)
    for version in range(2, 4):
        again.step.run(make_batch(version))
    compare(everything(again), after)
    # Each commit joins the one before it.
    writer = CommitWriter(
        again.job, root, timeline=2, rank=rank, copy=again.copy, rank_0_says=bool, events=events
    )
    for version in (4, 5):
        writer.start(version, None)
    writer.wait()
    again.engine.barrier()
    for event in events.drain():
        assert event["kind"] == "commit", event
        print(f"stage {stage}: paused {event['pause_s']:.4f} s, wrote {event['seconds']:.4f} s")
    model_dir = checkpoint.find(root).required().path / "model"
    from transformers import AutoModelForCausalLM

    saved = AutoModelForCausalLM.from_pretrained(model_dir).state_dict()
    for name, tensor in everything(again).items():
        if name.startswith("policy.") and "adam" not in name:
            assert torch.equal(saved[name.removeprefix("policy.")], tensor), name
    again.engine.close()
    again.critic.close()


def make(model: str, stage: int, num_ranks: int) -> Any:
    import torch

    from learner.contents import Contents
    from learner.engine import LearnerEngine
    from learner.policy import load_critic, load_policy
    from learner.step import LearnerStep
    from tests.helpers.jobs import make_job

    job = make_job(
        model,
        algorithm={
            "advantage": {"kind": "gae"},
            "kl": {"coefficient": 0.01, "reference_step": 0.1},
        },
        learner={"zero_stage": stage, "num_ranks": num_ranks},
    )
    cpu = torch.device("cpu")
    engine = LearnerEngine(load_policy(job.model), job, cpu)
    critic = LearnerEngine(load_critic(job.model, None), job, cpu)
    reference = load_policy(job.model).eval().requires_grad_(False)
    step = LearnerStep(job, engine, reference, critic)
    return Contents(job=job, engine=engine, critic=critic, reference=reference, step=step)


def everything(contents: Any) -> dict[str, Any]:
    """Weights, optimizer state and reference, as copies."""
    from learner.weights import full_parameters

    tensors: dict[str, Any] = {}
    for kind, engine in (("policy", contents.engine), ("critic", contents.critic)):
        for bucket in full_parameters(engine, 10_000):
            tensors |= {f"{kind}.{name}": tensor for name, tensor in bucket}
        optimizer = getattr(engine._optimizer, "optimizer", engine._optimizer)
        for place, state in enumerate(optimizer.state.values()):
            for name, value in state.items():
                tensors[f"{kind}.adam.{place}.{name}"] = value.detach().clone()
    for name, tensor in contents.reference.state_dict().items():
        tensors[f"reference.{name}"] = tensor.clone()
    policy = ["policy.model."] if contents.engine.rank == 0 else []
    for what in ("policy.adam.", "critic.adam.", "reference.", *policy):
        assert any(name.startswith(what) for name in tensors), what
    return tensors


def draws() -> tuple[float, float, float]:
    import numpy as np
    import torch

    return random.random(), float(np.random.rand()), float(torch.rand(1))


def compare(found: dict[str, Any], expected: dict[str, Any]) -> None:
    import torch

    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


if __name__ == "__main__":
    main()
    leave()
