"""vLLM behind the Engine protocol; the only module of this package that imports vllm.

The engine runs in this process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`), so that a decode step
is a function call and weights change between two of them. Written for vLLM 0.32 and 0.33.

*Prefix cache.* KV blocks computed by one version must not serve a request submitted at
another: every request's blocks are salted with the count of loads at which it was submitted. The
version would not do: when the run goes back, other weights get the same one.

*In flight.* A rollout that spans versions keeps the KV cache of its earlier tokens, as
vLLM's `pause_generation(mode="keep")` does; the log-probs recorded are those of the policy
that really sampled.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from rollout_worker.engine import GREEDY, Generation, GenerationRequest
from slipstream.config.job import ModelConfig, RolloutConfig
from slipstream.errors import SlipstreamError
from slipstream.records import FinishReason, LogProbs, TokenIds, VersionSpan

_SCORE_ID = "score"
_RELOAD = "vllm.model_executor.model_loader.reload.layerwise"


def import_vllm(config: RolloutConfig, cores: Sequence[int]) -> None:
    """Set what vLLM reads when it is imported, and import it, which takes seconds."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if config.gpus == 0:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.kv_cache_gib)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores)) or "nobind"
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(cores)))
    importlib.import_module("vllm.v1.engine.llm_engine")
    # It warns at every adoption of buffers that no checkpoint holds; the probe checks what counts.
    logging.getLogger(_RELOAD).setLevel(logging.ERROR)


class VllmEngine:
    """A real vLLM engine. `max_tokens` bounds prompt plus answer. With a `metrics_name`, in a
    process of Ray, it exports vLLM's own metrics, whose tag `model_name` that is."""

    def __init__(
        self,
        model: ModelConfig,
        config: RolloutConfig,
        *,
        max_tokens: int,
        eos_token_ids: Sequence[int],
        seed: int,
        transport: str = "object_store",
        metrics_name: str | None = None,
    ) -> None:
        self._eos_token_ids = list(eos_token_ids)
        self._version = -1
        self._num_loads = 0
        self._running: set[str] = set()
        self._finished_while_scoring: list[Generation] = []
        self._scores: list[LogProbs] = []
        self._can_sleep = config.colocate and config.gpus > 0
        self._asleep = False
        self._engine = _build(
            model,
            config,
            max_tokens,
            seed,
            can_sleep=self._can_sleep,
            transport=transport,
            metrics_name=metrics_name,
        )
        self._metrics = None if metrics_name is None else _metrics()
        self._engine.set_weight_version(str(self._version))  # the model's own weights
        self._num_tokens = 0
        self._count_tokens()

    @property
    def version(self) -> int:
        return self._version

    @property
    def num_running(self) -> int:
        return len(self._running) + len(self._finished_while_scoring)

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def submit(self, request: GenerationRequest) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=request.temperature,
            top_p=1.0 if request.temperature == GREEDY else request.top_p,
            seed=None if request.temperature == GREEDY else request.seed,
            max_tokens=request.max_new_tokens,
            stop_token_ids=self._eos_token_ids,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # made for this request alone
        )
        self._add(request.request_id, request.prompt_token_ids, params)
        self._running.add(request.request_id)

    def step(self) -> list[Generation]:
        done, self._finished_while_scoring = self._finished_while_scoring, []
        if self._engine.has_unfinished_requests():
            done.extend(self._step_engine())
        return done

    def abort(self, request_ids: Sequence[str]) -> None:
        known = [request_id for request_id in request_ids if request_id in self._running]
        self._engine.abort_request(known)
        self._running.difference_update(known)

    def load(self, version: int, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        first = next(tensors, None)
        if first is None:
            raise SlipstreamError(f"the weight update to version {version} held no tensors")
        weights = chain([first], tensors)
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._version = version
        self._num_loads += 1
        self._engine.set_weight_version(str(version))

    def transfer(self, call: str, payload: Mapping[str, Any]) -> None:
        """vLLM's own lifecycle: init_weight_transfer_engine, start_weight_update and
        update_weights. Needs a GPU; not run by this project's tests."""
        self._engine.collective_rpc(call, kwargs=dict(payload))

    def finish_transfer(self, version: int) -> None:
        self._engine.collective_rpc("finish_weight_update")
        self._version = version
        self._num_loads += 1
        self._engine.set_weight_version(str(version))

    def score(self, token_ids: TokenIds) -> LogProbs:
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=1.0, max_tokens=1, prompt_logprobs=0, detokenize=False, ignore_eos=True
        )
        self._add(_SCORE_ID, token_ids, params)
        while not self._scores:
            self._finished_while_scoring.extend(self._step_engine())
        return self._scores.pop()

    def sleep(self) -> None:
        if self._can_sleep:
            self._engine.sleep(level=2)
            self._asleep = True

    def wake(self) -> None:
        if self._asleep:
            self._engine.wake_up()
            self._asleep = False

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
        self._engine.engine_core.shutdown()

    def _add(self, request_id: str, token_ids: TokenIds, params: Any) -> None:
        prompt = {"prompt_token_ids": token_ids.tolist(), "cache_salt": str(self._num_loads)}
        self._engine.add_request(request_id, prompt, params)

    def _count_tokens(self) -> None:
        """Count what the core hands out; the engine tells of an answer only once it is whole."""
        core = self._engine.engine_core
        get_output = core.get_output

        def counted() -> Any:
            made = get_output()
            self._num_tokens += sum(len(output.new_token_ids) for output in made.outputs)
            return made

        core.get_output = counted

    def _step_engine(self) -> list[Generation]:
        done = []
        for output in self._engine.step():
            if not output.finished:
                continue
            if output.request_id == _SCORE_ID:
                self._scores.append(_prompt_logprobs(output))
            elif output.request_id in self._running:
                self._running.remove(output.request_id)
                done.append(self._generation(output))
        return done

    def _generation(self, output: Any) -> Generation:
        answer = output.outputs[0]
        token_ids = np.asarray(answer.token_ids, dtype=np.int32)
        return Generation(
            request_id=output.request_id,
            token_ids=token_ids,
            logprobs=_sampled_logprobs(answer),
            spans=tuple(
                VersionSpan(version=int(span.version), start=span.start, stop=span.end)
                for span in answer.weight_versions
                if span.end > span.start
            ),
            finish_reason=(
                FinishReason.EOS if answer.finish_reason == "stop" else FinishReason.LENGTH
            ),
        )


