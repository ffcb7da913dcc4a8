"""DeepSpeed behind the few calls that the learner needs; the only module that imports it.

DeepSpeed averages gradients over ranks, and the learner's denominators are already global,
so every loss is multiplied by the number of ranks. Microbatches are accumulated by naming
the last one (`set_gradient_accumulation_boundary`), never divided by their number.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from learner import resize
from learner.policy import Critic, Policy, recompute_activations
from slipstream.config.job import JobConfig, LearnerConfig

ADAM_EPS = 1e-8
# Where DeepSpeed 0.19's optimizers keep them: ZeRO 1 and 2, ZeRO 3, ZeRO 1 with bfloat16.
MASTERS = (
    "single_partition_of_fp32_groups",
    "fp32_partitioned_groups_flat",
    "fp32_groups_flat_partition",
)
_TAG = "state"
_BESIDE = "slipstream"


def import_deepspeed() -> None:
    """Import it, and the models of transformers, which takes seconds."""
    ops = importlib.import_module("deepspeed.ops")
    # Its shared-memory collective serves inference alone. It is compiled on first use under a lock
    # file that a killed process leaves behind, and on which every later job would wait for ever.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    importlib.import_module("transformers.modeling_utils")


class LearnerEngine:
    """One rank's model, policy or critic, and its optimizer. The process group exists before it
    is made."""

    def __init__(self, model: Policy | Critic, job: JobConfig, device: torch.device) -> None:
        import_deepspeed()
        import deepspeed

        self._config = job.learner
        self.device = device
        self.num_ranks = dist.get_world_size()
        self.rank = dist.get_rank()
        if job.learner.gradient_checkpointing:
            recompute_activations(model)
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=job.learner.learning_rate,
            betas=job.learner.betas,
            eps=ADAM_EPS,
            weight_decay=job.learner.weight_decay,
            fused=True,
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=_deepspeed_config(job),
            dist_init_required=False,
        )
        if job.learner.zero_stage == 3:
            self._clear_padding()
        self._reading_engine = self._engine.checkpoint_engine
        # It copies scripts into the directory of a checkpoint, which is not there yet.
        self._engine._copy_recovery_script = lambda _directory: None

    @property
    def model(self) -> Any:
        return self._engine.module

    def forward(self, *inputs: Any) -> Any:
        """The model's own `forward`, its parameters gathered as ZeRO needs it."""
        return self._engine(*inputs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of `loss`, whose denominator is global. `last`: the optimizer
        step follows."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.num_ranks)

    def gradient_square(self) -> Tensor:
        """The sum of squares of this rank's part of the gradient, after the last `backward`. It is
        not finite where an element is not."""
        return self._norm() ** 2

    def drop(self) -> None:
        """In the place of `step`: forget the gradients. Weights, moments and their counts stay.

        Every rank calls it.
        """
        if self._config.zero_stage == 0:
            self._engine.zero_grad()
            return
        # DeepSpeed clears what it holds, in many places, as it leaves out an update of such a norm.
        gradients = self._gradients()
        for gradient in gradients:
            gradient.fill_(math.nan)
        self._engine.step()
        for gradient in gradients:
            gradient.zero_()  # ZeRO 3 never writes what pads the last rank's part

    def step(self, learning_rate: float) -> float:
        """Clip and apply the gradients; returns the global norm before clipping, NaN where it
        is not finite (the update may be made in part then)."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        # Without ZeRO DeepSpeed keeps no norm; the gradients are whole on every rank then.
        whole = float(self._norm()) if self._config.zero_stage == 0 else None
        self._engine.step()
        if whole is not None:
            return whole
        norm = float(self._engine.get_global_grad_norm())
        # ZeRO reports a norm that is not finite as -1 or infinite.
        return norm if 0 <= norm < math.inf else math.nan

    def _norm(self) -> Tensor:
        return torch.nn.utils.get_total_norm(self._gradients())

    def _gradients(self) -> list[Tensor]:
        """What DeepSpeed's optimizer steps with, summed over ranks: whole, or this rank's part."""
        if self._config.zero_stage == 0:
            return [p.grad for p in self.model.parameters() if p.grad is not None]
        if hasattr(self._optimizer, "fp32_groups_gradients_flat"):  # ZeRO 1 with bfloat16
            return list(self._optimizer.fp32_groups_gradients_flat)
        groups = self._optimizer.averaged_gradients.values()
        return [gradient for group in groups for gradient in group if gradient is not None]

    def all_sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, on every rank."""
        if self.num_ranks > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        if self.num_ranks > 1:
            dist.barrier()

    @contextmanager
    def gathered(self, parameters: list[Any]) -> Iterator[None]:
        """While entered, whole parameters instead of ZeRO-3 partitions. Never nest."""
        import deepspeed

        if self._config.zero_stage < 3:
            yield
            return
        # After a forward without its backward, the partitions fetched ahead are still on their way.
        # The optimizer's method, not the engine's, which would also collect Python's garbage.
        self._optimizer.empty_partition_cache()
        with deepspeed.zero.GatheredParameters(parameters):
            yield

    def snapshot(self) -> list[Tensor]:
        """Copies of the weights that this rank's optimizer changes, for `return_to`."""
        return [master.detach().clone() for master in self._masters()]

    @torch.no_grad()
    def return_to(self, snapshot: list[Tensor], share: float) -> None:
        """Take back `share` of the way from the weights of `snapshot`; Adam's moments stay.

        Every rank calls it.
        """
        for master, before in zip(self._masters(), snapshot, strict=True):
            master.lerp_(before, share)
        self._fill_model()

    def _fill_model(self) -> None:
        """Give the model the weights of `_masters`; every rank calls it."""
        if self._config.zero_stage in (1, 2):
            self._optimizer.update_lp_params()
        elif self._config.zero_stage == 3:
            self._optimizer.empty_partition_cache()  # or the next forward uses what it has fetched
            for group in range(len(self._masters())):
                self._optimizer._reassign_or_swap_out_partitioned_parameters(group)

    def _masters(self) -> list[Tensor]:
        """What the optimizer changes: the weights themselves, or this rank's part of them in
        float32, from which DeepSpeed fills the model's."""
        if self._config.zero_stage == 0:
            return list(self.model.parameters())
        for name in MASTERS:
            if hasattr(self._optimizer, name):
                return list(getattr(self._optimizer, name))
        raise AssertionError(f"{type(self._optimizer)} keeps its weights elsewhere")

    @torch.no_grad()
    def move(self, other: Policy, share: float) -> None:
        """Bring `other`, whole on every rank, nearer to the model by `share` of the distance.

        Every rank calls it. `other` is in float32: bfloat16 rounds small shares away.
        """
        # Without a value head, which the policy can have and a reference has not.
        for mine, theirs in zip(self.model.hf.parameters(), other.hf.parameters(), strict=True):
            with self.gathered([mine]):
                theirs.lerp_(mine.to(theirs), share)

    def copy_state(self, directory: str, beside: Mapping[str, Any]) -> dict[str, Any]:
        """Copies of this rank's model and optimizer state on the CPU, by the file to put each in,
        for `load`; every rank calls it. `beside`: what else to keep."""
        taken = _TakingEngine()
        self._engine.checkpoint_engine = taken
        self._engine.save_checkpoint(
            directory,
            tag=_TAG,
            client_state={_BESIDE: dict(beside)},
            save_latest=False,  # a file, which the tag spares
            exclude_frozen_parameters=True,
        )
        self._engine.checkpoint_engine = self._reading_engine
        return taken.states

    def load(self, directory: Path) -> dict[str, Any]:
        """Restore what `copy_state` gave; returns what lay beside it. Every rank of a fresh engine
        calls it.

        Another number of ranks or ZeRO stage than that of the files is no matter: every rank then
        takes its part of what all of them had.
        """
        shared = resize.read_shared(directory / _TAG)
        if resize.layout_of(shared) == (self.num_ranks, self._config.zero_stage):
            self._engine.load_checkpoint(str(directory), tag=_TAG)
            self._apply_settings()
        else:
            names = [name for name, _ in self.model.named_parameters()]
            self._take_over(resize.read_parts(directory / _TAG, shared, names))
        return dict(shared[_BESIDE])

    def _apply_settings(self) -> None:
        """What the job file says now, where DeepSpeed has brought back what the commit's said."""
        for group in self._optimizer.param_groups:
            group["weight_decay"], group["betas"] = self._config.weight_decay, self._config.betas
        if hasattr(self._optimizer, "clip_grad"):
            self._optimizer.clip_grad = self._config.max_grad_norm

    @torch.no_grad()
    def _take_over(self, parts: list[resize.Part]) -> None:
        masters = self._masters()
        mine = resize.Part(places=self._places(), masters=masters, adam=[{} for _ in masters])
        resize.fill(mine, parts)
        # ZeRO's optimizers have torch's inside.
        adam = getattr(self._optimizer, "optimizer", self._optimizer)
        for master, state in zip(masters, mine.adam, strict=True):
            if state:
                adam.state[master] = state
        self._fill_model()

    def _places(self) -> list[resize.Place]:
        """What of each parameter this rank has in `_masters`."""
        if self._config.zero_stage == 3:
            shapes = self._engine._get_zero_param_shapes()
            return resize.zero_3_places(shapes, self.rank, self.num_ranks)
        places = []
        for number, (name, parameter) in enumerate(self.model.named_parameters()):
            start, numel, buffer, offset = 0, parameter.numel(), number, 0
            if self._config.zero_stage > 0:
                here = parameter._hp_mapping
                if here is None:  # on other ranks
                    continue
                start, numel = here.lp_fragment_address.start, here.lp_fragment_address.numel
                buffer, offset = here.param_group_index, here.hp_fragment_address.start
            places.append(
                resize.Place(name=name, start=start, numel=numel, buffer=buffer, offset=offset)
            )
        return places

    @torch.no_grad()
    def _clear_padding(self) -> None:
        """ZeRO 3 pads the last ranks' parts with memory as it finds it, which would go into commits
        and need not be finite."""
        places = self._places()
        for buffer, master in enumerate(self._masters()):
            here = [place for place in places if place.buffer == buffer]
            ends = [*(place.offset for place in here[1:]), master.numel()]
            for place, end in zip(here, ends, strict=True):
                master[place.offset + place.numel : end] = 0.0
        self._fill_model()

    def close(self) -> None:
        self._engine.destroy()


class _TakingEngine:
    """In the place of DeepSpeed's `CheckpointEngine`: keeps what would be written."""

    def __init__(self) -> None:
        self.states: dict[str, Any] = {}

    def save(self, state_dict: Any, path: str) -> None:
        self.states[path] = copied(state_dict, {})

    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...

    def create(self, info: Any) -> None: ...

    def commit(self, info: Any) -> bool:
        return True

    def is_decoupled(self) -> bool:
        return False


def copied(state: Any, known: dict[Any, Tensor]) -> Any:
    """`state` with its tensors copied to the CPU, each without the rest of a buffer that it is a
    part of, and the same one only once. `known`: the tensors copied so far."""
    if isinstance(state, Tensor):
        place = (state.device, state.untyped_storage().data_ptr(), state.storage_offset())
        key = (*place, state.shape, state.stride(), state.dtype)
        if state.numel() == 0 or key not in known:
            known[key] = state.detach().to("cpu", copy=True)
        return known[key]
    if isinstance(state, dict):
        same = copy.copy(state)  # of its kind, and with what hangs on it
        same.update({name: copied(value, known) for name, value in state.items()})
        return same
    if type(state) in (list, tuple):
        return type(state)(copied(value, known) for value in state)
    return copy.deepcopy(state)


def learning_rate_at(step: int, config: LearnerConfig) -> float:
    """The rate of learner step `step` (from 0): linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    rest = max(1, config.num_steps - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / rest)
    match config.schedule:
        case "constant":
            return config.learning_rate
        case "linear":
            return config.learning_rate * (1.0 - done)
        case "cosine":
            return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def full_numel(parameter: Any) -> int:
    """Elements of the whole parameter; a ZeRO-3 partition's own `numel()` is 0."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _deepspeed_config(job: JobConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": job.learner.zero_stage}
    if job.learner.zero_stage == 3:
        # Small models would otherwise never be partitioned at all.
        zero["stage3_param_persistence_threshold"] = 0
    bf16 = job.model.dtype == "bfloat16"
    return {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed wants a number; ours vary
        "gradient_accumulation_steps": 1,
        "gradient_clipping": job.learner.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16},
        # In bfloat16 the gradients of many microbatches would round each other away.
        "data_types": {"grad_accum_dtype": "fp32"} if bf16 else {},
        "steps_per_print": 10**9,
    }
