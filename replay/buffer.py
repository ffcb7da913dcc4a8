"""The staleness-bounded buffer: leases out, groups in, batches to the learner. Pure.

    lease ──▶ running ──put──▶ buffered ──take──▶ batch of this version ──trained──▶ ledger
      ▲          │ expiry, failure   │ stale
      └─ requeue ┴───────────────────┘

Every method that depends on time takes `now_s`; nothing here does I/O.

*Admission.* With B groups a batch and bound S, a lease is granted only while
running + accepted-but-untrained groups are fewer than (S + 1) B.

*Bound.* A group sampled from version w must train at a version of at most w + S, its
deadline. With `on_stale: wait` no group ever misses it. Let c(k) be the number of
outstanding groups (running or untrained) with a deadline of at most v + k, where v is the
version now. Claim: at every `take`, c(k) <= (k + 1) B for all k.
  - A batch of v is only fixed once it holds at least c(k) - k B groups of those with a
    deadline of at most v + k, for every k; afterwards at most k B of them are left, which is
    the claim for v + 1 and k - 1.
  - For k = S the claim is admission itself, as nothing outstanding has a later deadline.
So c(0) <= B: whatever is due now fits in the batch of now, and `take` waits for it if it is
still running. Leases that were issued again carry the version of that moment.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from replay.checks import check_group
from replay.ledger import Ledger
from replay.selection import Buffered, Policy, ranked
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the job file says of replay."""

    group_size: int
    groups_per_batch: int
    num_steps: int
    max_staleness: int
    on_stale: Literal["wait", "requeue", "drop", "clip"] = "wait"
    select: Policy = "fifo"
    whole_batches: bool = False
    max_uses: int = 1
    dynamic_sampling: bool = False
    max_attempts: int = 3
    lease_timeout_s: float = 600.0
    shared_devices: bool = False
    seed: int = 0


@dataclass(slots=True)
class _Worker:
    incarnation: int
    yielded: bool = False


@dataclass(slots=True)
class _Pending:
    """How often an unfinished ordinal was issued, and how often it failed."""

    attempts: int = 0
    failures: int = 0


