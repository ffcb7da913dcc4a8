"""The staleness-bounded buffer: leases out, groups in, batches to the learner. Pure.

    lease ──▶ running ──put──▶ buffered ──take──▶ batch of this version ──trained──▶ ledger
      ▲          │ expiry, failure   │ stale
      └─ requeue ┴───────────────────┘

Methods whose outcome depends on time take `now_s`; nothing here does I/O.

*Admission.* With B groups a batch and bound S, a lease is granted only while running and
accepted-but-untrained groups are fewer than (S + 1) B; the batch under way counts as B.
Nor more than the steps that are left can use. *Bound.* What may be in a batch, and why
`on_stale: wait` never drops, is in `choosing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from replay.checks import check_group
from replay.choosing import choose
from replay.issue import Issuer
from replay.leases import Leases
from replay.ledger import TRAINED, Ledger
from replay.rules import Rules
from replay.selection import Chosen
from replay.shelf import Shelf
from replay.tally import Tally
from slipstream.records import (
    Batch,
    BatchGroup,
    DropReason,
    Group,
    Lease,
    LeaseReply,
    Prompt,
    PutReply,
    RefusalReason,
    Stop,
    Wait,
)


class ReplayBuffer:
    """The state machine. `prompt_at(ordinal)` is None where the prompt is too long.

    With a `snapshot` it goes on from there: all that had no final fate is issued again first.
    """

    def __init__(
        self,
        rules: Rules,
        prompt_at: Callable[[int], Prompt | None],
        snapshot: Mapping[str, Any] | None = None,
    ) -> None:
        self.rules = rules
        self.version = 0 if snapshot is None else int(snapshot["version"])
        self.ledger = Ledger() if snapshot is None else Ledger.restore(snapshot["ledger"])
        self._tally = Tally() if snapshot is None else Tally.restore(snapshot["tally"])
        self._leases = Leases(
            timeout_s=rules.lease_timeout_s,
            next_id=0 if snapshot is None else int(snapshot["next_lease_id"]),
        )
        self._issuer = Issuer(self.ledger, self._tally, prompt_at, max_attempts=rules.max_attempts)
        self._shelf = Shelf(max_uses=rules.max_uses, max_staleness=rules.max_staleness)
        self._batch: Batch | None = None  # fixed for `version`
        self._stop: Stop | None = None
        self._waiting_for = "the first prompts"
        self._stop_after_last_step()

    # --- rollout workers ------------------------------------------------------------

    def lease(
        self,
        worker: str,
        incarnation: int,
        num_groups: int,
        now_s: float,
        *,
        yielded_version: int | None = None,
    ) -> LeaseReply:
        """Up to `num_groups` prompts: those to be issued again first, then the stream in order."""
        self.expire(now_s)
        replaced = self._leases.register(worker, incarnation, yielded_version=yielded_version)
        for lease in replaced:
            self._issuer.again(lease.prompt.ordinal, "worker_replaced")
        newest = self._leases.newest_incarnation(worker)
        if incarnation < newest:
            stop = Stop(reason=f"{worker} {incarnation} was replaced by incarnation {newest}")
            return LeaseReply(leases=(), version=self.version, yield_device=False, stop=stop)
        num_granted = 0 if self._stop else min(num_groups, self._room())
        leases = tuple(self._grant(worker, now_s) for _ in range(num_granted))
        return LeaseReply(
            leases=leases,
            version=self.version,
            yield_device=not leases and self._learners_turn(),
            stop=self._stop,
        )

    def put(self, group: Group, now_s: float) -> PutReply:
        """Take a finished group in, or say why not.

        A group that is refused under its running lease ends it, and its prompt is issued again;
        any other refusal changes nothing.
        """
        self.expire(now_s)
        lease = self._leases.of(group)
        if isinstance(lease, RefusalReason):
            return self._refuse(group, lease, f"lease {group.lease_id} of {group.worker}")
        del self._leases.running[lease.lease_id]
        refusal = check_group(
            group,
            lease,
            group_size=self.rules.group_size,
            needs_greedy=self.rules.needs_greedy,
            newest_version=self._newest_version(),
        )
        if refusal is not None:
            self._issuer.failed(lease.prompt.ordinal)
            return self._refuse(group, *refusal)
        self._accept(group)
        return PutReply()

    def expire(self, now_s: float) -> None:
        """Issue again what was not handed in within its lease's time."""
        for lease in self._leases.expire(now_s):
            self._issuer.again(lease.prompt.ordinal, "expired")

    def _room(self) -> int:
        """How many more leases fit the staleness budget and are of use to the steps left."""
        if self.rules.num_sharing_workers and self._batch is not None:
            return 0  # the devices are the learner's
        return max(0, self._budget() - self._num_outstanding())

    def _budget(self) -> int:
        num_batches = min(self.rules.max_staleness + 1, self.rules.num_steps - self.version)
        return num_batches * self.rules.groups_per_batch

    def _held_back(self) -> str | None:
        """Why a worker that asks now gets no lease."""
        if self._stop is not None:
            return self._stop.reason
        if self._room():
            return None
        if self.rules.num_sharing_workers and self._batch is not None:
            return "the shared devices are the learner's"
        left = self.rules.num_steps - self.version
        limit = "steps left" if left <= self.rules.max_staleness else "staleness budget"
        return f"{limit}: {self._num_outstanding()} of {self._budget()} groups outstanding"

    def _num_outstanding(self) -> int:
        """Running or accepted and not trained; a batch under way counts in full, reused or not."""
        under_way = () if self._batch is None else self._batch.groups
        num_reused = sum(entry.use > 1 for entry in under_way)
        return len(self._leases.running) + self._shelf.num_unused() + num_reused

    def _grant(self, worker: str, now_s: float) -> Lease:
        prompt, attempt = self._issuer.next()
        return self._leases.grant(prompt, attempt, worker, self.version, now_s)

    def _newest_version(self) -> int:
        """Weights are published before trained() says so: a worker may be ahead by that much."""
        return self.version + (self._batch is not None)

    def _refuse(self, group: Group, reason: RefusalReason, detail: str) -> PutReply:
        self._tally.refused(reason, group)
        return PutReply(refused=reason, detail=detail)

    def _accept(self, group: Group) -> None:
        self._tally.generated(group)
        num_rewards = len({rollout.reward for rollout in group.rollouts})
        if self.rules.dynamic_sampling and num_rewards == 1:
            self.ledger.dropped(group.ordinal, DropReason.ZERO_VARIANCE)
        else:
            self._shelf.add(group)

    # --- learner ranks --------------------------------------------------------------

    def take(self, version: int, now_s: float) -> Batch | Wait | Stop:
        """The batch for the step from `version`; the same one for every rank that asks.

        Raises ValueError for any version but the newest.
        """
        if version != self.version:
            raise ValueError(f"take({version}), but the newest version is {self.version}")
        self.expire(now_s)
        if self._batch is not None:
            return self._batch
        if self._stop is not None:
            return self._stop
        chosen = self._choose()
        if not isinstance(chosen, Wait) and self.rules.num_sharing_workers:
            num_workers = self.rules.num_sharing_workers
            chosen = self._leases.unyielded(num_workers, self.version) or chosen
        if isinstance(chosen, Wait):
            self._waiting_for = chosen.reason
            return chosen
        self._waiting_for = "the learner"
        self._batch = Batch(version=version, groups=tuple(self._batch_group(c) for c in chosen))
        return self._batch

    def trained(self, version: int) -> None:
        """The batch of `version - 1` has changed the weights, which are published as `version`.

        A second call for the same version changes nothing.
        """
        if version == self.version:
            return
        if version != self.version + 1 or self._batch is None:
            raise ValueError(f"trained({version}) without a batch of version {version - 1}")
        for entry in self._batch.groups:
            self._mark_trained(entry)
        self._batch = None
        self.version = version
        self._shelf.remove_stale(version, trained=True)
        self._stop_after_last_step()

    def stop(self, reason: str) -> None:
        """No more leases, and no batch after one that is fixed. The first reason stays."""
        self._stop = self._stop or Stop(reason=reason)

    def _stop_after_last_step(self) -> None:
        if self.version >= self.rules.num_steps:
            self.stop("all steps are done")

    def _choose(self) -> list[Chosen] | Wait:
        self._remove_stale()
        return choose(
            self._shelf.entries,
            self._leases.running.values(),
            self._issuer.requeued,
            self.rules,
            self.version,
        )

    def _remove_stale(self) -> None:
        """Unused groups past the bound; `wait` never has any, `clip` trains them."""
        if self.rules.on_stale not in ("requeue", "drop"):
            return
        for ordinal in self._shelf.remove_stale(self.version, trained=False):
            if self.rules.on_stale == "drop":
                self.ledger.dropped(ordinal, DropReason.STALE)
            else:
                self._issuer.again(ordinal, "stale")

    def _learners_turn(self) -> bool:
        """Shared devices: the learner has all it needs, and no worker has work."""
        if not self.rules.num_sharing_workers or self._leases.running:
            return False
        return self._batch is not None or not isinstance(self._choose(), Wait)

    def _batch_group(self, chosen: Chosen) -> BatchGroup:
        entry, weight = chosen.entry, chosen.weight
        lag = self.version - entry.group.oldest_version
        return BatchGroup(group=entry.group, lag=lag, use=entry.uses + 1, weight=weight)

    def _mark_trained(self, entry: BatchGroup) -> None:
        first_use = entry.use == 1
        self._tally.trained(entry.group, lag=entry.lag, first_use=first_use)
        if first_use:
            self.ledger.trained(entry.group.ordinal)
        self._shelf.used(entry.group.ordinal)

    # --- what others may know -------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counts for people and metrics; JSON-able."""
        return {
            "version": self.version,
            "num_issued": self.ledger.num_issued,
            "num_running": len(self._leases.running),
            "num_buffered": len(self._shelf.entries),
            "num_requeued": len(self._issuer.requeued),
            "num_trained": self.ledger.counts[TRAINED],
            "frontier": self.ledger.frontier,
            "drops": self.ledger.drops(),
            "waiting_for": self._waiting_for,
            "held_back": self._held_back(),
            **self._tally.snapshot(),
        }

    def snapshot(self) -> dict[str, Any]:
        """The ledger at this step boundary, JSON-able.

        Groups themselves are not in it: what is pending is issued again, and what has trained
        does not train once more.
        """
        return {
            "version": self.version,
            "next_lease_id": self._leases.next_id,
            "ledger": self.ledger.snapshot(),
            "tally": self._tally.snapshot(),
        }
