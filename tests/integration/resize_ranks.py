"""One rank of a learner whose commit others restore: another number of ranks, another ZeRO stage.

    python resize_ranks.py MODEL OUT ACTION...

`save:STAGE:DTYPE:STEPS:RUN` trains so many steps, writes its part of a commit into OUT/RUN, and
trains one more. `load:STAGE:DTYPE:STEPS:RUN:NEW` restores that commit into other weights and trains
the same step. Rank 0 writes what was there at the commit and after the step, OUT/RUN.npz or
OUT/NEW.npz: whole float32 weights and moments, by DeepSpeed's own way to put them together.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.helpers.ranks import leave


def main() -> None:
    model, out, *actions = sys.argv[1:]
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    for number, action in enumerate(actions):
        torch.manual_seed(number)
        kind, stage, dtype, steps, run, *new = action.split(":")
        contents = make(model, int(stage), dtype, dist.get_world_size())
        if kind == "save":
            save(contents, int(steps), Path(out) / run)
        else:
            load(contents, Path(out) / run)
        train_on(contents, int(steps), Path(out) / f"{(new or [run])[0]}.npz")
        contents.engine.close()
        contents.critic.close()


def make(model: str, stage: int, dtype: str, num_ranks: int) -> Any:
    import torch

    from learner.contents import Contents
    from learner.engine import LearnerEngine
    from learner.policy import load_critic, load_policy
    from learner.step import LearnerStep
    from tests.helpers.jobs import make_job

    job = make_job(
        model,
        seed=3,
        algorithm={
            "advantage": {"kind": "gae"},
            "kl": {"coefficient": 0.01, "reference_step": 0.1, "adaptive": {"target": 0.1}},
        },
        learner={
            "zero_stage": stage,
            "num_ranks": num_ranks,
            "max_tokens_per_microbatch": 100,
            "learning_rate": 3e-4,
        },
    )
    job = job.model_copy(update={"model": job.model.model_copy(update={"dtype": dtype})})
    cpu = torch.device("cpu")
    engine = LearnerEngine(load_policy(job.model), job, cpu)
    critic = LearnerEngine(load_critic(job.model, None), job, cpu)
    reference = load_policy(job.model).float().eval().requires_grad_(False)
    step = LearnerStep(job, engine, reference, critic)
    return Contents(job=job, engine=engine, critic=critic, reference=reference, step=step)


def save(contents: Any, steps: int, root: Path) -> None:
    from tests.helpers.jobs import make_batch

    for version in range(steps):
        contents.step.run(make_batch(version))
    for name, write in contents.copy().items():
        if name != "model":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            write(root / name)


def load(contents: Any, root: Path) -> None:
    import torch

    for engine in (contents.engine, contents.critic):  # else what is not restored goes unnoticed
        other = engine.snapshot()
        engine.return_to([torch.full_like(master, 7.0) for master in other], 1.0)
    contents.restore(root / "learner")


def train_on(contents: Any, steps: int, result: Path) -> None:
    """Save what is there, and the weights after another step."""
    import numpy as np
    import torch

    from tests.helpers.jobs import make_batch

    arrays = {"draw": torch.rand(1).numpy(), **everything(contents)}
    contents.step.run(make_batch(steps))
    after = everything(contents)
    arrays |= {f"next.{name}": array for name, array in after.items() if "master" in name}
    if contents.engine.rank == 0:
        np.savez(result, **arrays)


def everything(contents: Any) -> dict[str, Any]:
    """Float32 weights, moments and step counts by parameter, algorithm state and reference."""
    import numpy as np
    import torch
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    arrays = {}
    for kind, engine in (("policy", contents.engine), ("critic", contents.critic)):
        adam = getattr(engine._optimizer, "optimizer", engine._optimizer)
        zero = engine._config.zero_stage > 0
        if adam.state and hasattr(engine._optimizer, "_lazy_init_hp_params_optimizer_state"):
            # ZeRO 1 and 2 find a parameter's moments from their first step on.
            engine._optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in engine.model.named_parameters():
            master = safe_get_full_fp32_param(parameter) if zero else parameter
            with engine.gathered([parameter]):
                assert torch.equal(parameter, master.to(parameter.dtype)), name
            arrays[f"{kind}.master.{name}"] = copy_of(master)
            for key in ("exp_avg", "exp_avg_sq") if adam.state else ():
                moment = (
                    safe_get_full_optimizer_state(parameter, key)
                    if zero
                    else adam.state[parameter][key]
                )
                arrays[f"{kind}.{key}.{name}"] = copy_of(moment)
        steps = {float(state["step"]) for state in adam.state.values()}
        arrays[f"{kind}.steps"] = np.array(sorted(steps))
    for name, value in contents.step.state.snapshot(contents.job.algorithm).items():
        arrays[f"state.{name}"] = np.array(value)
    for name, tensor in contents.reference.state_dict().items():
        arrays[f"reference.{name}"] = copy_of(tensor)
    return arrays


def copy_of(tensor: Any) -> Any:
    return tensor.detach().float().clone().numpy()


if __name__ == "__main__":
    main()
    leave()