class ReplayBuffer:
    """The state machine. `prompt_at(ordinal)` is None where the prompt is too long."""

    def __init__(
        self,
        rules: Rules,
        prompt_at: Callable[[int], Prompt | None],
        snapshot: dict[str, Any] | None = None,
    ) -> None:
        self.rules = rules
        self.version = 0
        self.ledger = Ledger()
        self._prompt_at = prompt_at
        self._pending: dict[int, _Pending] = {}
        self._requeued: list[int] = []  # a heap of ordinals
        self._running: dict[int, Lease] = {}  # by lease id
        self._buffered: dict[int, Buffered] = {}  # by ordinal
        self._batch: Batch | None = None  # fixed for `version`
        self._stop: Stop | None = None
        self._workers: dict[str, _Worker] = {}
        self._num_leases = 0
        self._waiting_for = "the first prompts"
        self._refusals: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._reissues: Counter[str] = Counter()
        self._lags: Counter[int] = Counter()
        self._lengths: Counter[str] = Counter()  # rollouts and tokens, generated and trained
        if snapshot is not None:
            self._restore(snapshot)

    # --- rollout workers ------------------------------------------------------------

    def lease(
        self, worker: str, incarnation: int, num_groups: int, now_s: float, *, yielded: bool = False
    ) -> LeaseReply:
        """Up to `num_groups` prompts, issued again ones first, then the stream in order."""
        self.expire(now_s)
        self._register(worker, incarnation, yielded)
        leases = []
        if self._stop is None and incarnation == self._workers[worker].incarnation:
            while len(leases) < num_groups and self._admits():
                leases.append(self._grant(worker, incarnation, now_s))
        return LeaseReply(
            leases=tuple(leases),
            version=self.version,
            yield_device=self.rules.shared_devices and not leases and self._batch_is_complete(),
            stop=self._stop,
        )

    def put(self, group: Group, now_s: float) -> PutReply:
        """Take a finished group in, or say why not. A refused prompt is issued again."""
        self.expire(now_s)
        lease = self._running.get(group.lease_id)
        if lease is None:
            return self._refuse(RefusalReason.UNKNOWN_LEASE, f"lease {group.lease_id}")
        refusal = check_group(
            group, lease, group_size=self.rules.group_size, version=self.version
        )
        if refusal is not None and refusal[0] is RefusalReason.STALE_INCARNATION:
            return self._refuse(*refusal)
        del self._running[group.lease_id]
        if refusal is not None:
            self._failures.update(failure.reason.value for failure in group.failures)
            self._fail(lease.prompt.ordinal)
            return self._refuse(*refusal)
        self._accept(group)
        return PutReply()

    def expire(self, now_s: float) -> None:
        """Issue again what was not handed in within the lease's time."""
        for lease in [lease for lease in self._running.values() if lease.expires_at_s <= now_s]:
            self._revoke(lease, "expired")

    def _register(self, name: str, incarnation: int, yielded: bool) -> None:
        known = self._workers.get(name)
        if known is None or incarnation > known.incarnation:
            self._workers[name] = _Worker(incarnation)
            for lease in [lease for lease in self._running.values() if lease.worker == name]:
                self._revoke(lease, "worker_replaced")
        if incarnation == self._workers[name].incarnation:
            self._workers[name].yielded = yielded

    def _admits(self) -> bool:
        """Whether one more group fits the staleness budget and is still of use to the job."""
        batches_left = self.rules.num_steps - self.version
        batches = min(self.rules.max_staleness + 1, batches_left)
        return self._num_outstanding() < batches * self.rules.groups_per_batch

    def _num_outstanding(self) -> int:
        return len(self._running) + len(self._unused())

    def _unused(self) -> list[Buffered]:
        return [entry for entry in self._buffered.values() if entry.uses == 0]

    def _grant(self, worker: str, incarnation: int, now_s: float) -> Lease:
        prompt = self._next_prompt()
        pending = self._pending.setdefault(prompt.ordinal, _Pending())
        lease = Lease(
            lease_id=self._num_leases,
            prompt=prompt,
            attempt=pending.attempts,
            worker=worker,
            incarnation=incarnation,
            min_version=self.version,
            expires_at_s=now_s + self.rules.lease_timeout_s,
        )
        pending.attempts += 1
        self._num_leases += 1
        self._running[lease.lease_id] = lease
        return lease

    def _next_prompt(self) -> Prompt:
        while True:
            ordinal = heapq.heappop(self._requeued) if self._requeued else self.ledger.issue()
            prompt = self._prompt_at(ordinal)
            if prompt is not None:
                return prompt
            self.ledger.dropped(ordinal, DropReason.PROMPT_TOO_LONG)

    def _revoke(self, lease: Lease, cause: str) -> None:
        del self._running[lease.lease_id]
        self._reissue(lease.prompt.ordinal, cause)

    def _reissue(self, ordinal: int, cause: str) -> None:
        self._reissues[cause] += 1
        heapq.heappush(self._requeued, ordinal)

    def _fail(self, ordinal: int) -> None:
        pending = self._pending[ordinal]
        pending.failures += 1
        if pending.failures < self.rules.max_attempts:
            self._reissue(ordinal, "failed")
        else:
            self._drop(ordinal, DropReason.FAILED)

    def _drop(self, ordinal: int, reason: DropReason) -> None:
        del self._pending[ordinal]
        self.ledger.dropped(ordinal, reason)

    def _refuse(self, reason: RefusalReason, detail: str) -> PutReply:
        self._refusals[reason.value] += 1
        return PutReply(refused=reason, detail=detail)

    def _accept(self, group: Group) -> None:
        self._count_lengths("generated", group)
        rewards = {rollout.reward for rollout in group.rollouts}
        if self.rules.dynamic_sampling and len(rewards) == 1:
            self._drop(group.ordinal, DropReason.ZERO_VARIANCE)
            return
        self._buffered[group.ordinal] = Buffered(group)

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
        if self._stop is None and self.version >= self.rules.num_steps:
            self._stop = Stop(reason="all steps are done")
        if self._stop is not None:
            return self._stop
        chosen = self._choose()
        if isinstance(chosen, Wait):
            self._waiting_for = chosen.reason
            return chosen
        self._batch = Batch(version=version, groups=tuple(self._batch_group(e) for e in chosen))
        return self._batch

    def trained(self, version: int) -> None:
        """The batch of `version - 1` has changed the weights, which are published as `version`.

        A second call for the same version changes nothing.
        """
        if version == self.version and self._batch is None:
            return
        if version != self.version + 1 or self._batch is None:
            raise ValueError(f"trained({version}) without a batch of version {version - 1}")
        for entry in self._batch.groups:
            self._mark_trained(entry)
        self._batch = None
        self.version = version
        for worker in self._workers.values():
            worker.yielded = False
        for entry in [e for e in self._buffered.values() if e.uses and self._lag(e) > self._bound]:
            del self._buffered[entry.group.ordinal]

    def stop(self, reason: str) -> None:
        """No more leases, and no batch after the one that is fixed."""
        self._stop = self._stop or Stop(reason=reason)

    @property
    def _bound(self) -> int:
        return self.rules.max_staleness

    def _lag(self, entry: Buffered) -> int:
        return self.version - entry.group.oldest_version

    def _batch_group(self, entry: Buffered) -> BatchGroup:
        return BatchGroup(group=entry.group, lag=self._lag(entry), use=entry.uses + 1)

    def _mark_trained(self, entry: BatchGroup) -> None:
        ordinal = entry.group.ordinal
        buffered = self._buffered[ordinal]
        buffered.uses += 1
        self._lags[entry.lag] += 1
        if buffered.uses == 1:
            self._count_lengths("trained", entry.group)
            self.ledger.trained(ordinal)
            del self._pending[ordinal]
        if buffered.uses >= self.rules.max_uses:
            del self._buffered[ordinal]

    def _count_lengths(self, which: str, group: Group) -> None:
        self._lengths[f"{which}_rollouts"] += len(group.rollouts)
        self._lengths[f"{which}_tokens"] += sum(rollout.num_tokens for rollout in group.rollouts)

    # --- choosing a batch -----------------------------------------------------------

    def _choose(self) -> list[Buffered] | Wait:
        """The batch's groups by ordinal, or what it waits for. Changes nothing if it waits,
        but for groups that are too old under `requeue` and `drop`."""
        self._remove_stale()
        chosen = self._whole_batch() if self.rules.whole_batches else self._selected()
        if isinstance(chosen, Wait):
            return chosen
        if self.rules.shared_devices and not all(w.yielded for w in self._workers.values()):
            return Wait(reason="the rollout workers to release the shared devices")
        return sorted(chosen, key=lambda entry: entry.group.ordinal)

    def _batch_is_complete(self) -> bool:
        """Whether the learner has all it needs, so that the devices are better given to it."""
        if self._batch is not None:
            return True
        chosen = self._whole_batch() if self.rules.whole_batches else self._selected()
        return not isinstance(chosen, Wait)

    def _remove_stale(self) -> None:
        if self.rules.on_stale not in ("requeue", "drop"):
            return
        for entry in [e for e in self._unused() if self._lag(e) > self._bound]:
            ordinal = entry.group.ordinal
            del self._buffered[ordinal]
            if self.rules.on_stale == "drop":
                self._drop(ordinal, DropReason.STALE)
            else:
                self._reissue(ordinal, "stale")

    def _whole_batch(self) -> list[Buffered] | Wait:
        """The lowest outstanding ordinals, once all of them are here."""
        size = self.rules.groups_per_batch
        unfinished = {lease.prompt.ordinal for lease in self._running.values()}
        unfinished.update(self._requeued)
        unused = {entry.group.ordinal for entry in self._unused()}
        lowest = sorted(unfinished | unused)[:size]
        missing = [ordinal for ordinal in lowest if ordinal in unfinished]
        if len(lowest) < size or missing:
            num_here = len(lowest) - len(missing)
            return Wait(reason=f"prompts of this batch: {num_here} of {size} are here")
        return [self._buffered[ordinal] for ordinal in lowest]

    def _selected(self) -> list[Buffered] | Wait:
        """As many of the oldest as their deadlines demand, the rest by policy."""
        size = self.rules.groups_per_batch
        candidates = list(self._buffered.values())
        if len(candidates) < size or not self._unused():
            return Wait(reason=f"groups: {len(candidates)} of {size} are here")
        must = self._demanded_by_deadlines() if self.rules.on_stale == "wait" else []
        if isinstance(must, Wait):
            return must
        taken = {entry.group.ordinal for entry in must}
        others = [entry for entry in candidates if entry.group.ordinal not in taken]
        # An unused group goes before a used one, so that reuse only fills what is missing.
        best = ranked(others, self.rules.select, seed=self.rules.seed, version=self.version)
        best.sort(key=lambda entry: entry.uses > 0)
        return must + best[: size - len(must)]

    def _demanded_by_deadlines(self) -> list[Buffered] | Wait:
        """The fewest oldest groups that leave at most k B with a deadline of v + k, all k."""
        size, bound = self.rules.groups_per_batch, self._bound
        here = sorted(self._unused(), key=lambda e: (e.group.oldest_version, e.group.ordinal))
        running = Counter(lease.min_version for lease in self._running.values())
        num_demanded = 0
        for ahead in range(bound + 1):
            oldest = self.version + ahead - bound  # deadline v + ahead
            num_here = sum(1 for entry in here if entry.group.oldest_version <= oldest)
            num_running = sum(count for version, count in running.items() if version <= oldest)
            demand = num_here + num_running - ahead * size
            if demand > num_here:
                return Wait(reason=f"{num_running} running prompts that are due by version {oldest + bound}")
            num_demanded = max(num_demanded, demand)
        assert num_demanded <= size, "admission bounds what is due"
        return here[:num_demanded]

    # --- what others may know -------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counts for people and metrics; JSON-able."""
        return {
            "version": self.version,
            "num_issued": self.ledger.num_issued,
            "num_running": len(self._running),
            "num_buffered": len(self._buffered),
            "num_requeued": len(self._requeued),
            "num_trained": self.ledger.counts["trained"],
            "drops": self.ledger.drops(),
            "refusals": dict(self._refusals),
            "failures": dict(self._failures),
            "reissues": dict(self._reissues),
            "lags": dict(sorted(self._lags.items())),
            "lengths": dict(self._lengths),
            "waiting_for": self._waiting_for,
        }

    def snapshot(self) -> dict[str, Any]:
        """The ledger at this step boundary; what is pending is issued again on restore."""
        return {
            "version": self.version,
            "ledger": self.ledger.snapshot(),
            "pending": {
                str(ordinal): [pending.attempts, pending.failures]
                for ordinal, pending in self._pending.items()
            },
        }

    def _restore(self, snapshot: dict[str, Any]) -> None:
        self.version = snapshot["version"]
        self.ledger = Ledger.restore(snapshot["ledger"])
        self._pending = {
            int(ordinal): _Pending(attempts, failures)
            for ordinal, (attempts, failures) in snapshot["pending"].items()
        }
        self._requeued = self.ledger.pending()
        heapq.heapify(self._requeued)
