"""Shapes, memory and lengths, with figures worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from orchestrator.estimate.devices import GPUS, gpu_named
from orchestrator.estimate.lengths import quantiles, work_of
from orchestrator.estimate.memory import (
    GIB,
    advice_for_engine,
    advice_for_rank,
    engine_memory,
    rank_memory,
)
from orchestrator.estimate.shape import TIED, UnknownShape, read_shape, shape_of
from slipstream.config.job import JobConfig
from slipstream.errors import SlipstreamError
from tests.helpers.jobs import make_job
from tests.helpers.shapes import QWEN2_5_7B, gpu_job

PARAMS = 7_615_616_512
SHAPE = shape_of(QWEN2_5_7B, "config.json")
ROOT = Path(__file__).parents[3]


def work(job: JobConfig, *, prompt: float = 512, answer: float = 1000) -> Any:
    return work_of(job, prompt_tokens=prompt, answer_tokens=answer, hidden=SHAPE.hidden)


def rank_of(job: JobConfig, gpu: str = "H100") -> Any:
    device = GPUS[gpu]
    return rank_memory(job, SHAPE, work(job), device_bytes=device.memory_bytes, is_gpu=True)


@pytest.mark.parametrize("kind", [*TIED, "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3"])
def test_what_a_config_leaves_out_is_as_transformers_takes_it(kind: str) -> None:
    given = {**QWEN2_5_7B, "model_type": kind}
    del given["tie_word_embeddings"]
    assert shape_of(given, "").is_tied == AutoConfig.for_model(kind).tie_word_embeddings


def test_the_parameters_of_a_published_model() -> None:
    """A layer has 12,848,640 for queries, 3,671,040 for keys and values, 12,845,056 behind them,
    203,685,888 in three matrices and 7,168 in two norms; V x H is 544,997,376."""
    assert SHAPE.layer_params == 233_057_792
    assert SHAPE.head_params == 544_997_376
    assert SHAPE.params == 28 * 233_057_792 + 2 * 544_997_376 + 3584 == PARAMS


def test_the_parameters_of_the_bundled_model_are_those_of_its_file() -> None:
    """The header of safetensors lists every tensor; the tied output layer is none of them."""
    model = ROOT / "examples" / "arithmetic" / "base_model"
    raw = (model / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    counted = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            size = 1
            for extent in tensor["shape"]:
                size *= extent
            counted += size
    shape = read_shape(str(model))
    assert shape.params == counted
    assert shape.sent_params == counted + 19 * 256  # the output layer travels with its own name


def test_zero_3_over_8_ranks() -> None:
    """2 bytes of weights, 4 of gradients, 12 of Adam and the float32 copy, an eighth of each."""
    parts = rank_of(gpu_job()).parts
    assert parts["weights"] == pytest.approx(2 * PARAMS / 8)
    assert parts["gradients"] == pytest.approx(4 * PARAMS / 8)
    assert parts["optimizer"] == pytest.approx(12 * PARAMS / 8)
    states = parts["weights"] + parts["gradients"] + parts["optimizer"]
    assert states / GIB == pytest.approx(15.96, abs=0.01)
    assert parts["buckets"] == 1e9  # 5e8 numbers of 2 bytes
    assert parts["gathered"] == 2e9  # 1e9 numbers


def test_float32_without_zero_is_16_bytes_a_parameter() -> None:
    job = make_job()
    parts = rank_memory(job, SHAPE, work(job, answer=4), device_bytes=1, is_gpu=False).parts
    assert parts["weights"] + parts["gradients"] + parts["optimizer"] == 16 * PARAMS


def test_a_reference_is_whole_on_every_rank_and_a_critic_is_a_second_model() -> None:
    plain = rank_of(gpu_job()).parts
    with_reference = rank_of(gpu_job(algorithm={"kl": {"coefficient": 0.1}})).parts
    assert with_reference["reference"] == 2 * PARAMS
    moving = {"kl": {"coefficient": 0.1, "reference_step": 0.1}}
    assert rank_of(gpu_job(algorithm=moving)).parts["reference"] == 4 * PARAMS
    with_critic = rank_of(gpu_job(algorithm={"advantage": {"kind": "gae"}})).parts
    assert with_critic["optimizer"] == 2 * plain["optimizer"]


def test_activations_go_with_the_microbatch_and_checkpointing_keeps_a_layers_input() -> None:
    job = gpu_job()
    largest = work(job).largest_microbatch
    # 6 H + 3 queries + 3 keys + 4 I numbers of 2 bytes, and two norms in float32.
    layer = 2 * (6 * 3584 + 3 * 3584 + 3 * 512 + 4 * 18944) + 8 * 3584
    assert rank_of(job).parts["activations"] == 28 * layer * largest
    less = rank_of(gpu_job(learner={"gradient_checkpointing": True}))
    assert less.parts["activations"] == (28 * 2 * 3584 + layer) * largest


def test_logits_are_chunks_and_never_all() -> None:
    """3 chunks of 64 MiB, and the output layer's gradient in float32; all would be 4 x N x V."""
    assert rank_of(gpu_job()).parts["logits"] == 3 * 64 * 2**20 + 4 * 544_997_376


