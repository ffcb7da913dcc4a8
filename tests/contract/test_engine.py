"""One suite for the real engine and the scripted one.

The real one is a vLLM engine with a small untrained model, started once for the module. What
concerns the model's numbers is in the second half and is asked of the real one alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rollout_worker.engine import GREEDY, Engine, Generation, GenerationRequest
from rollout_worker.scripted_engine import ScriptedEngine
from slipstream.records import FinishReason
from tests.helpers.jobs import EOS, VOCABULARY, make_job, make_model

PROMPT = np.asarray([5, 12, 7, 14], dtype=np.int32)
MAX_TOKENS = 256
EXACT = 1e-4


@pytest.fixture(scope="module", params=["tied", "untied"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    return make_model(directory / "model", tied=request.param == "tied")


@pytest.fixture(scope="module")
def vllm_engine(model_dir: Path) -> Iterator[Engine]:
    from rollout_worker.vllm_engine import VllmEngine, import_vllm

    job = make_job(model_dir, rollout={"num_slots": 32})
    import_vllm(job.rollout, [0])
    engine = VllmEngine(job.model, job.rollout, max_tokens=MAX_TOKENS, eos_token_ids=[EOS], seed=0)
    yield engine
    engine.close()


@pytest.fixture(params=["vllm", "scripted"])
def engine(request: pytest.FixtureRequest, model_dir: Path) -> Engine:
    if request.param == "scripted":
        scripted = ScriptedEngine(vocabulary=VOCABULARY, eos_token_id=EOS)
        scripted.load(0, iter(()))
        return scripted
    real: Engine = request.getfixturevalue("vllm_engine")
    reload(real, model_dir, 0)
    return real


def weights_of(model_dir: Path, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """The model's parameters, those of its layers times `scale`; the output layer always."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    return {
        name: parameter.detach() * (scale if "layers" in name else 1.0)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def reload(engine: Engine, model_dir: Path, version: int, scale: float = 1.0) -> None:
    engine.load(version, iter(weights_of(model_dir, scale).items()))


def ask(request_id: str, **changes: Any) -> GenerationRequest:
    fields = {
        "prompt_token_ids": PROMPT,
        "max_new_tokens": 20,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 3,
    }
    return GenerationRequest(request_id=request_id, **{**fields, **changes})


def run(engine: Engine, *requests: GenerationRequest) -> dict[str, Generation]:
    for request in requests:
        engine.submit(request)
    done: dict[str, Generation] = {}
    while engine.num_running:
        done.update({generation.request_id: generation for generation in engine.step()})
    return done


# --- what every engine keeps ----------------------------------------------------------


def test_answers_end_at_eos_or_at_the_length(engine: Engine) -> None:
    done = run(engine, *(ask(str(seed), seed=seed) for seed in range(40)))
    assert len(done) == 40
    for answer in done.values():
        assert answer.token_ids.dtype == np.int32
        assert answer.logprobs.dtype == np.float32
        assert len(answer.token_ids) == len(answer.logprobs)
        assert np.isfinite(answer.logprobs).all()
        assert (answer.logprobs <= 0).all()
        assert EOS not in answer.token_ids[:-1]
        if answer.finish_reason is FinishReason.EOS:
            assert answer.token_ids[-1] == EOS
        else:
            assert len(answer.token_ids) == 20
    assert {answer.finish_reason for answer in done.values()} == set(FinishReason)


def test_a_seed_gives_the_same_answer_alone_and_in_a_batch(engine: Engine) -> None:
    together = run(engine, *(ask(str(seed), seed=seed) for seed in range(24)))
    for seed in (0, 7, 23):
        alone = run(engine, ask("alone", seed=seed))["alone"]
        np.testing.assert_array_equal(alone.token_ids, together[str(seed)].token_ids)
        np.testing.assert_array_equal(alone.logprobs, together[str(seed)].logprobs)
    assert len({answer.token_ids.tobytes() for answer in together.values()}) > 12


