"""Which prompt is leased next: those to be issued again, lowest first, then the stream. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from replay.ledger import Ledger
from replay.tally import Tally
from slipstream.records import DropReason, Prompt


class Issuer:
    """Hands out ordinals through the ledger. `prompt_at` is None where a prompt is too long."""

    def __init__(
        self,
        ledger: Ledger,
        tally: Tally,
        prompt_at: Callable[[int], Prompt | None],
        *,
        max_attempts: int,
    ) -> None:
        self.requeued = sorted(ledger.pending)  # a heap; after a restore all that was pending
        self._ledger = ledger
        self._tally = tally
        self._prompt_at = prompt_at
        self._max_attempts = max_attempts

    def next(self) -> tuple[Prompt, int]:
        """The prompt and its attempt, from 0; prompts that are too long get their fate here."""
        while True:
            ordinal = heapq.heappop(self.requeued) if self.requeued else self._ledger.issue()
            prompt = self._prompt_at(ordinal)
            if prompt is not None:
                tries = self._ledger.pending[ordinal]
                tries.num_leased += 1
                return prompt, tries.num_leased - 1
            self._ledger.dropped(ordinal, DropReason.PROMPT_TOO_LONG)

    def again(self, ordinal: int, cause: str) -> None:
        """For no fault of the prompt; does not count towards `max_attempts`."""
        self._tally.reissues[cause] += 1
        heapq.heappush(self.requeued, ordinal)

    def failed(self, ordinal: int) -> None:
        """A try of this prompt was refused: once more, or never again."""
        tries = self._ledger.pending[ordinal]
        tries.num_failed += 1
        if tries.num_failed < self._max_attempts:
            self.again(ordinal, "failed")
        else:
            self._ledger.dropped(ordinal, DropReason.FAILED)
