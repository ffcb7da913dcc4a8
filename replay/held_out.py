"""Prompt streams from a job's data sources, and the prompts of its held-out sets."""

from __future__ import annotations

from replay.render import Tokenizer, renderer
from replay.sources import Items, open_source
from replay.stream import PromptStream
from slipstream.config.job import DataSource, JobConfig
from slipstream.records import Prompt


def stream_of(
    job: JobConfig, source: DataSource, items: Items, tokenizer: Tokenizer, *, shuffle: bool
) -> PromptStream:
    """The prompts of `items`, which were opened from `source`."""
    return PromptStream(
        items,
        renderer(source, tokenizer),
        seed=job.seed,
        shuffle=shuffle,
        max_prompt_tokens=job.data.max_prompt_tokens,
    )


def held_out_prompts(job: JobConfig, tokenizer: Tokenizer) -> dict[str, list[Prompt]]:
    """The first `data.eval_num_prompts` items of every held-out set, in order, without over-long
    ones; by its name. Raises DataError."""
    return {name: _first(job, source, tokenizer) for name, source in job.data.held_out.items()}


def _first(job: JobConfig, source: DataSource, tokenizer: Tokenizer) -> list[Prompt]:
    items = open_source(source)
    stream = stream_of(job, source, items, tokenizer, shuffle=False)
    ordinals = range(min(len(items), job.data.eval_num_prompts))
    return [prompt for ordinal in ordinals if (prompt := stream.prompt(ordinal))]
