"""The accepted groups that may still train, by ordinal, and how often each has. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.records import Group


@dataclass(slots=True)
class Buffered:
    """An accepted group and how often it has trained."""

    group: Group
    uses: int = 0


class Shelf:
    """Keeps a group until it has trained `max_uses` times, or is taken off for its age."""

    def __init__(self, *, max_uses: int, max_staleness: int) -> None:
        self.entries: dict[int, Buffered] = {}  # by ordinal
        self._max_uses = max_uses
        self._max_staleness = max_staleness

    def add(self, group: Group) -> None:
        self.entries[group.ordinal] = Buffered(group)

    def num_unused(self) -> int:
        return sum(entry.uses == 0 for entry in self.entries.values())

    def used(self, ordinal: int) -> None:
        """It has trained once more."""
        entry = self.entries[ordinal]
        entry.uses += 1
        if entry.uses >= self._max_uses:
            del self.entries[ordinal]

    def remove_stale(self, version: int, *, trained: bool) -> list[int]:
        """Take off groups past the bound, of those that have (not) trained; their ordinals."""
        stale = [
            ordinal
            for ordinal, entry in self.entries.items()
            if (entry.uses > 0) is trained
            and version - entry.group.oldest_version > self._max_staleness
        ]
        for ordinal in stale:
            del self.entries[ordinal]
        return stale
