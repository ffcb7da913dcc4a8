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
    """Keeps groups until they are taken off."""

    def __init__(self) -> None:
        self.entries: dict[int, Buffered] = {}  # by ordinal

    def add(self, group: Group, uses: int = 0) -> None:
        self.entries[group.ordinal] = Buffered(group, uses)

    def remove(self, ordinal: int) -> None:
        """Nothing happens where it is not there."""
        self.entries.pop(ordinal, None)

    def num_unused(self) -> int:
        return sum(entry.uses == 0 for entry in self.entries.values())

    def older_than(self, version: int, *, used: bool) -> list[int]:
        """Ordinals of the (un)used groups with a token from before `version`."""
        return [
            ordinal
            for ordinal, entry in self.entries.items()
            if (entry.uses > 0) is used and entry.group.oldest_version < version
        ]
