"""What became of every ordinal: trained, dropped with a reason, or pending. Exactly one.

Only pending ordinals are held; those with a final fate are kept as counts. So memory
follows what is outstanding and not the length of the run, and an ordinal can neither
vanish nor end twice: it has a final fate if and only if it was issued and is not pending.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from slipstream.records import DropReason

TRAINED = "trained"


@dataclass(slots=True)
class Tries:
    """How often a pending ordinal was leased, and how many of these tries failed."""

    num_leased: int = 0
    num_failed: int = 0  # expired leases and stale groups are no failure of the prompt


class Ledger:
    """Fates by ordinal. An ordinal is issued once, in order, and finished once."""

    def __init__(self) -> None:
        self.num_issued = 0  # ordinals [0, num_issued) have left the stream
        self.pending: dict[int, Tries] = {}
        self.counts: Counter[str] = Counter()  # final fate -> ordinals

    @property
    def frontier(self) -> int:
        """Every ordinal below has a final fate."""
        return min(self.pending, default=self.num_issued)

    def issue(self) -> int:
        """The next ordinal of the stream; it is pending from now on."""
        ordinal = self.num_issued
        self.num_issued += 1
        self.pending[ordinal] = Tries()
        return ordinal

    def trained(self, ordinal: int) -> None:
        self._finish(ordinal, TRAINED)

    def dropped(self, ordinal: int, reason: DropReason) -> None:
        self._finish(ordinal, reason.value)

    def drops(self) -> dict[str, int]:
        """Reason -> dropped ordinals."""
        return {fate: count for fate, count in self.counts.items() if fate != TRAINED}

    def check(self) -> None:
        """Assert that every issued ordinal has exactly one fate."""
        assert self.num_issued == len(self.pending) + self.counts.total(), "an ordinal vanished"
        assert all(0 <= ordinal < self.num_issued for ordinal in self.pending), "never issued"

    def snapshot(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "num_issued": self.num_issued,
            "counts": dict(self.counts),
            "pending": {
                str(ordinal): [tries.num_leased, tries.num_failed]
                for ordinal, tries in self.pending.items()
            },
        }

    @classmethod
    def restore(cls, snapshot: Mapping[str, Any]) -> Self:
        ledger = cls()
        ledger.num_issued = snapshot["num_issued"]
        ledger.counts = Counter(snapshot["counts"])
        ledger.pending = {
            int(ordinal): Tries(num_leased, num_failed)
            for ordinal, (num_leased, num_failed) in snapshot["pending"].items()
        }
        ledger.check()
        return ledger

    def _finish(self, ordinal: int, fate: str) -> None:
        assert ordinal in self.pending, f"ordinal {ordinal} is not pending"
        del self.pending[ordinal]
        self.counts[fate] += 1