def test_more_prompt_tokens_than_one_step_takes(engine: Engine) -> None:
    random = np.random.default_rng(0)
    prompts = random.integers(2, VOCABULARY, (32, MAX_TOKENS - 20), dtype=np.int32)
    done = run(
        engine, *(ask(str(n), seed=n, prompt_token_ids=prompt) for n, prompt in enumerate(prompts))
    )
    assert len(done) == 32
    alone = run(engine, ask("alone", seed=31, prompt_token_ids=prompts[31]))["alone"]
    np.testing.assert_array_equal(alone.token_ids, done["31"].token_ids)


def test_greedy_ignores_the_seed(engine: Engine) -> None:
    done = run(engine, *(ask(str(seed), seed=seed, temperature=GREEDY) for seed in range(3)))
    assert len({answer.token_ids.tobytes() for answer in done.values()}) == 1


def test_every_token_is_counted(engine: Engine) -> None:
    before = engine.num_tokens
    engine.submit(ask("x", seed=5))
    engine.step()
    assert engine.num_tokens == before + 1, "before the answer is whole"
    answer = run(engine)["x"]
    assert engine.num_tokens == before + len(answer.token_ids)


def test_aborted_requests_never_finish(engine: Engine) -> None:
    for name in ("a", "b"):
        engine.submit(ask(name, seed=EOS))
    engine.abort(["a", "unknown"])
    assert engine.num_running == 1
    assert set(run(engine)) == {"b"}


def test_what_is_in_flight_lives_through_new_weights(engine: Engine, model_dir: Path) -> None:
    for seed in range(8):
        engine.submit(ask(str(seed), seed=seed, max_new_tokens=30))
    done = [generation for _ in range(5) for generation in engine.step()]
    reload(engine, model_dir, 1, scale=1.1)
    assert engine.version == 1
    while engine.num_running:
        done.extend(engine.step())
    assert len(done) == 8
    longest = max(done, key=lambda generation: len(generation.token_ids))
    assert [(s.version, s.start, s.stop) for s in longest.spans] == [
        (0, 0, 5),
        (1, 5, len(longest.token_ids)),
    ]


def test_scoring_keeps_what_is_in_flight(engine: Engine) -> None:
    expected = run(engine, ask("x", seed=5))["x"]
    engine.submit(ask("x", seed=5))
    engine.step()
    assert engine.score(PROMPT).shape == (len(PROMPT) - 1,)
    found = run(engine)["x"]
    np.testing.assert_array_equal(found.token_ids, expected.token_ids)


def test_what_ends_while_scoring_is_still_running_until_it_is_handed_out(engine: Engine) -> None:
    engine.submit(ask("x", seed=5, max_new_tokens=1))
    engine.score(PROMPT)
    assert engine.num_running == 1
    assert set(run(engine)) == {"x"}
    assert engine.num_running == 0


# --- the real engine's numbers ------------------------------------------------------------


