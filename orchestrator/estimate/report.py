"""What `slipstream plan` says, as tables or JSON, and how far to trust it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.estimate.devices import Device
from orchestrator.estimate.lengths import Work
from orchestrator.estimate.memory import GIB, Cache, Memory
from orchestrator.estimate.modes import Balance, ModeTime, Parts
from orchestrator.estimate.shape import ModelShape
from slipstream.config.job import JobConfig

MEMORY_TITLE = "Memory of one actor, GiB"
CPU_TRUST = (
    "Times are of this machine's cores: one was measured just now, for matrix products and plain "
    "Python; what every call costs was fitted to runs on two cores (docs/results/plan.md compares "
    "both). Other work on the machine changes them."
)
GPU_TRUST = (
    "Times on GPUs come from data sheets and assumed efficiencies (docs/plan.md); this project has "
    "not checked them on a GPU. Trust the ratios more than the seconds; expect a factor of 2."
)
MEMORY_TRUST = (
    "Memory: weights, gradients and optimizer follow from the settings; activations and what "
    "libraries take are estimates. Leave a tenth free."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """Tokens, and where the figure is from."""

    tokens: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the job would run on."""

    rollout: Device
    learner: Device
    num_cores: int  # of this machine
    memory_bytes: float  # of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """All that is told of a job."""

    job: JobConfig
    shape: ModelShape
    machine: Machine
    prompt: Mean
    answer: Mean
    work: Work
    rank: Memory
    engine: Memory
    cache: Cache
    parts: Parts
    modes: tuple[ModeTime, ...]
    balance: Balance | None  # None where the roles share devices
    advice: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.advice

    @property
    def step_s(self) -> float:
        """Of the job's own mode."""
        return next(time.step_s for time in self.modes if time.mode == self.job.mode)

    def trust(self) -> list[str]:
        devices = (self.machine.rollout, self.machine.learner)
        times = [CPU_TRUST] if any(device.is_core for device in devices) else []
        times += [GPU_TRUST] if not all(device.is_core for device in devices) else []
        return [*times, MEMORY_TRUST]

    def as_json(self) -> dict[str, Any]:
        return {
            "job": self.job.name,
            "mode": self.job.mode,
            "params": self.shape.params,
            "devices": {
                "rollout": self.machine.rollout.name,
                "learner": self.machine.learner.name,
            },
            "fits": self.fits,
            "advice": list(self.advice),
            "memory_bytes": {
                "learner rank": _memory_json(self.rank),
                "engine": _memory_json(self.engine),
            },
            "kv_cache": {
                **asdict(self.cache),
                "sequences_at_longest": self.cache.sequences_at_longest,
                "sequences_at_mean": self.cache.sequences_at_mean,
            },
            "lengths": {"prompt": asdict(self.prompt), "answer": asdict(self.answer)},
            "work": {**asdict(self.work), "padding_share": self.work.padding_share},
            "parts_s": asdict(self.parts),
            "step_s": self.step_s,
            "modes": {time.mode: asdict(time) for time in self.modes},
            "balance": None if self.balance is None else asdict(self.balance),
            "trust": self.trust(),
        }

    def as_text(self) -> RenderableType:
        return Group(*self._tables(), *map(Text, self._lines()))

    def _tables(self) -> Iterator[Table]:
        yield _memory_table(self.rank, self.engine)
        yield _parts_table(self.parts)
        yield _modes_table(self.modes, self.job, self.work)

    def _lines(self) -> Iterator[str]:
        job, cache, balance = self.job, self.cache, self.balance
        yield (
            f"model: {self.shape.params:,} parameters, {cache.bytes_per_token:,.0f} bytes of KV "
            f"cache a token; {_plural(job.rollout.num_workers, 'engine')} on "
            f"{self.machine.rollout.name}, {_plural(job.learner.num_ranks, 'rank')} on "
            f"{self.machine.learner.name}"
        )
        yield (
            f"answers: {self.answer.tokens:.1f} tokens on average ({self.answer.source}), prompts: "
            f"{self.prompt.tokens:.1f} ({self.prompt.source}); --answer-tokens and --prompt-tokens "
            "say it better"
        )
        yield (
            f"an engine holds {cache.sequences_at_longest:,} sequences of the longest kind, "
            f"{cache.sequences_at_mean:,} of the mean; rollout.num_slots is {job.rollout.num_slots}"
        )
        if balance is not None:
            yield (
                f"balance: {balance.rollout_per_learner:.2f} rollout devices for one of the "
                f"learner; of as many as here {balance.num_rollout} and {balance.num_learner}"
            )
        if self.advice:
            yield "It does not fit. What would help, the first that is enough:"
            yield from (f"  {line}" for line in self.advice)
        else:
            yield "It fits."
        yield from self.trust()


def _memory_json(memory: Memory) -> dict[str, Any]:
    return {**asdict(memory), "total_bytes": memory.total_bytes, "fits": memory.fits}


def _memory_table(rank: Memory, engine: Memory) -> Table:
    table = Table(title=MEMORY_TITLE, title_justify="left")
    table.add_column("of")
    table.add_column("learner rank", justify="right")
    table.add_column("engine", justify="right")
    for name in dict.fromkeys([*rank.parts, *engine.parts]):
        table.add_row(name, *(_gib(memory.parts.get(name)) for memory in (rank, engine)))
    table.add_row("all", _gib(rank.total_bytes), _gib(engine.total_bytes))
    table.add_row("may have", _gib(rank.limit_bytes), _gib(engine.limit_bytes))
    table.add_row("fits", *("yes" if memory.fits else "NO" for memory in (rank, engine)))
    return table


def _parts_table(parts: Parts) -> Table:
    generation, handover = parts.generation, parts.handover
    table = Table(title="One step's parts", title_justify="left")
    table.add_column("part")
    table.add_column("seconds", justify="right")
    for name, seconds in (
        ("generation, alone (the longest answers are waited for)", generation.alone_s),
        ("generation, engines kept full", generation.flow_s),
        ("training", parts.training_s),
        ("weights: publishing", handover.publish_s),
        ("weights: on the way", handover.wire_s),
        ("weights: adopting", handover.adopt_s),
        ("between the roles", parts.between_s),
    ):
        table.add_row(name, f"{seconds:.3f}")
    return table


def _modes_table(modes: tuple[ModeTime, ...], job: JobConfig, work: Work) -> Table:
    table = Table(title="One step in each mode", title_justify="left")
    table.add_column("mode")
    table.add_column("max_staleness", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("trained tokens/s", justify="right")
    table.add_column("what takes so long")
    for time in modes:
        mine = " (this job)" if time.mode == job.mode else ""
        rate = f"{work.trained_tokens / time.step_s:,.0f}"
        staleness = str(time.max_staleness)
        table.add_row(time.mode + mine, staleness, f"{time.step_s:.3f}", rate, time.bound)
    table.caption = "the same engines and ranks each; in sync mode they share devices, in turns"
    table.caption_justify = "left"
    return table


def _gib(num_bytes: float | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / GIB:,.2f}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
