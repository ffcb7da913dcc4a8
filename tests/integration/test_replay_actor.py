"""Replay as a real Ray actor, driven through its client, beside the local one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from replay.actor import LONG_POLL_S, ReplayActor, ReplayClient
from replay.buffer import ReplayBuffer
from replay.rules import Rules
from replay.scripted import LocalReplay, scripted_group, scripted_prompt
from slipstream.config.job import JobConfig
from slipstream.protocols import ReplayForLearners, ReplayForWorkers
from slipstream.records import Batch, RefusalReason, Stop, Wait

TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    """Two steps of two groups of two; a tokenizer of characters, a data set of five lines."""
    root = tmp_path_factory.mktemp("job")
    save_tokenizer(root / "model")
    items = root / "items.jsonl"
    items.write_text("".join(json.dumps({"prompt": f"{i}+{i}="}) + "\n" for i in range(5)))
    template = root / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}=")
    return JobConfig.model_validate(
        {
            "name": "small",
            "mode": "buffered",
            "model": {"path": str(root / "model"), "chat_template": str(template)},
            "data": {
                "train": {"kind": "jsonl", "path": str(items)},
                "eval": {"kind": "jsonl", "path": str(items), "chat": True},
                "shuffle": False,
                "eval_num_prompts": 3,
            },
            "reward": {"kind": "exact_match"},
            "rollout": {"group_size": 2},
            "learner": {"num_steps": 2, "groups_per_batch": 2},
            "replay": {"max_staleness": 1},
        }
    )


def save_tokenizer(path: Path) -> None:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: index for index, character in enumerate("?0123456789+=")}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    wrapped: Any = PreTrainedTokenizerFast  # it has no types
    wrapped(tokenizer_object=tokenizer, unk_token="?").save_pretrained(path)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(params=["local", "ray"])
def replay(request: pytest.FixtureRequest, job: JobConfig) -> Iterator[Any]:
    if request.param == "local":
        yield LocalReplay(ReplayBuffer(Rules.of(job), scripted_prompt))
        return
    ray = request.getfixturevalue("ray_cluster")
    actor = ray.remote(ReplayActor).options(num_cpus=0).remote(job)
    ray.get(actor.open.remote(), timeout=TIMEOUT_S)
    yield ReplayClient(actor)
    ray.kill(actor)


def test_a_job_from_the_first_lease_to_the_stop(replay: Any) -> None:
    workers: ReplayForWorkers = replay
    learners: ReplayForLearners = replay
    leases = workers.lease("w0", 0, 9, yielded_version=None).result(TIMEOUT_S).leases
    assert [lease.prompt.ordinal for lease in leases] == [0, 1, 2, 3]
    assert isinstance(learners.take(0).result(TIMEOUT_S), Wait)
    with pytest.raises(ValueError, match="the newest version is 0"):
        learners.take(7).result(TIMEOUT_S)
    long = [scripted_group(lease, rewards=(0, 1), num_tokens=20_000) for lease in leases]
    for group in long:  # 320 kB: these travel through the object store
        assert workers.put([group]).result(TIMEOUT_S)[0].refused is None
    replies = workers.put(long[:2]).result(TIMEOUT_S)
    assert [reply.refused for reply in replies] == [RefusalReason.UNKNOWN_LEASE] * 2
    for version in (0, 1):
        ranks = [learners.take(version) for _ in range(2)]
        one, other = (rank.result(TIMEOUT_S) for rank in ranks)
        assert isinstance(one, Batch)
        assert isinstance(other, Batch)
        ordinals = [entry.group.ordinal for entry in one.groups]
        assert ordinals == [entry.group.ordinal for entry in other.groups]
        assert ordinals == [2 * version, 2 * version + 1]
        learners.trained(version + 1).result(TIMEOUT_S)
        assert learners.snapshot().result(TIMEOUT_S)["version"] == version + 1
    assert learners.take(2).result(TIMEOUT_S) == Stop(reason="all steps are done")
    assert workers.lease("w0", 0, 1, yielded_version=None).result(TIMEOUT_S).stop is not None


def opened(job: JobConfig, snapshot: dict[str, Any] | None = None) -> ReplayActor:
    actor = ReplayActor(job, snapshot)
    actor.open()
    return actor


def test_a_snapshot_goes_on_in_another_actor(job: JobConfig) -> None:
    first = opened(job)
    leases = asyncio.run(first.lease("w0", 0, 4, yielded_version=None)).leases
    for lease in leases[:3]:
        asyncio.run(first.put([scripted_group(lease, rewards=(0, 1))]))
    asyncio.run(first.take(0))
    asyncio.run(first.trained(1))
    resumed = opened(job, json.loads(json.dumps(first.snapshot())))
    assert repr(resumed) == "replay v1"
    again = asyncio.run(resumed.lease("w0", 0, 9, yielded_version=None)).leases
    assert [(lease.prompt.ordinal, lease.attempt) for lease in again] == [(2, 1), (3, 1)]


def test_prompts_are_rendered_from_the_jobs_data(job: JobConfig) -> None:
    actor = opened(job)
    lease = asyncio.run(actor.lease("w0", 0, 1, yielded_version=None)).leases[0]
    assert (lease.prompt.text, lease.prompt.token_ids.tolist()) == ("0+0=", [1, 11, 1, 12])
    evaluation = actor.eval_prompts()
    assert [prompt.text for prompt in evaluation] == ["0+0==", "1+1==", "2+2=="]  # as a chat
    assert actor.stats()["num_running"] == 1


def test_it_owns_what_it_accepted(job: JobConfig) -> None:
    actor = opened(job)
    leases = asyncio.run(actor.lease("w0", 0, 2, yielded_version=None)).leases
    groups = [scripted_group(lease, rewards=(0, 1)) for lease in leases]
    for group in groups:
        assert asyncio.run(actor.put([group]))[0].refused is None
        group.rollouts[0].token_ids[:] = 0  # as if the memory were reused
    batch = asyncio.run(actor.take(0))
    assert isinstance(batch, Batch)
    assert batch.groups[0].group.rollouts[0].token_ids.tolist() == [7, 7]


def test_calls_are_held_until_something_changes(job: JobConfig) -> None:
    learner = job.learner.model_copy(update={"num_steps": 3})
    actor = opened(job.model_copy(update={"learner": learner}))

    async def play() -> tuple[Any, Any]:
        leases = (await actor.lease("w0", 0, 4, yielded_version=None)).leases
        batch = asyncio.create_task(actor.take(0))
        more = asyncio.create_task(actor.lease("w0", 0, 1, yielded_version=None))
        await asyncio.sleep(0.01)
        assert not batch.done()
        for lease in leases:
            await actor.put([scripted_group(lease, rewards=(0, 1))])
        taken = await batch
        assert not more.done(), "no room before the batch is trained"
        await actor.trained(1)
        return taken, await more

    batch, more = asyncio.run(play())
    assert isinstance(batch, Batch)
    assert [lease.prompt.ordinal for lease in more.leases] == [4]
    start_s = time.monotonic()
    assert isinstance(asyncio.run(opened(job).take(0)), Wait)
    assert time.monotonic() - start_s >= LONG_POLL_S


def test_without_held_out_data_there_are_no_prompts(job: JobConfig) -> None:
    data = job.data.model_copy(update={"eval": None})
    assert opened(job.model_copy(update={"data": data})).eval_prompts() == []


def test_stop_is_passed_on(job: JobConfig) -> None:
    actor = opened(job)
    lease = asyncio.run(actor.lease("w0", 0, 1, yielded_version=None)).leases[0]
    group = replace(scripted_group(lease, rewards=(0, 1)), incarnation=3)
    assert asyncio.run(actor.put([group]))[0].refused is RefusalReason.UNKNOWN_LEASE
    asyncio.run(actor.stop("interrupted"))
    assert asyncio.run(actor.take(0)) == Stop(reason="interrupted")
