"""Step time of the modes, balance, and what must not make a job slower."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.estimate.assemble import estimate
from orchestrator.estimate.devices import GPUS, core_of
from orchestrator.estimate.lengths import work_of
from orchestrator.estimate.modes import MODES, Parts, balance_of, mode_time
from orchestrator.estimate.probe import Speed
from orchestrator.estimate.report import Estimate, Machine, Mean
from orchestrator.estimate.shape import shape_of
from orchestrator.estimate.speed import (
    Generation,
    Handover,
    decode_step_s,
    generation_of,
    handover_of,
    training_s,
)
from slipstream.config.job import JobConfig
from tests.helpers.jobs import make_job
from tests.helpers.shapes import QWEN2_5_7B, gpu_job

SHAPE = shape_of(QWEN2_5_7B, "config.json")
H100 = GPUS["H100"]
PARTS = Parts(
    generation=Generation(concurrency=8, alone_s=5.0, flow_s=4.0),
    training_s=3.0,
    handover=Handover(num_bytes=0, publish_s=0.25, wire_s=0.5, adopt_s=0.5),
    host_s=1.0,
    between_s=0.75,
)


def estimate_of(job: JobConfig, answer_tokens: float = 800.0, gpu: str = "H100") -> Estimate:
    device = GPUS[gpu]
    machine = Machine(rollout=device, learner=device, num_cores=2, memory_bytes=1e12)
    prompt, answer = Mean(tokens=300, source=""), Mean(tokens=answer_tokens, source="")
    return estimate(job, SHAPE, machine, prompt=prompt, answer=answer)


@pytest.mark.parametrize(
    ("mode", "staleness", "num_cores", "step_s", "bound"),
    [
        ("sync", 0, None, 10.0, "the sum of all parts"),  # 5 + 3.25 + 0.5 + 0.5 + 0.75
        ("split", 1, None, 5.0, "the way of a batch"),  # 10 / 2
        ("buffered", 1, None, 5.0, "the way of a batch"),  # the bound is the same
        ("buffered", 3, None, 4.5, "rollout"),  # 4 + 0.5; the way is 10 / 4
        ("buffered", 3, 2, 4.5, "rollout"),  # two cores have 4.5 + 3.25 + 1 to do
        ("buffered", 3, 1, 8.75, "the cores"),
    ],
)
def test_the_step_time_of_a_mode(
    mode: Any, staleness: int, num_cores: int | None, step_s: float, bound: str
) -> None:
    time = mode_time(mode, PARTS, max_staleness=staleness, num_cores=num_cores)
    assert (time.step_s, time.bound) == (step_s, bound)


def test_the_balance_of_roles() -> None:
    """6 s on 2 devices and 2 s on 2: three devices generate for one that trains."""
    balance = balance_of(6.0, 2.0, num_rollout=2, num_learner=2)
    assert balance.rollout_per_learner == 3.0
    assert (balance.num_rollout, balance.num_learner) == (3, 1)
    lopsided = balance_of(100.0, 1.0, num_rollout=1, num_learner=1)
    assert (lopsided.num_rollout, lopsided.num_learner) == (1, 1)  # each keeps one


def test_a_small_batch_decodes_at_the_speed_of_memory() -> None:
    """One sequence: the weights without the embeddings, 14.14 GB, at 0.7 of 3.35 TB/s are 6.03 ms;
    3 ms a step, 0.1 ms for each of 28 layers, 0.02 ms a sequence."""
    step_s = decode_step_s(gpu_job(), SHAPE, H100, num_sequences=1, context=0)
    assert step_s == pytest.approx(6.03e-3 + 3e-3 + 2.8e-3 + 2e-5, rel=0.01)


def test_a_large_batch_decodes_at_the_speed_of_matrices() -> None:
    """1,024 sequences: 2 x 1024 x 7.07e9 operations at half of 989 TFLOP/s are 29.3 ms."""
    step_s = decode_step_s(gpu_job(), SHAPE, H100, num_sequences=1024, context=0)
    assert step_s == pytest.approx(29.3e-3 + 5.8e-3 + 20.5e-3, rel=0.01)


def test_weights_over_the_network() -> None:
    """15.23 GB at 0.6 of 50 GB/s: 0.51 s."""
    handover = handover_of(gpu_job(), SHAPE, H100, H100, across_nodes=True)
    assert handover.num_bytes == 2 * 7_615_616_512
    assert handover.wire_s == pytest.approx(0.508, rel=0.01)
    assert handover_of(gpu_job(), SHAPE, H100, H100, across_nodes=False).wire_s == 0


def test_training_is_six_operations_a_parameter_and_token() -> None:
    """On one rank with long microbatches, little attention and no links. 64 groups of 4 answers of
    100 tokens to prompts of 300 are computed in shared rows."""
    job = gpu_job(learner={"num_ranks": 1, "zero_stage": 1, "max_tokens_per_microbatch": 65536})
    work = work_of(job, prompt_tokens=300, answer_tokens=100, hidden=SHAPE.hidden)
    layers = 6 * work.rank_tokens * 28 * SHAPE.layer_params
    head = 6 * work.trained_tokens * SHAPE.head_params
    least_s = (layers + head) / (0.4 * 989e12)
    assert least_s < training_s(job, SHAPE, work, H100) < 1.2 * least_s + 0.3


def test_checkpointing_costs_a_third_of_the_products() -> None:
    job = gpu_job(learner={"num_ranks": 1, "zero_stage": 1})
    work = work_of(job, prompt_tokens=300, answer_tokens=500, hidden=SHAPE.hidden)
    plain_s = training_s(job, SHAPE, work, H100)
    again = gpu_job(learner={"num_ranks": 1, "zero_stage": 1, "gradient_checkpointing": True})
    assert 1.25 < training_s(again, SHAPE, work, H100) / plain_s < 4 / 3


def test_minibatches_are_packed_and_exchanged_one_by_one() -> None:
    """8 groups of one row of 4 x 100 + 299 tokens: the 4 of a rank fit a microbatch, of a
    minibatch it has 1; gradients go over the links and through Adam 4 times."""
    learner = {"groups_per_batch": 8, "num_ranks": 2, "zero_stage": 1}
    whole, cut = (
        gpu_job(
            learner=learner | {"max_tokens_per_microbatch": 4000},
            algorithm={"minibatches": count},
        )
        for count in (1, 4)
    )
    works = [
        work_of(job, prompt_tokens=300, answer_tokens=100, hidden=SHAPE.hidden)
        for job in (whole, cut)
    ]
    assert [work.num_microbatches for work in works] == [1, 4]
    assert works[1].largest_microbatch < works[0].largest_microbatch / 3
    seconds = [
        training_s(job, SHAPE, work, H100) for job, work in zip((whole, cut), works, strict=True)
    ]
    gradients_s = 2 * 2 * SHAPE.params / 2 / (450e9 * 0.6)
    assert seconds[1] - seconds[0] > 3 * gradients_s


@given(num_workers=st.integers(1, 16), more=st.integers(1, 16), answer=st.floats(1, 2048))
def test_more_engines_never_generate_slower(num_workers: int, more: int, answer: float) -> None:
    few, many = (
        estimate_of(gpu_job(rollout={"num_workers": count}), answer).parts.generation
        for count in (num_workers, num_workers + more)
    )
    assert many.alone_s <= few.alone_s * (1 + 1e-9)
    assert many.flow_s <= few.flow_s * (1 + 1e-9)


@given(num_ranks=st.integers(1, 8), stage=st.sampled_from([1, 2]))
def test_twice_the_ranks_never_compute_slower(num_ranks: int, stage: int) -> None:
    """Apart from what they exchange, which one rank does not."""
    few, many = (
        estimate_of(gpu_job(learner={"num_ranks": count, "zero_stage": stage})).work
        for count in (num_ranks, 2 * num_ranks)
    )
    assert many.rank_tokens <= few.rank_tokens
    assert many.num_microbatches <= few.num_microbatches


@given(answer=st.floats(1, 2000), more=st.floats(0, 48), slots=st.integers(1, 256))
def test_longer_answers_never_take_less_time(answer: float, more: float, slots: int) -> None:
    job = gpu_job(rollout={"num_slots": slots})
    short, long = (
        generation_of(
            job,
            SHAPE,
            work_of(job, prompt_tokens=300, answer_tokens=tokens, hidden=SHAPE.hidden),
            H100,
            most_sequences=slots,
        )
        for tokens in (answer, answer + more)
    )
    assert long.flow_s >= short.flow_s * (1 - 1e-9)


@given(
    alone=st.floats(0.1, 100),
    training=st.floats(0.1, 100),
    staleness=st.integers(1, 8),
)
def test_decoupled_modes_are_never_slower_than_turns(
    alone: float, training: float, staleness: int
) -> None:
    generation = Generation(concurrency=1, alone_s=alone, flow_s=alone / 2)
    handover = Handover(num_bytes=0, publish_s=0.1, wire_s=0.1, adopt_s=0.1)
    parts = Parts(
        generation=generation, training_s=training, handover=handover, host_s=0, between_s=0.1
    )
    times = [
        mode_time(mode, parts, max_staleness=staleness, num_cores=None).step_s for mode in MODES
    ]
    assert max(times) == times[0]
    less_stale, more_stale = (
        mode_time("buffered", parts, max_staleness=bound, num_cores=None).step_s
        for bound in (staleness, staleness + 1)
    )
    assert more_stale <= less_stale


def test_a_faster_gpu_is_faster_and_its_times_are_called_unverified() -> None:
    slow, fast = estimate_of(gpu_job(), gpu="A100"), estimate_of(gpu_job(), gpu="H100")
    assert fast.step_s < slow.step_s
    assert any("not checked them on a GPU" in line for line in fast.trust())


def test_a_slower_machine_takes_longer_by_as_much() -> None:
    """Half the matrix products, half the Python: every part takes twice as long."""
    job = make_job()
    shape = shape_of({**QWEN2_5_7B, "hidden_size": 256, "intermediate_size": 512}, "")
    steps = []
    for factor in (1.0, 2.0):
        speed = Speed(flops=1e11 / factor, copy_bytes=1e10 / factor, python_s=1e-4 * factor)
        core = core_of(speed)
        machine = Machine(rollout=core, learner=core, num_cores=2, memory_bytes=1e11)
        mean = Mean(tokens=4, source="")
        steps.append(estimate(job, shape, machine, prompt=mean, answer=mean).step_s)
    assert steps[1] == pytest.approx(2 * steps[0])


def test_on_shared_gpus_an_engine_gets_what_the_rank_leaves() -> None:
    """Over 8 ranks 15.96 GiB of states and 0.93 of buckets stay: 18.1 of 80 GB, so 0.77 is free."""
    turns = {"colocate": True, "num_workers": 8, "gpu_memory_share": 0.85}
    job = gpu_job(rollout=turns, learner={"gradient_checkpointing": True}, mode="sync")
    (advice,) = estimate_of(job).advice
    assert advice.startswith(
        "rollout.gpu_memory_share=0.72: on shared GPUs the ranks keep 16.9 GiB"
    )
    fitting = gpu_job(
        rollout=turns | {"gpu_memory_share": 0.7},
        learner={"gradient_checkpointing": True},
        mode="sync",
    )
    assert estimate_of(fitting).fits


def test_on_shared_devices_there_is_no_balance() -> None:
    turns = {"colocate": True, "num_workers": 8, "gpu_memory_share": 0.5}
    found = estimate_of(gpu_job(rollout=turns, mode="sync"))
    assert found.balance is None
    assert found.as_json()["balance"] is None
    assert not any(line.startswith("balance") for line in found._lines())


def test_a_job_that_allows_no_lag_is_not_told_the_time_of_one_that_does() -> None:
    strict = {"max_staleness": 0}
    found = {time.mode: time for time in estimate_of(gpu_job(replay=strict)).modes}
    assert (found["buffered"].max_staleness, found["split"].max_staleness) == (0, 1)


def test_all_roles_of_one_machine_must_fit_together() -> None:
    job = make_job(rollout={"num_workers": 4})
    shape = shape_of({**QWEN2_5_7B, "hidden_size": 256, "intermediate_size": 512}, "")
    core = core_of(Speed(flops=1e11, copy_bytes=1e10, python_s=1e-4))
    mean = Mean(tokens=4, source="")
    small, large = (
        Machine(rollout=core, learner=core, num_cores=2, memory_bytes=gib * 2**30)
        for gib in (8, 64)
    )
    (advice,) = estimate(job, shape, small, prompt=mean, answer=mean).advice
    assert advice.startswith("all roles together need")
    assert estimate(job, shape, large, prompt=mean, answer=mean).fits
