"""Prompts of which an engine may have died: they run alone, so that no other is blamed. Pure.

When an engine dies of itself, any prompt that ran there may be the reason: each counts a kill.
One kill short of `max_kills` a prompt is a *suspect*. It is given only to a worker that holds no
lease, which gets no other while it runs, and so its next kill is certainly its own.

So that a busy worker gets free, one is *reserved*: it gets nothing new until it holds nothing.
The room of suspects that wait is left to them, and the others go on in what remains: whatever
fills the budget, a batch that waits for a suspect gets it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

SILENT_S = 10.0  # without a word of the reserved worker another one is reserved


def is_suspect(num_kills: int, max_kills: int) -> bool:
    """With a `max_kills` of 1 none is: what killed once is dropped."""
    return num_kills > 0 and num_kills >= max_kills - 1


def suspects_due(
    requeued: Collection[int], kills: Mapping[int, int], max_kills: int, room: int
) -> list[int]:
    """The suspects among the `room` ordinals that are next, lowest first.

    One that waits behind them gets no room before its turn: of whole batches it would be too
    old when they come to it.
    """
    if not kills:
        return []
    return [o for o in sorted(requeued)[:room] if is_suspect(kills.get(o, 0), max_kills)]


class Reservation:
    """The one worker, if any, that gets the next suspect."""

    def __init__(self) -> None:
        self._worker: str | None = None
        self._heard_at_s = 0.0

    def is_for(self, worker: str, now_s: float, *, holds_none: bool) -> bool:
        """Whether the worker that asks is reserved: the first one, or any that holds nothing."""
        is_silent = now_s - self._heard_at_s >= SILENT_S
        if self._worker is None or is_silent or holds_none:
            self._worker = worker
        if worker != self._worker:
            return False
        self._heard_at_s = now_s
        return True

    def release(self, worker: str) -> None:
        """Nothing happens where another one is reserved."""
        if worker == self._worker:
            self._worker = None