def _build(
    model: ModelConfig,
    config: RolloutConfig,
    max_tokens: int,
    seed: int,
    *,
    can_sleep: bool,
    transport: str,
    metrics_name: str | None,
) -> Any:
    from vllm import EngineArgs
    from vllm.config import WeightTransferConfig
    from vllm.v1.engine.llm_engine import LLMEngine

    if config.gpus > 0:
        devices: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_share}
    else:
        # vLLM cannot take back the random numbers that a part of a prompt has used up without a
        # GPU ("CPU Generator does not use offset"): prompts are taken in whole.
        devices = {"enable_chunked_prefill": False}
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=model.path,
            served_model_name=metrics_name,
            revision=model.revision,
            load_format="safetensors",  # a pickle can run code
            **model.code,
            dtype=model.dtype,
            seed=seed,
            max_model_len=max_tokens,
            max_num_seqs=config.num_slots,
            tensor_parallel_size=max(1, config.gpus),
            distributed_executor_backend="uni" if config.gpus <= 1 else "mp",
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            skip_tokenizer_init=True,
            enable_prefix_caching=True,
            enforce_eager=config.enforce_eager,
            enable_sleep_mode=can_sleep,
            async_scheduling=False,
            disable_log_stats=metrics_name is None,
            weight_transfer_config=WeightTransferConfig("nccl") if transport == "nccl" else None,
            **devices,
        ),
        stat_loggers=None if metrics_name is None else [_stat_logger()],
    )


def _metrics() -> Any:
    from rollout_worker.engine_metrics import EngineMetrics  # and Ray

    return EngineMetrics()


def _stat_logger() -> Any:
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    from rollout_worker.engine_metrics import Forgiving

    forgiving = Forgiving()

    class StatLogger(PrometheusStatLogger):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            with forgiving:
                super().__init__(*arguments, **options)

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, *rest: Any, **more: Any
        ) -> None:
            if iteration_stats is not None:  # one call a token would cost more than all others
                iteration_stats.inter_token_latencies_iter = []
            with forgiving:
                super().record(scheduler_stats, iteration_stats, *rest, **more)

        def record_sleep_state(self, *arguments: Any, **options: Any) -> None:
            with forgiving:
                super().record_sleep_state(*arguments, **options)

        def log_engine_initialized(self) -> None:
            with forgiving:
                super().log_engine_initialized()

    return StatLogger


def _sampled_logprobs(answer: Any) -> LogProbs:
    pairs = zip(answer.token_ids, answer.logprobs, strict=True)
    values = np.fromiter(
        (position[token].logprob for token, position in pairs), np.float32, len(answer.token_ids)
    )
    # Rounding can put a log-prob of a certain token a hair above 0.
    return np.minimum(values, np.float32(0.0))


def _prompt_logprobs(output: Any) -> LogProbs:
    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return np.asarray([position[token].logprob for token, position in pairs], dtype=np.float32)
