"""The scripted engine's own: its pace, and prompts that are poison to it."""

from __future__ import annotations

import multiprocessing
import threading
import time

import numpy as np
import pytest

from rollout_worker.engine import GenerationRequest
from rollout_worker.scripted_engine import ScriptedEngine


def ask(*prompt: int, seed: int = 0, max_new_tokens: int = 4) -> GenerationRequest:
    return GenerationRequest(
        request_id=str(seed),
        prompt_token_ids=np.asarray(prompt, dtype=np.int32),
        max_new_tokens=max_new_tokens,
        temperature=1.0,
        top_p=1.0,
        seed=seed,
    )


def step_of_poison() -> None:
    engine = ScriptedEngine(poison="exit 5 12")
    engine.submit(ask(1, 5, 12))
    engine.step()


def test_poison_raises_where_the_prompt_holds_its_tokens_in_a_row() -> None:
    engine = ScriptedEngine(poison="raise 5 12; raise 7")
    for harmless in ((5,), (5, 3, 12), (12, 5)):
        engine.submit(ask(*harmless))
        engine.step()
    for poisonous in ((3, 5, 12), (5, 12, 3), (7,)):
        engine.submit(ask(*poisonous))
        with pytest.raises(RuntimeError, match="the prompt holds"):
            engine.step()
        engine.abort(["0"])


def test_poison_hangs_or_ends_the_process() -> None:
    engine = ScriptedEngine(poison="hang 7")
    engine.submit(ask(7))
    thread = threading.Thread(target=engine.step, daemon=True)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    process = multiprocessing.get_context("fork").Process(target=step_of_poison)
    process.start()
    process.join(10)
    assert process.exitcode == 1


@pytest.mark.parametrize("wrong", ["sleep 5", "exit", "hang x"])
def test_poison_that_means_nothing_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"no poison|invalid literal"):
        ScriptedEngine(poison=wrong)


def test_a_step_takes_its_time() -> None:
    engine = ScriptedEngine(step_s=0.02)
    engine.submit(ask(3))
    start_s = time.monotonic()
    engine.step()
    assert time.monotonic() - start_s >= 0.02


def test_an_end_of_sequence_outside_the_vocabulary_is_made_too() -> None:
    engine = ScriptedEngine(vocabulary=3, eos_token_id=500)
    for seed in range(16):
        engine.submit(ask(3, seed=seed, max_new_tokens=64))
    made = []
    while engine.num_running:
        made.extend(engine.step())
    tokens = np.concatenate([generation.token_ids for generation in made])
    assert set(tokens) == {0, 1, 2, 500}
    assert engine.num_tokens == len(tokens)
    np.testing.assert_allclose(made[0].logprobs, -np.log(4), rtol=1e-6)
