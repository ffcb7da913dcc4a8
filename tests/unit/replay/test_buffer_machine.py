"""The promises of the buffer under any order of events.

The machine keeps a simple model of its own: live leases, one fate for every ordinal, uses. It
judges every batch from the outside. Facts are kept as a journal would; at any moment replay may
die and come back from them, the run may go back to its last commit, and a worker may be lost.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from replay.buffer import ReplayBuffer
from replay.facts import Accepted, Discarded, Dropped, Fact, Killed, Trained
from replay.rules import Rules
from replay.scripted import scripted_group, scripted_prompt
from replay.state import ReplayState
from slipstream.codec import decode
from slipstream.config.job import PriorityConfig
from slipstream.records import (
    Batch,
    DropReason,
    Group,
    Lease,
    Prompt,
    PutReply,
    RefusalReason,
    ReplaySnapshot,
    Stop,
    Wait,
)
from tests.helpers.rollbacks import gone_back

TIMEOUT_S = 10.0
# A commit: snapshot, facts before it, uses and fates of the model.
Commit = tuple[ReplaySnapshot, int, Counter[int], dict[int, str]]
WORKERS = ("w0", "w1")


def rules_of_any_job(seed: int, num_workers: int) -> Rules:
    """Drawn evenly, where a strategy would favour the simplest job."""
    chance = random.Random(seed)
    return Rules(
        group_size=2,
        groups_per_batch=chance.choice([1, 2, 3]),
        num_steps=chance.choice([3, 1000, 1000, 1000]),
        max_staleness=chance.choice([0, 1, 2, 3]),
        on_stale=chance.choice(["wait", "wait", "wait", "requeue", "drop", "clip"]),
        select=chance.choice(["fifo", "freshest", "priority", "priority", "random"]),
        priority=PriorityConfig(
            by=chance.choice(["reward_spread", "advantage", "age"]),
            alpha=chance.choice([0.0, 0.6, 20.0]),
            beta=chance.choice([0.0, 0.4, 1.0]),
        ),
        whole_batches=chance.random() < 0.2,
        max_uses=chance.choice([1, 2, 3]),
        dynamic_sampling=chance.random() < 0.3,
        max_attempts=chance.choice([1, 2]),
        max_kills=chance.choice([1, 2, 2, 3]),
        lease_timeout_s=TIMEOUT_S,
        num_sharing_workers=chance.choice([0, 0, 0, num_workers]),
    )


def prompt_at(ordinal: int) -> Prompt | None:
    return None if ordinal % 7 == 3 else scripted_prompt(ordinal)


def described(state: ReplayState) -> dict[str, Any]:
    """Everything that must be the same after a restart."""
    buffered = {o: (e.uses, e.group.lease_id) for o, e in state.shelf.entries.items()}
    batch = (
        None
        if state.batch is None
        else [(entry.group.ordinal, entry.lag, entry.use) for entry in state.batch.groups]
    )
    return {
        "version": state.version,
        "timeline": state.timeline,
        "next_lease_id": state.next_lease_id,
        "num_taken": state.num_taken,
        "lost": state.lost,
        "kills": state.kills,
        "ledger": state.ledger.snapshot(),
        "tally": state.tally.snapshot(),
        "running": state.running,
        "requeued": state.requeued,
        "buffered": buffered,
        "batch": batch,
    }


class BufferMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**32), num_workers=st.sampled_from([1, 2]))
    def start(self, seed: int, num_workers: int) -> None:
        self.job = rules_of_any_job(seed, num_workers)
        self.workers = WORKERS[:num_workers]
        note(str(self.job))
        self.facts: list[Fact] = []  # since `self.base`
        self.all_facts: list[Fact] = []
        self.buffer = ReplayBuffer(self.job, prompt_at, self._record)
        self.base: ReplaySnapshot = self.buffer.snapshot()
        self.commit: Commit = (self.base, 0, Counter(), {})
        self.commit_kills: set[int] = set()
        self.fates: dict[int, str] = {}  # final ones, by ordinal
        self.put_before: list[tuple[Group, PutReply]] = []
        self.now_s = 0.0
        self.granted: list[Lease] = []  # all there ever were
        self.live: dict[int, Lease] = {}
        self.incarnations = dict.fromkeys(WORKERS, 0)
        self.kills: Counter[int] = Counter()  # by ordinal, since a group of it was accepted
        self.paused = False
        self.batch: Batch | None = None
        self.uses: Counter[int] = Counter()  # by ordinal

    # --- events ---------------------------------------------------------------------

    @rule(index=st.integers(0, 1), num_groups=st.integers(0, 4))
    def lease(self, index: int, num_groups: int) -> None:
        self._lease(self.workers[index % len(self.workers)], num_groups)

    @rule(index=st.integers(0, 1), num_groups=st.integers(0, 4), behind=st.integers(0, 2))
    def lease_to_one_that_keeps_its_weights(self, index: int, num_groups: int, behind: int) -> None:
        worker = self.workers[index % len(self.workers)]
        pinned = self.buffer.version - behind
        newer = {i for i in self._held(worker) if self.live[i].min_version > pinned}
        leases = self._lease(worker, num_groups, pinned=(self.buffer.state.timeline, pinned))
        assert not (behind and leases)
        assert newer.isdisjoint(self.buffer.state.running)

    @rule(data=st.data(), rewards=st.sampled_from([(0, 1), (0, 1), (0, 2), (1, 1)]))
    def put(self, data: st.DataObject, rewards: tuple[float, float]) -> None:
        if not self.granted:
            return
        lease = data.draw(st.sampled_from(self.granted[-12:]))
        newest = self.buffer.version + (self.batch is not None)
        newest = max(newest, lease.min_version)  # which is above, once the run went back
        version = data.draw(st.integers(lease.min_version, newest))
        self._put(scripted_group(lease, rewards=rewards, version=version))

    @rule(data=st.data())
    def put_unsound(self, data: st.DataObject) -> None:
        if self.live:
            lease = data.draw(
                st.sampled_from(sorted(self.live.values(), key=lambda le: le.lease_id))
            )
            del self.live[lease.lease_id]
            group = scripted_group(lease, rewards=(0.0, float("nan")))
            reply = self.buffer.put(group, self.now_s)
            assert reply.refused is RefusalReason.BAD_REWARD
            self.put_before.append((group, reply))

    @rule(seconds=st.sampled_from([1.0, 4.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now_s += seconds
        self.buffer.expire(self.now_s)
        self.live = {i: le for i, le in self.live.items() if le.expires_at_s > self.now_s}

    @rule(index=st.integers(0, 1))
    def replace_worker(self, index: int) -> None:
        worker = self.workers[index % len(self.workers)]
        self.incarnations[worker] += 1
        self.live = {i: lease for i, lease in self.live.items() if lease.worker != worker}
        self._lease(worker, 0)

    @rule(index=st.integers(0, 1), blame=st.booleans())
    def lose_worker(self, index: int, blame: bool) -> None:
        self._lose(self.workers[index % len(self.workers)], blame=blame)

    @rule(seed=st.integers(0, 2**32))
    def engines_die_at_work(self, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(6):
            worker = chance.choice(self.workers)
            self._lease(worker, chance.randint(1, 3))
            if chance.random() < 0.4:
                self._lose(worker, blame=True)
            for lease_id in chance.sample(held := self._held(worker), len(held) // 2):
                self._put(scripted_group(self.live[lease_id], rewards=(0, 1)))

    @rule(is_paused=st.booleans())
    def pause(self, is_paused: bool) -> None:
        self.buffer.pause(is_paused)
        self.paused = is_paused

    @rule(seed=st.integers(0, 2**32))
    def work_and_train(self, seed: int) -> None:
        """New leases, some prompts finish in any order, the learner takes what it can."""
        chance = random.Random(seed)
        for worker in self.workers:
            self._lease(worker, chance.randint(0, 3))
        live = list(self.live.values())
        for lease in chance.sample(live, min(len(live), chance.randint(0, 5))):
            version = chance.choice([lease.min_version, self.buffer.version])
            self._put(scripted_group(lease, rewards=(0, chance.choice([1, 2])), version=version))
        if isinstance(self._take(), Batch):
            self._train()

    @rule()
    def take(self) -> None:
        self._take()

    @precondition(lambda self: self.batch is not None)
    @rule()
    def train(self) -> None:
        self._train()

    @precondition(lambda self: self.batch is not None)
    @rule()
    def discard(self) -> None:
        """As often as the call is repeated, and that of the batch before it too."""
        assert self.batch is not None
        entries = self.buffer.state.shelf.entries.values()
        if any(entry.group.newest_version > self.buffer.version for entry in entries):
            return  # the batch's own version was published: it has trained
        version, number, timeline = *_of(self.batch), self.buffer.state.timeline
        if number > 0:
            self.buffer.discard(version, timeline=timeline, number=number - 1)
            assert self.buffer.state.batch is self.batch
        for _ in range(2):
            self.buffer.discard(version, timeline=timeline, number=number)
        assert self.buffer.version == version
        assert self.buffer.state.batch is None
        self.batch = None

    @precondition(lambda self: bool(self.put_before))
    @rule(data=st.data())
    def put_again(self, data: st.DataObject) -> None:
        """As after an answer that got lost."""
        group, reply = data.draw(st.sampled_from(self.put_before[-6:]))
        before = self.buffer.state.snapshot() if self.batch is None else None
        again = self.buffer.put(group, self.now_s)
        if group.incarnation == self.incarnations[group.worker]:
            assert again.refused is reply.refused
        if before is not None and again.refused is None:
            assert self.buffer.state.snapshot() == before

    @rule()
    def replay_dies_and_comes_back(self) -> None:
        """From the facts since the last snapshot; leases go on, workers come back by themselves."""
        groups = [decode(data) for data in self.base.groups.values()]
        by_lease = {group.lease_id: group for group in groups}
        state = ReplayState.restore(json.loads(json.dumps(self.base.state)), by_lease.__getitem__)
        for fact in self.facts:
            state.apply(fact)
        assert described(state) == described(self.buffer.state)
        self.buffer = ReplayBuffer(self.job, prompt_at, self._record, state)
        self.batch = state.batch
        self.paused = False
        for lease_id, lease in self.live.items():
            self.live[lease_id] = replace(lease, expires_at_s=self.now_s + TIMEOUT_S)
        self.buffer.expire(self.now_s)
        for worker in self.workers:
            self._lease(worker, 0)

    @precondition(lambda self: self.batch is None)
    @rule()
    def commit_this_step(self) -> None:
        self.base = self.buffer.snapshot()
        self.facts.clear()
        self.commit = (self.base, len(self.all_facts), self.uses.copy(), dict(self.fates))
        self.commit_kills = set(self.kills)

    @rule()
    def go_back_to_the_last_commit(self) -> None:
        snapshot, num_facts, self.uses, fates = self.commit
        self.uses, self.fates = self.uses.copy(), dict(fates)
        since = [f.group for f in self.all_facts[num_facts:] if isinstance(f, Accepted)]
        old = self.buffer.state
        restored = gone_back(old, snapshot, self.job, timeline=old.timeline + 1, since=since)
        assert restored.ledger.num_issued == old.ledger.num_issued, "an ordinal vanished"
        for entry in restored.shelf.entries.values():
            assert entry.group.newest_version <= restored.version, (
                "sampled by weights that are gone"
            )
        self.buffer = ReplayBuffer(self.job, prompt_at, self._record, restored)
        self.base = self.buffer.snapshot()
        self.facts.clear()
        self.live, self.batch, self.paused = {}, None, False
        assert set(restored.kills) <= set(self.commit_kills) | set(self.kills)
        self.kills = Counter(restored.kills)
        self.put_before.clear()

    @rule()
    def all_work_is_done_then_the_learner_gets_a_batch(self) -> None:
        self.pause(False)
        for _ in range(40):  # prompts that must run alone come one by one
            for worker in self.workers:
                self._lease(worker, 100)
            work = list(self.live.values())
            for lease in work:
                self._put(scripted_group(lease, rewards=(0, 1), version=lease.min_version))
            for worker in self.workers:
                self._lease(worker, 0, yielded=True)
            reply = self._take()
            if not isinstance(reply, Wait):
                break
            # A group counts as outstanding until a take has found it stale.
            assert work or self.job.on_stale in ("requeue", "drop"), f"stuck: {reply.reason}"
        else:
            raise AssertionError("no batch though all work was done")
        if isinstance(reply, Batch):
            self._train()

    # --- what must hold -------------------------------------------------------------

    @invariant()
    def every_ordinal_has_one_fate(self) -> None:
        state = self.buffer.state
        state.ledger.check()
        running = [lease.prompt.ordinal for lease in self.live.values()]
        unused = [ordinal for ordinal, entry in state.shelf.entries.items() if not entry.uses]
        assert sorted([*running, *unused, *state.requeued]) == sorted(state.ledger.pending)
        ended = set(range(state.ledger.num_issued)) - set(state.ledger.pending)
        assert ended == set(self.fates)
        assert state.ledger.counts == Counter(self.fates.values())
        assert set(self.uses) == {o for o, fate in self.fates.items() if fate == "trained"}

    @invariant()
    def admission_keeps_its_limit(self) -> None:
        stats = self.buffer.stats()
        assert stats["num_running"] == len(self.live)
        outstanding = len(self.buffer.state.ledger.pending) - stats["num_requeued"]
        assert outstanding <= (self.job.max_staleness + 1) * self.job.groups_per_batch

    @invariant()
    def kills_are_counted(self) -> None:
        assert self.buffer.state.kills == +self.kills
        assert not self.kills.keys() & self.buffer.state.shelf.entries.keys()
        suspects = [o for o in self.buffer.state.ledger.pending if self._is_suspect(o)]
        assert self.buffer.stats()["num_suspects"] == len(suspects)

    @invariant()
    def wait_never_finds_a_group_too_old(self) -> None:
        stats = self.buffer.stats()
        if self.job.on_stale in ("wait", "clip") or self.job.whole_batches:
            assert "stale" not in stats["drops"]
            assert "stale" not in stats["reissues"]
        if self.job.on_stale == "wait":
            for entry in self.buffer.state.shelf.entries.values():
                lag = self.buffer.version - entry.group.oldest_version
                assert lag <= self.job.max_staleness

    # --- helpers --------------------------------------------------------------------

    def _record(self, fact: Fact) -> None:
        self.facts.append(fact)
        self.all_facts.append(fact)
        match fact:
            case Dropped():
                assert fact.ordinal not in self.fates, "two fates"
                self.fates[fact.ordinal] = fact.reason.value
                if fact.reason is DropReason.QUARANTINED:
                    assert self.kills[fact.ordinal] >= self.job.max_kills
                else:
                    self.kills.pop(fact.ordinal, None)
            case Accepted():
                self.kills.pop(fact.group.ordinal, None)
            case Killed():
                self.kills[fact.ordinal] += 1
                assert fact.num_kills == self.kills[fact.ordinal]
            case Discarded():
                assert self.batch is not None
                assert (fact.version, fact.number) == _of(self.batch)
                for entry in self.batch.groups:
                    fate = "not_finite" if entry.use == 1 else "trained"
                    assert self.fates.setdefault(entry.group.ordinal, fate) == fate, "two fates"
            case Trained():
                assert self.batch is not None
                self.uses.update(entry.group.ordinal for entry in self.batch.groups)
                for entry in self.batch.groups:
                    ordinal = entry.group.ordinal
                    assert self.uses[ordinal] <= self.job.max_uses
                    assert self.fates.setdefault(ordinal, "trained") == "trained", "two fates"

    def _is_suspect(self, ordinal: int) -> bool:
        return self.kills[ordinal] >= max(1, self.job.max_kills - 1)

    def _held(self, worker: str) -> list[int]:
        return [lease_id for lease_id, lease in self.live.items() if lease.worker == worker]

    def _lease(
        self,
        worker: str,
        num_groups: int,
        *,
        yielded: bool = False,
        pinned: tuple[int, int] | None = None,
    ) -> list[Lease]:
        reply = self.buffer.lease(
            worker,
            self.incarnations[worker],
            num_groups,
            self.now_s,
            held=self._held(worker),
            yielded_version=self.buffer.version if yielded else None,
            pinned=pinned,
        )
        for lease_id in reply.revoked if pinned is not None else ():
            assert self.live.pop(lease_id).prompt.ordinal in self.buffer.state.ledger.pending
        assert len(reply.leases) <= (0 if self.paused else num_groups)
        ordinals = [lease.prompt.ordinal for lease in reply.leases]
        assert ordinals == sorted(ordinals)
        for lease in reply.leases:
            assert lease.min_version == self.buffer.version
            # Whole batches rest on it: what comes first was leased before, or finds room.
            num_before = sum(o < lease.prompt.ordinal for o in self.buffer.state.ledger.pending)
            assert num_before < self.job.budget(self.buffer.version)
            self.live[lease.lease_id] = lease
        if any(self._is_suspect(self.live[i].prompt.ordinal) for i in self._held(worker)):
            assert len(self._held(worker)) == 1, "not alone"
        self.granted += reply.leases
        return list(reply.leases)

    def _lose(self, worker: str, *, blame: bool) -> None:
        """Twice. All that ran there waits again or has died too often."""
        incarnation, kills = self.incarnations[worker], self.kills.copy()
        ordinals = [self.live.pop(lease_id).prompt.ordinal for lease_id in self._held(worker)]
        kills.update(ordinals if blame else ())
        num_facts = len(self.all_facts)
        self.buffer.lose(worker, incarnation, self.now_s, blame=blame)
        assert +self.kills == +kills
        over = {ordinal for ordinal in ordinals if kills[ordinal] >= self.job.max_kills}
        assert over == {o for o in ordinals if self.fates.get(o) == "quarantined"}
        assert set(ordinals) - over <= self.buffer.state.requeued
        if num_facts < len(self.all_facts):
            num_facts = len(self.all_facts)
            self.buffer.lose(worker, incarnation, self.now_s, blame=True)
            assert len(self.all_facts) == num_facts, "a second call changes nothing"
        reply = self.buffer.lease(worker, incarnation, 1, self.now_s)
        assert (reply.leases, reply.stop is None) == ((), False)
        self.incarnations[worker] += 1

    def _put(self, group: Group) -> None:
        lease = self.live.get(group.lease_id)
        is_live = lease is not None and lease.incarnation == group.incarnation
        if not is_live and any(group.lease_id == old.lease_id for old, _ in self.put_before):
            return  # for `put_again`
        reply = self.buffer.put(group, self.now_s)
        assert (reply.refused is None) == is_live, reply
        if is_live:
            self.put_before.append((group, reply))
        self.live.pop(group.lease_id, None)

    def _take(self) -> Any:
        timeline = self.buffer.state.timeline
        reply = self.buffer.take(self.buffer.version, self.now_s, timeline=timeline)
        if self.batch is not None:
            assert reply is self.batch
        if isinstance(reply, Batch) and self.batch is None:
            assert not self.paused
            self._judge(reply)
            self.batch = reply
        if isinstance(reply, Stop):
            assert self.buffer.version == self.job.num_steps
        return reply

    def _judge(self, batch: Batch) -> None:
        job, version = self.job, self.buffer.version
        ordinals = [entry.group.ordinal for entry in batch.groups]
        assert batch.version == version < job.num_steps
        assert ordinals == sorted(set(ordinals))
        assert len(ordinals) == job.groups_per_batch
        assert any(entry.use == 1 for entry in batch.groups)
        for entry in batch.groups:
            assert entry.lag == version - entry.group.oldest_version >= 0
            assert entry.lag <= job.max_staleness or job.on_stale == "clip"
            assert entry.use == self.uses[entry.group.ordinal] + 1 <= job.max_uses
            assert 0 < entry.weight <= 1
        assert max(entry.weight for entry in batch.groups) == 1
        if job.select != "priority" or job.priority.beta == 0 or job.whole_batches:
            assert {entry.weight for entry in batch.groups} == {1.0}
        if job.whole_batches:
            assert ordinals == sorted(self.buffer.state.ledger.pending)[: len(ordinals)]

    def _train(self) -> None:
        assert self.batch is not None
        timeline = self.buffer.state.timeline
        self.buffer.trained(self.batch.version + 1, timeline=timeline)
        self.buffer.trained(self.batch.version + 1, timeline=timeline)
        self.batch = None


def _of(batch: Batch) -> tuple[int, int]:
    return batch.version, batch.number


BufferMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestBuffer = BufferMachine.TestCase
