"""Replay as a real Ray actor, driven through its client, beside the local one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from replay.actor import LONG_POLL_S, ReplayActor, ReplayClient
from replay.audit import audit
from replay.buffer import ReplayBuffer
from replay.journal import FILE_NAME, JournalReader
from replay.rules import Rules
from replay.scripted import LocalReplay, scripted_group, scripted_prompt
from slipstream.config.job import JobConfig
from slipstream.protocols import ReplayForLearners, ReplayForWorkers
from slipstream.records import Batch, Lease, RefusalReason, Stop, Wait

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
def replay(request: pytest.FixtureRequest, job: JobConfig, tmp_path: Path) -> Iterator[Any]:
    if request.param == "local":
        yield LocalReplay(ReplayBuffer(Rules.of(job), scripted_prompt))
        return
    ray = request.getfixturevalue("ray_cluster")
    actor = ray.remote(ReplayActor).options(num_cpus=0).remote(job, tmp_path)
    ray.get(actor.open.remote(), timeout=TIMEOUT_S)
    yield ReplayClient(actor)
    ray.kill(actor)


def test_a_job_from_the_first_lease_to_the_stop(replay: Any) -> None:
    workers: ReplayForWorkers = replay
    learners: ReplayForLearners = replay
    leases = workers.lease("w0", 0, 9, held=(), yielded_version=None).result(TIMEOUT_S).leases
    assert [lease.prompt.ordinal for lease in leases] == [0, 1, 2, 3]
    assert isinstance(learners.take(0, 0).result(TIMEOUT_S), Wait)
    with pytest.raises(ValueError, match="the newest version is 0"):
        learners.take(7, 0).result(TIMEOUT_S)
    long = [scripted_group(lease, rewards=(0, 1), num_tokens=20_000) for lease in leases]
    for group in long:  # 320 kB: these travel through the object store
        assert workers.put([group]).result(TIMEOUT_S)[0].refused is None
    replies = workers.put(long[:2]).result(TIMEOUT_S)
    assert [reply.refused for reply in replies] == [None] * 2, "the same answer as before"
    for version in (0, 1):
        ranks = [learners.take(version, 0) for _ in range(2)]
        one, other = (rank.result(TIMEOUT_S) for rank in ranks)
        assert isinstance(one, Batch)
        assert isinstance(other, Batch)
        ordinals = [entry.group.ordinal for entry in one.groups]
        assert ordinals == [entry.group.ordinal for entry in other.groups]
        assert ordinals == [2 * version, 2 * version + 1]
        learners.trained(version + 1, 0).result(TIMEOUT_S)
        assert learners.snapshot(0).result(TIMEOUT_S).state["version"] == version + 1
    assert learners.take(2, 0).result(TIMEOUT_S) == Stop(reason="all steps are done")
    assert (
        workers.lease("w0", 0, 1, held=(), yielded_version=None).result(TIMEOUT_S).stop is not None
    )


def test_a_batch_is_discarded_once(replay: Any) -> None:
    workers: ReplayForWorkers = replay
    learners: ReplayForLearners = replay
    leases = workers.lease("w0", 0, 9, held=(), yielded_version=None).result(TIMEOUT_S).leases
    workers.put([scripted_group(lease, rewards=(0, 1)) for lease in leases]).result(TIMEOUT_S)
    first = learners.take(0, 0).result(TIMEOUT_S)
    assert isinstance(first, Batch)
    for _ in range(2):
        learners.discard(0, 0, first.number).result(TIMEOUT_S)
    second = learners.take(0, 0).result(TIMEOUT_S)
    assert isinstance(second, Batch)
    learners.discard(0, 0, first.number).result(TIMEOUT_S)
    assert learners.take(0, 0).result(TIMEOUT_S).number == second.number == 1
    assert [entry.group.ordinal for entry in second.groups] == [2, 3]


def pid_of(actor: ReplayActor) -> int:
    return os.getpid()


def opened(job: JobConfig, run_dir: Path | None = None) -> ReplayActor:
    """With a journal where `run_dir` is given."""
    durability = "off" if run_dir is None else "flush"
    replay = job.replay.model_copy(update={"durability": durability})
    actor = ReplayActor(job.model_copy(update={"replay": replay}), run_dir or Path("nowhere"))
    actor.open()
    return actor


async def play_a_step(actor: ReplayActor) -> Sequence[Lease]:
    """Four leases, three groups, one step of two; returns the leases."""
    leases = (await actor.lease("w0", 0, 4, held=(), yielded_version=None)).leases
    for lease in leases[:3]:
        await actor.put([scripted_group(lease, rewards=(0, 1))])
    await actor.take(0, 0)
    await actor.trained(1, 0)
    return leases


def test_a_commit_goes_on_in_another_actor(job: JobConfig) -> None:
    async def play() -> None:
        first, resumed = opened(job), opened(job)
        await play_a_step(first)
        await resumed.go_back(await first.snapshot(0), 1)
        assert repr(resumed) == "replay v1"
        reply = await resumed.lease("w0", 0, 9, held=(), yielded_version=None)
        assert [(le.prompt.ordinal, le.attempt, le.timeline) for le in reply.leases] == [(3, 1, 1)]
        assert (await resumed.stats())["num_buffered"] == 1

    asyncio.run(play())


def test_a_journal_brings_it_back_and_leases_run_on(job: JobConfig, tmp_path: Path) -> None:
    async def play() -> None:
        leases = await play_a_step(opened(job, tmp_path))
        back = opened(job, tmp_path)  # the first one is gone without a word
        assert repr(back) == "replay v1"
        assert (await back.put([scripted_group(leases[0], rewards=(0, 1))]))[0].refused is None
        assert (await back.stats())["lengths"]["generated_rollouts"] == 6, "not taken in twice"
        await back.put([scripted_group(leases[3], rewards=(0, 1))])
        batch = await back.take(1, 0)
        assert isinstance(batch, Batch)
        assert [entry.group.ordinal for entry in batch.groups] == [2, 3]

    asyncio.run(play())


def test_it_goes_back_with_what_came_since_the_commit(job: JobConfig, tmp_path: Path) -> None:
    async def play() -> None:
        actor = opened(job, tmp_path)
        leases = await play_a_step(actor)
        commit = await actor.snapshot(0)
        await actor.committed(1, 0)
        await actor.put([scripted_group(leases[3], rewards=(0, 1))])  # of version 0
        await actor.take(1, 0)
        await actor.trained(2, 0)
        await actor.go_back(commit, 1)
        batch = await actor.take(1, 1)
        assert isinstance(batch, Batch)
        assert [entry.group.ordinal for entry in batch.groups] == [2, 3]
        with pytest.raises(ValueError, match="timeline"):
            await actor.trained(2, 0)
        await actor.trained(2, 1)

    asyncio.run(play())
    with JournalReader(tmp_path / FILE_NAME) as journal:
        found = audit(journal.rows())
    assert found.findings == []
    assert found.fates == {"trained": 4}
    assert len(found.rollbacks) == 1


def test_lost_workers_and_a_discarded_batch_survive_its_death_and_going_back(
    job: JobConfig, tmp_path: Path
) -> None:
    """Ordinal 0 kills two engines, the second one alone; those beside it at first do not suffer."""
    careful = job.model_copy(update={"replay": job.replay.model_copy(update={"max_kills": 2})})

    async def ordinals(actor: ReplayActor, incarnation: int) -> list[int]:
        reply = await actor.lease("w0", incarnation, 9, held=(), yielded_version=None)
        return [lease.prompt.ordinal for lease in reply.leases]

    async def play() -> None:
        actor = opened(careful, tmp_path)
        commit = await actor.snapshot(0)
        assert await ordinals(actor, 0) == [0, 1, 2, 3]
        await actor.lose("w0", 0, blame=True)
        actor = opened(careful, tmp_path)
        await actor.lose("w0", 0, blame=True)  # repeated
        assert (await actor.stats())["num_suspects"] == 4
        assert (await actor.lease("w0", 0, 1, held=(), yielded_version=None)).stop is not None
        assert await ordinals(actor, 1) == [0]
        await actor.lose("w0", 1, blame=True)
        assert (await actor.stats())["drops"] == {"quarantined": 1}
        await actor.go_back(commit, 1)
        assert await ordinals(actor, 1) == [], "it stays lost"
        assert await ordinals(actor, 2) == [1], "0 is dropped without another engine"
        actor = opened(careful, tmp_path)
        for _ in range(2):
            reply = await actor.lease("w0", 2, 1, held=(), yielded_version=None)
            await actor.put([scripted_group(lease, rewards=(0, 1)) for lease in reply.leases])
        batch = await actor.take(0, 1)
        assert isinstance(batch, Batch)
        await actor.discard(0, 1, batch.number)
        actor = opened(careful, tmp_path)
        await actor.discard(0, 1, batch.number)
        assert (await actor.stats())["drops"] == {"quarantined": 1, "not_finite": 2}

    asyncio.run(play())
    with JournalReader(tmp_path / FILE_NAME) as journal:
        found = audit(journal.rows())
    assert found.findings == []
    assert found.fates == {"quarantined": 1, "not_finite": 2}


def test_a_pause_holds_calls_and_outlives_going_back(job: JobConfig) -> None:
    async def play() -> None:
        actor = opened(job)
        await actor.pause(True)
        commit = await actor.snapshot(0)
        await actor.go_back(commit, 1)
        stats = await actor.stats()
        assert (stats["paused"], stats["held_back"], stats["oldest_lease_s"]) == (
            True,
            "paused",
            None,
        )
        ask = asyncio.create_task(actor.lease("w0", 0, 2, held=(), yielded_version=None))
        await asyncio.sleep(0.01)
        assert not ask.done()
        await actor.pause(False)
        leases = (await ask).leases
        assert len(leases) == 2
        stats = await actor.stats()
        assert stats["running_by_worker"] == {"w0": 2}
        assert 0 <= stats["oldest_lease_s"] < 10
        await actor.put([scripted_group(lease, rewards=(0, 1)) for lease in leases])
        await actor.pause(True)
        assert await actor.take(0, 1) == Wait(reason="the job is paused")

    asyncio.run(play())


def test_calls_wait_while_it_goes_back(job: JobConfig, tmp_path: Path) -> None:
    async def play() -> None:
        actor = opened(job, tmp_path)
        commit = await actor.snapshot(0)
        back = asyncio.create_task(actor.go_back(commit, 1))
        await asyncio.sleep(0)
        reply = await actor.lease("w0", 0, 1, held=(), yielded_version=None)
        assert back.done()
        assert reply.timeline == reply.leases[0].timeline == 1

    asyncio.run(play())


def test_a_killed_process_comes_back_by_itself(
    ray_cluster: Any, job: JobConfig, tmp_path: Path
) -> None:
    """Calls that were under way are repeated by Ray, and change nothing twice."""
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    learner = job.learner.model_copy(update={"num_steps": 50})
    many = job.model_copy(update={"learner": learner})
    actor = ray_cluster.remote(ReplayActor).options(**options).remote(many, tmp_path)
    client = ReplayClient(actor)
    num_kills, killed, version, held = 3, 0, 0, {}
    while version < 8:
        ask = client.lease("w0", 0, 2, held=list(held), yielded_version=None)
        if killed < num_kills and version == 2 * killed + 1:
            os.kill(ray_cluster.get(actor.__ray_call__.remote(pid_of)), signal.SIGKILL)
            killed += 1
        reply = ask.result(TIMEOUT_S)
        held |= {lease.lease_id: lease for lease in reply.leases}
        groups = [scripted_group(lease, rewards=(0, 1)) for lease in held.values()]
        replies = client.put(groups).result(TIMEOUT_S)
        assert [reply.refused for reply in replies] == [None] * len(groups)
        held.clear()
        if isinstance(client.take(version, 0).result(TIMEOUT_S), Batch):
            version += 1
            client.trained(version, 0).result(TIMEOUT_S)
    ray_cluster.kill(actor)
    with JournalReader(tmp_path / FILE_NAME) as journal:
        found = audit(journal.rows())
    assert (found.findings, killed, found.fates["trained"]) == ([], num_kills, 16)


def test_prompts_are_rendered_from_the_jobs_data(job: JobConfig) -> None:
    actor = opened(job)
    lease = asyncio.run(actor.lease("w0", 0, 1, held=(), yielded_version=None)).leases[0]
    assert (lease.prompt.text, lease.prompt.token_ids.tolist()) == ("0+0=", [1, 11, 1, 12])
    evaluation = actor.eval_prompts()
    assert [prompt.text for prompt in evaluation["eval"]] == [
        "0+0==",
        "1+1==",
        "2+2==",
    ]  # as a chat
    assert asyncio.run(actor.stats())["num_running"] == 1


def test_calls_are_held_until_something_changes(job: JobConfig) -> None:
    learner = job.learner.model_copy(update={"num_steps": 3})
    actor = opened(job.model_copy(update={"learner": learner}))

    async def play() -> tuple[Any, Any]:
        leases = (await actor.lease("w0", 0, 4, held=(), yielded_version=None)).leases
        batch = asyncio.create_task(actor.take(0, 0))
        more = asyncio.create_task(actor.lease("w0", 0, 1, held=range(4), yielded_version=None))
        await asyncio.sleep(0.01)
        assert not batch.done()
        for lease in leases:
            await actor.put([scripted_group(lease, rewards=(0, 1))])
        taken = await batch
        assert not more.done(), "no room before the batch is trained"
        await actor.trained(1, 0)
        return taken, await more

    batch, more = asyncio.run(play())
    assert isinstance(batch, Batch)
    assert [lease.prompt.ordinal for lease in more.leases] == [4]
    start_s = time.monotonic()
    assert isinstance(asyncio.run(opened(job).take(0, 0)), Wait)
    assert time.monotonic() - start_s >= LONG_POLL_S


def test_a_prompt_that_is_given_back_wakes_who_waits(job: JobConfig) -> None:
    actor = opened(job)

    async def play() -> tuple[Any, float]:
        await actor.lease("w0", 0, 4, held=(), yielded_version=None)
        waiting = asyncio.create_task(actor.lease("w1", 0, 1, held=(), yielded_version=None))
        await asyncio.sleep(0.01)
        start_s = time.monotonic()
        successor = asyncio.create_task(actor.lease("w0", 1, 0, held=(), yielded_version=None))
        reply, waited_s = await waiting, time.monotonic() - start_s
        await successor
        return reply, waited_s

    reply, waited_s = asyncio.run(play())
    assert [lease.prompt.ordinal for lease in reply.leases] == [0]
    assert waited_s < LONG_POLL_S / 2


def test_without_held_out_data_there_are_no_prompts(job: JobConfig) -> None:
    data = job.data.model_copy(update={"eval": None})
    assert opened(job.model_copy(update={"data": data})).eval_prompts() == {}


def test_stop_is_passed_on(job: JobConfig) -> None:
    actor = opened(job)
    lease = asyncio.run(actor.lease("w0", 0, 1, held=(), yielded_version=None)).leases[0]
    group = replace(scripted_group(lease, rewards=(0, 1)), incarnation=3)
    assert asyncio.run(actor.put([group]))[0].refused is RefusalReason.UNKNOWN_LEASE
    asyncio.run(actor.stop("interrupted"))
    assert asyncio.run(actor.take(0, 0)) == Stop(reason="interrupted")


def test_what_rests_on_a_fact_is_answered_after_it(job: JobConfig, tmp_path: Path) -> None:
    """Every rank's batch is on the disk, also that of a rank which found it fixed already."""

    async def play() -> None:
        actor = opened(job, tmp_path)
        leases = (await actor.lease("w0", 0, 2, held=(), yielded_version=None)).leases
        await actor.put([scripted_group(lease, rewards=(0, 1)) for lease in leases])
        ranks = [asyncio.create_task(actor.take(0, 0)) for _ in range(2)]
        await asyncio.wait(ranks, return_when=asyncio.FIRST_COMPLETED)
        with JournalReader(tmp_path / FILE_NAME) as journal:
            assert "taken" in [row.kind for row in journal.rows()]
        await asyncio.gather(*ranks)

    asyncio.run(play())


