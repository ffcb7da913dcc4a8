"""The rollout workers that have come, as they last said of themselves. Pure.

Not part of the ledger's history: whoever comes back to a restarted replay says it again.
"""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.records import Wait


@dataclass(frozen=True, slots=True)
class _Worker:
    incarnation: int
    yielded_version: int | None  # for whose training it has released the shared devices


class Workers:
    """By name; a higher incarnation replaces a lower one for good."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}

    def register(self, worker: str, incarnation: int, *, yielded_version: int | None) -> None:
        """Note what it says of itself."""
        self._workers[worker] = _Worker(incarnation, yielded_version)

    def was_replaced(self, worker: str, incarnation: int) -> bool:
        known = self._workers.get(worker)
        return known is not None and incarnation < known.incarnation

    def forget(self, worker: str) -> None:
        """It is gone."""
        self._workers.pop(worker, None)

    def works(self, worker: str) -> None:
        """It has got prompts: its devices are not the learner's any more."""
        self._workers[worker] = _Worker(self._workers[worker].incarnation, None)

    def unyielded(self, num_workers: int, version: int) -> Wait | None:
        """Why the shared devices of `num_workers` workers are not free for `version`, or None."""
        if len(self._workers) < num_workers:
            return Wait(reason=f"{len(self._workers)} of {num_workers} rollout workers have come")
        workers = self._workers.items()
        if busy := sorted(name for name, worker in workers if worker.yielded_version != version):
            return Wait(reason=f"{', '.join(busy)} to release the shared devices")
        return None
