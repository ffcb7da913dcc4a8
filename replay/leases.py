"""Running leases and the workers that hold them. Pure; time is an argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from slipstream.records import Group, Lease, Prompt, RefusalReason, Wait


@dataclass(slots=True)
class _Worker:
    incarnation: int
    yielded_version: int | None = None  # for whose training it has released the shared devices


class Leases:
    """A lease runs from its grant until its group is handed in, or until it is revoked."""

    def __init__(self, *, timeout_s: float, next_id: int = 0) -> None:
        self.next_id = next_id
        self.running: dict[int, Lease] = {}  # by lease id
        self._timeout_s = timeout_s
        self._workers: dict[str, _Worker] = {}  # by name

    def register(
        self, worker: str, incarnation: int, *, yielded_version: int | None
    ) -> list[Lease]:
        """Note the worker's state; returns the revoked leases of an incarnation it replaces."""
        known = self._workers.get(worker)
        if known is not None and incarnation < known.incarnation:
            return []
        self._workers[worker] = _Worker(incarnation, yielded_version)
        if known is None or incarnation == known.incarnation:
            return []
        return self._revoke(lambda lease: lease.worker == worker)

    def newest_incarnation(self, worker: str) -> int:
        """Of a worker that has registered; -1 of one that has not."""
        known = self._workers.get(worker)
        return -1 if known is None else known.incarnation

    def grant(
        self, prompt: Prompt, attempt: int, worker: str, min_version: int, now_s: float
    ) -> Lease:
        lease = Lease(
            lease_id=self.next_id,
            prompt=prompt,
            attempt=attempt,
            worker=worker,
            incarnation=self._workers[worker].incarnation,
            min_version=min_version,
            expires_at_s=now_s + self._timeout_s,
        )
        self.next_id += 1
        self.running[lease.lease_id] = lease
        self._workers[worker].yielded_version = None
        return lease

    def of(self, group: Group) -> Lease | RefusalReason:
        """The running lease under which `group` was made."""
        if group.incarnation < self.newest_incarnation(group.worker):
            return RefusalReason.STALE_INCARNATION
        lease = self.running.get(group.lease_id)
        if lease is None or (lease.worker, lease.incarnation) != (group.worker, group.incarnation):
            return RefusalReason.UNKNOWN_LEASE
        return lease

    def expire(self, now_s: float) -> list[Lease]:
        """Revoke what was not handed in within its time."""
        return self._revoke(lambda lease: lease.expires_at_s <= now_s)

    def unyielded(self, num_workers: int, version: int) -> Wait | None:
        """Why the shared devices of `num_workers` workers are not free for `version`, or None."""
        if len(self._workers) < num_workers:
            return Wait(reason=f"{len(self._workers)} of {num_workers} rollout workers have come")
        workers = self._workers.items()
        if busy := sorted(name for name, worker in workers if worker.yielded_version != version):
            return Wait(reason=f"{', '.join(busy)} to release the shared devices")
        return None

    def _revoke(self, condition: Callable[[Lease], bool]) -> list[Lease]:
        revoked = [lease for lease in self.running.values() if condition(lease)]
        for lease in revoked:
            del self.running[lease.lease_id]
        return revoked