def test_a_snapshot_holds_what_the_journal_has_before_it(job: JobConfig, tmp_path: Path) -> None:
    async def play() -> None:
        actor = opened(job, tmp_path)
        leases = (await actor.lease("w0", 0, 2, held=(), yielded_version=None)).leases
        first, second = (scripted_group(lease, rewards=(0, 1)) for lease in leases)
        await asyncio.gather(actor.put([first]), actor.snapshot(0), actor.put([second]))
        assert (await opened(job, tmp_path).stats())["num_buffered"] == 2

    asyncio.run(play())


def test_calls_for_a_commit_that_was_left_change_nothing(job: JobConfig, tmp_path: Path) -> None:
    async def play() -> None:
        actor = opened(job, tmp_path)
        commit = await actor.snapshot(0)
        await play_a_step(actor)
        await actor.snapshot(0)
        back = asyncio.create_task(actor.go_back(commit, 1))
        await asyncio.sleep(0)
        await actor.committed(1, 0)
        with pytest.raises(ValueError, match="timeline"):
            await actor.snapshot(0)
        await back
        await actor.go_back(commit, 1)  # asked again
        again = opened(job, tmp_path)
        assert repr(again) == "replay v0"
        assert (await again.stats())["num_buffered"] == 3

    asyncio.run(play())


def test_a_stop_survives(job: JobConfig, tmp_path: Path) -> None:
    async def play() -> None:
        await opened(job, tmp_path).stop("interrupted")
        assert await opened(job, tmp_path).take(0, 0) == Stop(reason="interrupted")

    asyncio.run(play())
