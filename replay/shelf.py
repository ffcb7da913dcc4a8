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
        self.num_unused = 0

    def add(self, group: Group, uses: int = 0) -> None:
        self.entries[group.ordinal] = Buffered(group, uses)
        self.num_unused += uses == 0

    def use(self, ordinal: int) -> None:
        """It has trained once more."""
        entry = self.entries[ordinal]
        self.num_unused -= entry.uses == 0
        entry.uses += 1

    def remove(self, ordinal: int) -> None:
        """Nothing happens where it is not there."""
        entry = self.entries.pop(ordinal, None)
        self.num_unused -= entry is not None and entry.uses == 0

    def older_than(self, version: int, *, used: bool) -> list[int]:
        """Ordinals of the (un)used groups with a token from before `version`."""
        return [
            ordinal
            for ordinal, entry in self.entries.items()
            if (entry.uses > 0) is used and entry.group.oldest_version < version
        ]