def test_an_engines_cache() -> None:
    """Keys and values of 28 layers and 4 heads of 128: 57,344 bytes a token in bfloat16."""
    job = gpu_job()
    memory, cache = engine_memory(job, SHAPE, work(job), device_bytes=80e9)
    assert cache.bytes_per_token == 57_344
    assert memory.total_bytes == pytest.approx(0.85 * 80e9)  # vLLM takes what it may
    assert memory.parts["weights"] == 2 * PARAMS
    assert cache.num_tokens == int(memory.parts["KV cache"] // 57_344)
    assert cache.context_tokens == 1024 + 2048
    assert cache.sequences_at_longest == cache.num_tokens // 3072 > 200


def test_tensor_parallel_engines_repeat_heads_that_are_too_few() -> None:
    job = gpu_job(rollout={"gpus": 8})
    _, cache = engine_memory(job, SHAPE, work(job), device_bytes=80e9)
    assert cache.bytes_per_token == 2 * 57_344  # 4 heads on 8 GPUs


def test_what_fits_and_what_does_not() -> None:
    fitting = gpu_job(learner={"gradient_checkpointing": True})
    assert rank_of(fitting).fits
    assert advice_for_rank(fitting, rank_of(fitting)) == []
    alone = gpu_job(learner={"num_ranks": 1, "zero_stage": 1, "gradient_checkpointing": True})
    memory = rank_of(alone)
    assert not memory.fits  # 16 bytes a parameter and more are above 122 GB
    assert "learner.num_ranks=2 with learner.zero_stage=3" in advice_for_rank(alone, memory)


def test_a_large_microbatch_is_cut_before_ranks_are_added() -> None:
    job = gpu_job(learner={"max_tokens_per_microbatch": 65536})
    memory = rank_of(job)
    assert not memory.fits
    advice = advice_for_rank(job, memory)
    assert advice[0].startswith("learner.gradient_checkpointing=true")
    assert advice[1] == "learner.max_tokens_per_microbatch=32768"
    assert "num_ranks" in advice[-1]


def test_ranks_of_one_machine_share_its_memory() -> None:
    job = make_job()
    memory = rank_memory(job, SHAPE, work(job, answer=4), device_bytes=24e9, is_gpu=False)
    assert not memory.fits
    assert advice_for_rank(job, memory)[-1] == "a smaller model, or a machine with more memory"


def test_an_engine_too_small_for_the_model_is_widened() -> None:
    job = gpu_job()
    memory, cache = engine_memory(job, SHAPE, work(job), device_bytes=GPUS["A10"].memory_bytes)
    assert cache.sequences_at_longest < 64
    memory, cache = engine_memory(job, SHAPE, work(job), device_bytes=16e9)
    assert not memory.fits
    assert advice_for_engine(job, memory, cache)[0] == "rollout.gpus=2 (tensor parallel)"


@given(
    count=st.integers(1, 300),
    mean=st.floats(1, 600),
    most=st.integers(1, 600),
    more=st.floats(1, 9),
)
def test_lengths_have_the_mean_and_grow_with_it(
    count: int, mean: float, most: int, more: float
) -> None:
    lengths = quantiles(count, mean, most)
    assert all(1 <= length <= most for length in lengths)
    assert sorted(lengths) == lengths
    assert sum(quantiles(count, mean + more, most)) >= sum(lengths)
    if count >= 100 and mean <= most / 2:
        assert sum(lengths) / count == pytest.approx(mean, rel=0.1, abs=0.5)


def test_short_answers_share_their_prompts_row_and_long_ones_do_not() -> None:
    """32 prompts of 7 tokens with 8 answers of 3: 6 + 24 positions a group; apart it is 8 x 9."""
    rollout = {"group_size": 8, "max_new_tokens": 3}
    job = make_job(learner={"groups_per_batch": 32}, rollout=rollout)
    shared = work_of(job, prompt_tokens=7, answer_tokens=3, hidden=256)
    assert shared.input_tokens == 32 * (6 + 24)
    apart = work_of(job, prompt_tokens=7, answer_tokens=3, hidden=0)
    assert apart.input_tokens == 256 * 9
    assert apart.trained_tokens == 256 * 3


def test_padding_is_counted_as_the_learner_packs() -> None:
    """Measured in runs of this setting: a padding share of 0.32."""
    job = make_job(
        learner={"groups_per_batch": 8, "max_tokens_per_microbatch": 4096},
        rollout={"group_size": 8, "max_new_tokens": 512},
    )
    assert work_of(
        job, prompt_tokens=12, answer_tokens=119, hidden=256
    ).padding_share == pytest.approx(0.32, abs=0.02)


def test_an_unknown_gpu_names_those_that_are_known() -> None:
    with pytest.raises(SlipstreamError, match=r"'H1000' is not known; expected one of A10, A100"):
        gpu_named("H1000")
    assert gpu_named("h100") is GPUS["H100"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"num_experts": 64}, "mixtures of experts"),
        ({"hidden_size": None}, "has no hidden_size"),
    ],
)
def test_a_model_of_another_kind_is_refused(change: dict[str, Any], part: str) -> None:
    with pytest.raises(UnknownShape, match=part):
        shape_of({**QWEN2_5_7B, **change}, "config.json")


def test_a_model_on_the_hub_is_to_be_downloaded_first() -> None:
    with pytest.raises(UnknownShape, match="download the model"):
        read_shape("Qwen/Qwen2.5-7B")
