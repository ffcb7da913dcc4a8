"""What became of every ordinal: trained, dropped with a reason, or pending. Exactly one.

Ordinals below the *frontier* all have a final fate and are kept as counts only, so that
memory follows what is outstanding and not the length of the run.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from slipstream.records import DropReason

TRAINED = "trained"


class Ledger:
    """Fates by ordinal. An ordinal is issued once, in order, and finished once."""

    def __init__(self) -> None:
        self.num_issued = 0  # ordinals [0, num_issued) have left the stream
        self.frontier = 0  # every ordinal below has a final fate
        self.counts: Counter[str] = Counter()  # final fate -> ordinals
        self._final: dict[int, str] = {}  # final fates at or above the frontier

    def issue(self) -> int:
        """The next ordinal of the stream; it is pending from now on."""
        self.num_issued += 1
        return self.num_issued - 1

    def trained(self, ordinal: int) -> None:
        self._finish(ordinal, TRAINED)

    def dropped(self, ordinal: int, reason: DropReason) -> None:
        self._finish(ordinal, reason.value)

    def pending(self) -> list[int]:
        """Issued ordinals without a final fate, ascending."""
        return [o for o in range(self.frontier, self.num_issued) if o not in self._final]

    def drops(self) -> dict[str, int]:
        """Reason -> dropped ordinals."""
        return {fate: count for fate, count in self.counts.items() if fate != TRAINED}

    def _finish(self, ordinal: int, fate: str) -> None:
        assert self.frontier <= ordinal < self.num_issued, f"ordinal {ordinal} is not pending"
        assert ordinal not in self._final, f"ordinal {ordinal} was finished before"
        self._final[ordinal] = fate
        self.counts[fate] += 1
        while self.frontier in self._final:
            del self._final[self.frontier]
            self.frontier += 1

    def snapshot(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "num_issued": self.num_issued,
            "frontier": self.frontier,
            "counts": dict(self.counts),
            "final": {str(ordinal): fate for ordinal, fate in self._final.items()},
        }

    @classmethod
    def restore(cls, snapshot: dict[str, Any]) -> Ledger:
        ledger = cls()
        ledger.num_issued = snapshot["num_issued"]
        ledger.frontier = snapshot["frontier"]
        ledger.counts = Counter(snapshot["counts"])
        ledger._final = {int(ordinal): fate for ordinal, fate in snapshot["final"].items()}
        return ledger