def reference(weights: dict[str, torch.Tensor], model_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    model.load_state_dict(weights)
    return model


@torch.no_grad()
def expected_logprobs(model: Any, token_ids: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(N - 1,) log-probs of tokens 1..N-1."""
    tokens = torch.from_numpy(token_ids.astype(np.int64))[None]
    all_TV = (model(tokens).logits[0, :-1] / temperature).log_softmax(-1)
    return all_TV.gather(-1, tokens[0, 1:, None])[:, 0].numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_the_sampling_policy(
    vllm_engine: Engine, model_dir: Path, temperature: float
) -> None:
    reload(vllm_engine, model_dir, 2)
    model = reference(weights_of(model_dir), model_dir)
    for answer in run(
        vllm_engine, *(ask(str(s), seed=s, temperature=temperature) for s in range(8))
    ).values():
        tokens = np.concatenate([PROMPT, answer.token_ids])
        expected = expected_logprobs(model, tokens, temperature)[len(PROMPT) - 1 :]
        np.testing.assert_allclose(answer.logprobs, expected, atol=EXACT)


def test_top_p_renormalises_the_log_probs(vllm_engine: Engine, model_dir: Path) -> None:
    reload(vllm_engine, model_dir, 3)
    greedy = run(vllm_engine, ask("x", top_p=1e-6, max_new_tokens=4))["x"]
    np.testing.assert_allclose(greedy.logprobs, 0.0, atol=1e-6)


def test_the_probe_agrees_after_every_update(vllm_engine: Engine, model_dir: Path) -> None:
    """Tied and untied: a repacked output layer left behind would show here."""
    for version, scale in enumerate((1.0, 1.5, 0.7), start=4):
        reload(vllm_engine, model_dir, version, scale)
        probe = np.random.default_rng(version).integers(2, VOCABULARY, 32, dtype=np.int32)
        expected = expected_logprobs(reference(weights_of(model_dir, scale), model_dir), probe)
        np.testing.assert_allclose(vllm_engine.score(probe), expected, atol=EXACT)


def test_new_embeddings_arrive(vllm_engine: Engine, model_dir: Path) -> None:
    """The embeddings, and with them a tied output layer, change with an update."""
    weights = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
        for name, tensor in weights_of(model_dir).items()
    }
    if "lm_head.weight" in weights and torch.equal(
        weights_of(model_dir)["lm_head.weight"], weights_of(model_dir)["model.embed_tokens.weight"]
    ):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    vllm_engine.load(9, iter(weights.items()))
    probe = np.arange(2, VOCABULARY, dtype=np.int32)
    expected = expected_logprobs(reference(weights, model_dir), probe)
    np.testing.assert_allclose(vllm_engine.score(probe), expected, atol=EXACT)


@torch.no_grad()
def test_each_span_matches_its_own_versions_weights(vllm_engine: Engine, model_dir: Path) -> None:
    """A rollout keeps the KV cache of its earlier tokens when the weights change, so the
    expected numbers come from running the old model up to the switch and the new one on
    its cache."""
    old, new = weights_of(model_dir, 1.0), weights_of(model_dir, 1.3)
    vllm_engine.load(10, iter(old.items()))
    vllm_engine.submit(ask("x", seed=11, max_new_tokens=24))
    while vllm_engine.num_running:
        if len(finished := vllm_engine.step()):
            break
        if vllm_engine.version == 10:
            for _ in range(5):
                finished = vllm_engine.step()
            vllm_engine.load(11, iter(new.items()))
    answer = finished[0]
    assert [span.version for span in answer.spans] == [10, 11]
    switch = answer.spans[1].start
    tokens = torch.from_numpy(np.concatenate([PROMPT, answer.token_ids]).astype(np.int64))[None]
    # The token at `switch` is sampled by the new weights from the last token's new hidden state.
    num_old = len(PROMPT) + switch - 1
    first = reference(old, model_dir)(tokens[:, :num_old], use_cache=True)
    second = reference(new, model_dir)(
        tokens[:, num_old:-1], past_key_values=first.past_key_values, use_cache=True
    )
    logits_TV = torch.cat([first.logits, second.logits], dim=1)[0]
    all_TV = logits_TV.log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
    expected = all_TV[len(PROMPT) - 1 :].numpy()
    np.testing.assert_allclose(answer.logprobs, expected, atol=EXACT)
    only_new = expected_logprobs(reference(new, model_dir), tokens[0].numpy())[len(PROMPT) - 1 :]
    assert abs(only_new[:switch] - answer.logprobs[:switch]).max() > EXACT, (
        "the spans do not differ"
    )


def test_a_metric_that_raises_ends_no_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    from rollout_worker.vllm_engine import _stat_logger

    recorded: list[object] = []

    def fails_first(_: object, scheduler_stats: object, *__: object) -> None:
        recorded.append(scheduler_stats)
        if len(recorded) <= 2:
            raise ValueError("counters can only be incremented by non-negative amounts")

    monkeypatch.setattr(PrometheusStatLogger, "record", fails_first)
    logger = _stat_logger()(None)  # without a configuration vLLM makes no counters, and raises
    logger.record_sleep_state(1, 1)
    logger.log_engine_initialized()
    for step in range(3):
        logger.record(step, None)
    assert recorded == [0, 1, 2], "the steps after it count"
    assert caplog.text.count("some metrics of this engine are missing") == 1
