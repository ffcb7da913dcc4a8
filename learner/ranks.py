"""The process group of a learner's ranks: how they meet, and how long one waits for another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from slipstream.config.job import JobConfig
from slipstream.errors import DeadlineExceeded


def join(job: JobConfig) -> torch.device:
    """Meet the other ranks; returns this rank's device."""
    on_gpu = job.learner.gpus_per_rank > 0
    timeout = timedelta(seconds=job.learner.start_timeout_s)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout)
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")


def limit_collectives(timeout_s: float) -> None:
    """Of every collective from now on, those of DeepSpeed's own groups too."""
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


@contextmanager
def collectives(timeout_s: float) -> Iterator[None]:
    """Raises DeadlineExceeded, in plain words, where one failed inside. With NCCL torch may end the
    process instead."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = str(error).rpartition("] ")[2]
        raise DeadlineExceeded(
            f"a collective did not end within {timeout_s:g} s: another rank hangs or died "
            f"({reason})"
        ) from error
