"""The `nccl` transport: weights go GPU to GPU through vLLM's own packed NCCL engine.

Not run where there is no GPU, and so not by this project's tests: written against
`vllm/distributed/weight_transfer/` of vLLM 0.32 and 0.33, whose interface changes between
releases. This module is all of it on the learner's side; the workers' side is
`VllmEngine.transfer`.

Rank 0 of the learner and every worker's GPUs form one NCCL group. A publish is one control
call a phase and worker: start, update (beside the broadcast), finish.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from learner.engine import LearnerEngine
from learner.weights import full_parameters, named_parameters
from slipstream.config.job import JobConfig
from slipstream.records import Probe, WeightUpdate

# Runs one call of the transfer on every worker, with one payload each, and waits for all.
CallWorkers = Callable[[str, Sequence[Any]], None]


class NcclPublisher:
    """Publishes by broadcast; the group is formed at the first publish."""

    def __init__(
        self,
        job: JobConfig,
        engine: LearnerEngine,
        *,
        bucket_bytes: int,
        call_workers: CallWorkers,
        rendezvous: tuple[str, int],
    ) -> None:
        self._engine = engine
        self._rendezvous = rendezvous
        self._num_gpus = job.rollout.num_workers * job.rollout.gpus
        self._client = _Client(job, call_workers)
        self._source = _Source(engine, bucket_bytes)
        self._transfer: Any = None

    def publish(self, timeline: int, version: int, probe: Probe | None) -> dict[str, float]:
        """Send `version` to every worker; every rank calls it."""
        start_s = time.perf_counter()
        self._client.update = WeightUpdate(
            timeline=timeline,
            version=version,
            bucket_specs=(),
            buckets=(),
            probe=probe,
            published_at_s=time.time(),
        )
        if self._transfer is None:
            self._transfer = self._form_group()
        self._transfer.send_weights()
        return {
            "gather_s": self._source.gather_s,
            "publish_s": time.perf_counter() - start_s - self._source.gather_s,
            "num_bytes": self._source.num_bytes,
        }

    def remind(self) -> None: ...  # no board: every worker has it once `publish` returns

    def _form_group(self) -> Any:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        address, port = self._rendezvous
        return WeightTransferTrainerFactory.trainer_init(
            NCCLTrainerInitInfo(
                rank=self._engine.rank,
                master_address=address,
                master_port=port,
                world_size=1 + self._num_gpus,
                packed=True,
            ),
            client=self._client,
            source=self._source,
        )


class _Client:
    """vLLM's `VLLMWeightSyncClient` over the workers' actors."""

    def __init__(self, job: JobConfig, call_workers: CallWorkers) -> None:
        self._num_workers = job.rollout.num_workers
        self._gpus_each = job.rollout.gpus
        self._call_workers = call_workers
        self.update: WeightUpdate | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Every worker's GPUs follow those of the worker before."""
        offset = int(init_info["rank_offset"])
        payloads = [
            {"init_info": {**init_info, "rank_offset": offset + index * self._gpus_each}}
            for index in range(self._num_workers)
        ]
        self._call_workers("init_weight_transfer_engine", payloads)

    def start_weight_update(self) -> None:
        self._call_workers("start_weight_update", [{}] * self._num_workers)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._call_workers("update_weights", [{"update_info": update_info}] * self._num_workers)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """The workers get the whole record, and with it our version and the probe."""
        self._call_workers("finish_weight_update", [{"update": self.update}] * self._num_workers)


class _Source:
    """vLLM's `WeightSource`: whole parameters in a fixed order, gathered by bucket."""

    def __init__(self, engine: LearnerEngine, bucket_bytes: int) -> None:
        self._engine = engine
        self._bucket_bytes = bucket_bytes
        self.gather_s = 0.0  # of the newest pass
        self.num_bytes = 0

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [
            ParamMeta(name, parameter.dtype, tuple(getattr(parameter, "ds_shape", parameter.shape)))
            for name, parameter in named_parameters(self._engine)
        ]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.gather_s, self.num_bytes = 0.0, 0
        start_s = time.perf_counter()
        for bucket in full_parameters(self._engine, self._bucket_bytes, self._engine.device):
            self.gather_s += time.perf_counter() - start_s
            self.num_bytes += sum(tensor.nbytes for _, tensor in bucket)
            yield from bucket
            start_s = time.perf_counter()
