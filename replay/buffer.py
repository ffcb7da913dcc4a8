"""The staleness-bounded buffer: leases out, groups in, batches to the learner. Pure.

    lease ──▶ running ──put──▶ buffered ──take──▶ batch of this version ──trained──▶ ledger
      ▲          │ expiry, failure   │ stale
      └─ requeue ┴───────────────────┘

It decides; every decision is a fact, which is recorded and changes the state (`state`).
Methods whose outcome depends on time take `now_s`; nothing here does I/O.

*Admission.* With B groups a batch and bound S, a lease is granted only while running and
accepted-but-untrained groups are fewer than (S + 1) B; the batch under way counts as B.
Nor more than the steps that are left can use. *Bound.* What may be in a batch, and why
`on_stale: wait` never drops, is in `choosing`. *Quarantine.* Who gets a prompt of which engines
may have died is in `suspects`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any

from replay.checks import check_group
from replay.choosing import all_rewards_equal, choose
from replay.facts import (
    Accepted,
    Discarded,
    Dropped,
    Fact,
    Killed,
    Leased,
    Lost,
    Outgrown,
    Refused,
    Reissued,
    Stopped,
    Taken,
    Trained,
    Use,
)
from replay.ledger import TRAINED, Tries
from replay.rules import Rules
from replay.selection import Chosen
from replay.state import ReplayState
from replay.suspects import Reservation, is_suspect, suspects_due
from replay.workers import Workers
from slipstream.codec import encode
from slipstream.records import (
    Batch,
    DropReason,
    Group,
    Lease,
    LeaseReply,
    Prompt,
    PutReply,
    RefusalReason,
    ReplaySnapshot,
    Stop,
    Wait,
)


class ReplayBuffer:
    """The state machine. `prompt_at(ordinal)` is None where the prompt is too long.

    `record` gets every fact as it comes about. With a `state` it goes on from there.
    """

    def __init__(
        self,
        rules: Rules,
        prompt_at: Callable[[int], Prompt | None],
        record: Callable[[Fact], None] = lambda fact: None,
        state: ReplayState | None = None,
    ) -> None:
        self.rules = rules
        self.state = state or ReplayState()
        self._prompt_at = prompt_at
        self._record = record
        self.is_paused = False
        self.is_dismissed = False  # the learner, and not for good
        self._workers = Workers()
        self._reservation = Reservation()
        # The running ones as workers know them, by worker and lease id; whole after `expire`.
        self._leases: defaultdict[str, dict[int, Lease]] = defaultdict(dict)
        self._next_expiry_s = -math.inf  # before it none expires
        self._waiting_for = "the first prompts"

    @property
    def version(self) -> int:
        return self.state.version

    def _happened(self, fact: Fact) -> None:
        self.state.apply(fact)
        self._record(fact)

    # --- rollout workers ------------------------------------------------------------

    def lease(
        self,
        worker: str,
        incarnation: int,
        num_groups: int,
        now_s: float,
        *,
        held: Collection[int] = (),
        yielded_version: int | None = None,
        pinned: tuple[int, int] | None = None,
    ) -> LeaseReply:
        """Up to `num_groups` prompts: those to be issued again first, then the stream in order.

        `held` are the leases that the worker knows of. Those that it was granted and does not
        know of, as an answer got lost, it gets again; those that run no more it is told. One whose
        weights are `pinned` (timeline, version) gets nothing that would need newer ones, and what
        it was granted for those goes to others: nobody must wait for it.
        """
        self.expire(now_s)
        if self._is_gone(worker, incarnation):
            reason = f"{worker} {incarnation} was replaced or lost"
            return self._reply((), (), Stop(reason=reason, replaced=True))
        self._workers.register(worker, incarnation, yielded_version=yielded_version)
        running = list(self._leases[worker].values())
        for lease in running:
            if lease.incarnation < incarnation:
                self._reissue(lease, "worker_replaced")
            elif pinned is not None and (lease.timeline, lease.min_version) > pinned:
                self._reissue(lease, "pinned")
        running = list(self._leases[worker].values())
        known = frozenset(held)
        lost = [
            lease
            for lease in running
            if lease.incarnation == incarnation and lease.lease_id not in known
        ]
        is_behind = pinned is not None and pinned < (self.state.timeline, self.version)
        num_new = 0 if is_behind else num_groups - len(lost)
        holds_none = not held and not self._leases[worker]
        prompts = self._prompts(worker, num_new, now_s, holds_none=holds_none)
        new = (self._grant(prompt, worker, incarnation, now_s) for prompt in prompts)
        leases = (*lost, *new)
        if leases:
            self._workers.works(worker)
        running_now, ended = self.state.running, self.state.ended
        # One under which a group was put has its answer there.
        revoked = tuple(
            held_id for held_id in held if not (held_id in running_now or held_id in ended)
        )
        return self._reply(leases, revoked, self._stop)

    def _reply(
        self, leases: tuple[Lease, ...], revoked: tuple[int, ...], stop: Stop | None
    ) -> LeaseReply:
        return LeaseReply(
            leases=leases,
            revoked=revoked,
            timeline=self.state.timeline,
            version=self.version,
            yield_device=not leases and self._learners_turn(),
            stop=stop,
        )

    def put(self, group: Group, now_s: float) -> PutReply:
        """Take a finished group in, or say why not.

        A group that is refused under its running lease ends it, and its prompt is issued again;
        any other refusal changes nothing. A put that is repeated gets the same answer.
        """
        self.expire(now_s)
        which = f"lease {group.lease_id} of {group.worker} {group.incarnation}"
        if self._is_gone(group.worker, group.incarnation):
            return self._refuse(group, RefusalReason.STALE_INCARNATION, which)
        ended = self.state.ended.get(group.lease_id)
        if ended is not None and ended.by == (group.worker, group.incarnation):
            return PutReply(refused=ended.refused, detail="as before" if ended.refused else "")
        leased = self.state.running.get(group.lease_id)
        if leased is None or leased.by != (group.worker, group.incarnation):
            return self._refuse(group, RefusalReason.UNKNOWN_LEASE, which)
        refusal = check_group(
            group,
            self._lease(leased, now_s),
            group_size=self.rules.group_size,
            needs_greedy=self.rules.needs_greedy,
            newest_version=self._newest_version(),
        )
        del self._leases[leased.worker][leased.lease_id]
        if refusal is None:
            self._accept(group)
            return PutReply()
        reply = self._refuse(group, *refusal, ended=leased)
        if leased.num_failed + 1 < self.rules.max_attempts:
            self._happened(Reissued(ordinal=leased.ordinal, cause="failed"))
        else:
            self._happened(Dropped(ordinal=leased.ordinal, reason=DropReason.FAILED))
        return reply

    def expire(self, now_s: float) -> None:
        """Issue again what was not handed in within its lease's time."""
        if now_s < self._next_expiry_s:
            return
        # Of whatever is leased from now on.
        self._next_expiry_s = now_s + self.rules.lease_timeout_s
        for leased in list(self.state.running.values()):
            lease = self._lease(leased, now_s)
            if lease.expires_at_s <= now_s:
                self._reissue(lease, "expired")
            else:
                self._next_expiry_s = min(self._next_expiry_s, lease.expires_at_s)

    def _reissue(self, lease: Lease, cause: str) -> None:
        """For no fault of the prompt; does not count towards `max_attempts`."""
        del self._leases[lease.worker][lease.lease_id]
        self._happened(Reissued(ordinal=lease.prompt.ordinal, cause=cause))

    def lose(self, worker: str, incarnation: int, now_s: float, *, blame: bool) -> None:
        """This incarnation is gone for good: its prompts are issued again, its calls refused.

        `blame`: its engine died of itself. Any prompt that ran there may be the reason, and one
        that was there for `max_kills` times is dropped: with 1, all that ran there are. A second
        call, or one for an incarnation that was replaced, changes nothing.
        """
        self.expire(now_s)
        if self._is_gone(worker, incarnation):
            return
        self._happened(Lost(worker=worker, incarnation=incarnation))
        self._workers.forget(worker)
        self._reservation.release(worker)
        for lease in list(self._leases[worker].values()):
            if lease.incarnation > incarnation:
                continue  # the worker has not asked since replay was restarted
            if blame and lease.incarnation == incarnation:
                ordinal = lease.prompt.ordinal
                num_kills = self.state.kills.get(ordinal, 0) + 1
                self._happened(Killed(ordinal=ordinal, num_kills=num_kills))
            if self._is_quarantined(lease.prompt.ordinal):
                del self._leases[worker][lease.lease_id]
                self._quarantine(lease.prompt.ordinal)
            else:
                self._reissue(lease, "worker_lost")

    def pause(self, is_paused: bool) -> None:
        """While paused nothing is leased or taken; what is under way goes on. No fact, and so
        forgotten when replay's process dies."""
        self.is_paused = is_paused

    def dismiss_learner(self, is_dismissed: bool) -> None:
        """While dismissed no other batch is handed out, and every rank is told to end; others will
        go on from its commit. No fact, as with `pause`."""
        self.is_dismissed = is_dismissed

    def _is_gone(self, worker: str, incarnation: int) -> bool:
        was_lost = incarnation <= self.state.lost.get(worker, -1)
        return was_lost or self._workers.was_replaced(worker, incarnation)

    def _is_quarantined(self, ordinal: int) -> bool:
        return self.state.kills.get(ordinal, 0) >= self.rules.max_kills

    def _is_suspect(self, ordinal: int) -> bool:
        return is_suspect(self.state.kills.get(ordinal, 0), self.rules.max_kills)

    def _quarantine(self, ordinal: int) -> None:
        self._happened(Dropped(ordinal=ordinal, reason=DropReason.QUARANTINED))

    def _room(self) -> int:
        """How many more leases fit the staleness budget and are of use to the steps left."""
        if self.is_paused:
            return 0
        if self.rules.num_sharing_workers and self.state.batch is not None:
            return 0  # the devices are the learner's
        return max(0, self.rules.budget(self.version) - self._num_outstanding())

    def _held_back(self) -> str | None:
        """Why a worker that asks now gets no lease."""
        if self._stop is not None:
            return self._stop.reason
        if self.is_paused:
            return "paused"
        if self._room():
            num_due = len(self._suspects_due())
            is_left = self._is_left_to_suspects()
            return f"prompts that must run alone: {num_due} wait" if is_left else None
        if self.rules.num_sharing_workers and self.state.batch is not None:
            return "the shared devices are the learner's"
        left = self.rules.num_steps - self.version
        limit = "steps left" if left <= self.rules.max_staleness else "staleness budget"
        budget = self.rules.budget(self.version)
        return f"{limit}: {self._num_outstanding()} of {budget} groups outstanding"

    def _num_outstanding(self) -> int:
        """Running or accepted and not trained; a batch under way counts in full, reused or not."""
        under_way = () if self.state.batch is None else self.state.batch.groups
        num_reused = sum(entry.use > 1 for entry in under_way)
        return len(self.state.running) + self.state.shelf.num_unused + num_reused

    def _suspects_due(self) -> list[int]:
        state = self.state
        return suspects_due(state.requeued, state.kills, self.rules.max_kills, self._room())

    def _is_left_to_suspects(self) -> bool:
        """All the room there is."""
        return bool(self.state.kills) and self._room() <= len(self._suspects_due())

    def _runs_suspect(self, worker: str) -> bool:
        ordinals = (lease.prompt.ordinal for lease in self._leases[worker].values())
        return bool(self.state.kills) and any(map(self._is_suspect, ordinals))

    def _prompts(
        self, worker: str, num_groups: int, now_s: float, *, holds_none: bool
    ) -> Iterator[Prompt]:
        """What the worker gets now, each to be granted before the next is asked for."""
        if self._stop is not None or num_groups <= 0:
            self._reservation.release(worker)
            return
        for ordinal in [o for o in self.state.requeued if self._is_quarantined(o)]:
            self._quarantine(ordinal)  # since when the run went back
        suspects = self._suspects_due()
        if self._runs_suspect(worker):
            return
        if suspects and self._reservation.is_for(worker, now_s, holds_none=holds_none):
            if holds_none:
                self._reservation.release(worker)
                yield self._known_prompt(suspects[0])
            return
        for _ in range(min(num_groups, self._room())):
            prompt = self._next_prompt()
            if prompt is None:
                return
            yield prompt

    def _grant(self, prompt: Prompt, worker: str, incarnation: int, now_s: float) -> Lease:
        tries = self.state.ledger.pending.get(prompt.ordinal, Tries())
        leased = Leased(
            ordinal=prompt.ordinal,
            attempt=tries.num_leased,
            num_failed=tries.num_failed,
            lease_id=self.state.next_lease_id,
            worker=worker,
            incarnation=incarnation,
            min_version=self.version,
        )
        self._happened(leased)
        lease = self._leases[worker][leased.lease_id] = self._with_prompt(leased, prompt, now_s)
        return lease

    def _next_prompt(self) -> Prompt | None:
        """The lowest to be issued again, or the stream's next, while there is room beside that of
        suspects; too long ones get their fate."""
        while not self._is_left_to_suspects():
            requeued = (o for o in self.state.requeued if not self._is_suspect(o))
            ordinal = min(requeued, default=self.state.ledger.num_issued)
            prompt = self._prompt_at(ordinal)
            if prompt is not None:
                return prompt
            self._happened(Dropped(ordinal=ordinal, reason=DropReason.PROMPT_TOO_LONG))
        return None

    def _lease(self, leased: Leased, now_s: float) -> Lease:
        """As its worker knows it. One that ran before replay was restarted gets its time anew."""
        known = self._leases[leased.worker]
        if leased.lease_id not in known:
            prompt = self._known_prompt(leased.ordinal)
            known[leased.lease_id] = self._with_prompt(leased, prompt, now_s)
        return known[leased.lease_id]

    def _known_prompt(self, ordinal: int) -> Prompt:
        prompt = self._prompt_at(ordinal)
        assert prompt is not None, "a leased prompt is not too long"
        return prompt

    def _with_prompt(self, leased: Leased, prompt: Prompt, now_s: float) -> Lease:
        return Lease(
            lease_id=leased.lease_id,
            prompt=prompt,
            attempt=leased.attempt,
            num_failed=leased.num_failed,
            worker=leased.worker,
            incarnation=leased.incarnation,
            timeline=self.state.timeline,
            min_version=leased.min_version,
            expires_at_s=now_s + self.rules.lease_timeout_s,
        )

    def _newest_version(self) -> int:
        """Weights are published before trained() says so: a worker may be ahead by that much."""
        return self.version + (self.state.batch is not None)

    def _refuse(
        self, group: Group, reason: RefusalReason, detail: str, *, ended: Leased | None = None
    ) -> PutReply:
        self._happened(
            Refused(
                ordinal=group.ordinal if ended is None else ended.ordinal,
                lease_id=group.lease_id,
                reason=reason,
                failures=tuple(failure.reason for failure in group.failures),
                ends_lease=ended is not None,
            )
        )
        return PutReply(refused=reason, detail=detail)

    def _accept(self, group: Group) -> None:
        self._happened(Accepted(lease_id=group.lease_id, group=group))
        if self.rules.dynamic_sampling and all_rewards_equal(group):
            self._happened(Dropped(ordinal=group.ordinal, reason=DropReason.ZERO_VARIANCE))

    # --- learner ranks --------------------------------------------------------------

    def take(self, version: int, now_s: float, *, timeline: int = 0) -> Batch | Wait | Stop:
        """The batch for the step from `version`; the same one for every rank that asks.

        Raises ValueError for any version but the newest.
        """
        self.check_learner(timeline)
        if version != self.version:
            raise ValueError(f"take({version}), but the newest version is {self.version}")
        self.expire(now_s)
        batch = self.state.batch
        if batch is not None:
            return batch
        if self._stop is not None:
            return self._stop
        if self.is_dismissed:
            return Stop(reason="the learner is built anew")
        if self.is_paused:
            self._waiting_for = "the job is paused"
            return Wait(reason=self._waiting_for)
        chosen = self._choose()
        if not isinstance(chosen, Wait) and self.rules.num_sharing_workers:
            num_workers = self.rules.num_sharing_workers
            chosen = self._workers.unyielded(num_workers, self.version) or chosen
        if isinstance(chosen, Wait):
            self._waiting_for = chosen.reason
            return chosen
        self._waiting_for = "the learner"
        self._happened(Taken(version=version, uses=tuple(self._use(entry) for entry in chosen)))
        batch = self.state.batch
        assert batch is not None
        return batch

    def trained(self, version: int, *, timeline: int = 0) -> None:
        """The batch of `version - 1` has changed the weights, which are published as `version`.

        A second call for the same version changes nothing.
        """
        self.check_learner(timeline)
        if version == self.version:
            return
        if version != self.version + 1 or self.state.batch is None:
            raise ValueError(f"trained({version}) without a batch of version {version - 1}")
        self._happened(Trained(version=version))
        for ordinal in self._stale(used=True):
            self._happened(Outgrown(ordinal=ordinal))

    def discard(self, version: int, *, timeline: int = 0, number: int) -> None:
        """Batch `number`, of `version`, has changed no weight, and none of it trains again.

        A second call for the same batch changes nothing. The version stays, and the next `take`
        is answered with another batch; one that comes before this call gets the same once more,
        so all ranks must have this answer before any asks again.
        """
        self.check_learner(timeline)
        batch = self.state.batch
        if number < self.state.num_taken - (batch is not None):
            return
        if batch is None or (batch.number, batch.version) != (number, version):
            raise ValueError(f"discard of batch {number} of version {version}, which is not there")
        self._happened(Discarded(version=version, number=number))

    def stop(self, reason: str) -> None:
        """No more leases, and no batch after one that is fixed. The first reason stays."""
        if self.state.stop is None:
            self._happened(Stopped(reason=reason))

    def check_learner(self, timeline: int) -> None:
        """Raises ValueError for a learner that was given up."""
        if timeline != self.state.timeline:
            raise ValueError(
                f"a learner of timeline {timeline}, but the run went back: {self.state.timeline}"
            )

    @property
    def _stop(self) -> Stop | None:
        if self.version >= self.rules.num_steps:
            return Stop(reason="all steps are done")
        return self.state.stop

    def _choose(self) -> list[Chosen] | Wait:
        self._remove_stale()
        return choose(
            self.state.shelf.entries,
            self.state.running.values(),
            self.state.requeued,
            self.rules,
            self.version,
        )

    def _remove_stale(self) -> None:
        """Unused groups past the bound; `wait` never has any, `clip` trains them."""
        if self.rules.on_stale not in ("requeue", "drop"):
            return
        for ordinal in self._stale(used=False):
            if self.rules.on_stale == "drop":
                self._happened(Dropped(ordinal=ordinal, reason=DropReason.STALE))
            else:
                self._happened(Reissued(ordinal=ordinal, cause="stale"))

    def _stale(self, *, used: bool) -> list[int]:
        return self.state.shelf.older_than(self.version - self.rules.max_staleness, used=used)

    def _learners_turn(self) -> bool:
        """Shared devices: the learner has all it needs, and no worker has work."""
        if not self.rules.num_sharing_workers or self.state.running:
            return False
        return self.state.batch is not None or not isinstance(self._choose(), Wait)

    def _use(self, chosen: Chosen) -> Use:
        entry = chosen.entry
        use = entry.uses + 1
        return Use(
            ordinal=entry.group.ordinal,
            lag=self.version - entry.group.oldest_version,
            use=use,
            weight=chosen.weight,
            is_last=use == self.rules.max_uses,
        )

    # --- what others may know -------------------------------------------------------

    def snapshot(self) -> ReplaySnapshot:
        """For a commit, at a step boundary."""
        entries = self.state.shelf.entries.items()
        return ReplaySnapshot(
            state=self.state.snapshot(),
            groups={ordinal: encode(entry.group) for ordinal, entry in entries},
        )

    def oldest_lease_s(self, now_s: float) -> float | None:
        """The age of the lease that runs longest, since replay's own start at most."""
        leases = (lease for known in self._leases.values() for lease in known.values())
        first_s = min((lease.expires_at_s for lease in leases), default=None)
        return None if first_s is None else now_s - (first_s - self.rules.lease_timeout_s)

    def stats(self) -> dict[str, Any]:
        """Counts for people and metrics; JSON-able."""
        state, ledger = self.state, self.state.ledger
        return {
            "version": self.version,
            "timeline": state.timeline,
            "num_issued": ledger.num_issued,
            "num_running": len(state.running),
            "num_buffered": len(state.shelf.entries),
            "num_requeued": len(state.requeued),
            "num_suspects": sum(o in ledger.pending and self._is_suspect(o) for o in state.kills),
            "running_by_worker": dict(Counter(leased.worker for leased in state.running.values())),
            "num_trained": ledger.counts[TRAINED],
            "frontier": ledger.frontier,
            "drops": ledger.drops(),
            "waiting_for": self._waiting_for,
            "held_back": self._held_back(),
            "paused": self.is_paused,
            **state.tally.snapshot(),
        }
