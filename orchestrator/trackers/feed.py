"""Keeps a tracker's slowness, failure or absence away from the run.

driver ─ `log`, never waits ─▶ queue of at most MAX_WAITING ─▶ thread ─▶ tracker

What does not fit into the queue is left out, what fails ends the feed; either is told once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

from orchestrator.trackers.curves import Figures
from orchestrator.trackers.tracker import Tracker
from slipstream.secrets import redact
from slipstream.telemetry import EventLog

MAX_WAITING = 1000  # figures
FINISH_S = 15.0  # for all feeds at the end of a run


class Feed:
    """One tracker in a thread of its own, which opens it, too."""

    def __init__(
        self,
        name: str,
        open_tracker: Callable[[], Tracker],
        events: EventLog,
        *,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self.name = name
        self._open = open_tracker
        self._events = events
        self._waiting: queue.Queue[Figures | None] = queue.Queue(max_waiting)
        self._num_left_out = 0
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, figures: Figures) -> None:
        """Hand over; never waits, never raises."""
        if not self._thread.is_alive():
            return
        try:
            self._waiting.put_nowait(figures)
        except queue.Full:
            self._num_left_out += 1
            if self._num_left_out == 1:
                self._failed("it is too slow; what it does not take in time is left out")

    def end(self) -> None:
        """Ask it to finish, once all that waits is logged."""
        while self._thread.is_alive():
            try:
                self._waiting.put_nowait(None)
                return
            except queue.Full:  # the end is worth more than the oldest of them
                self._drop_one()

    def wait(self, deadline_s: float) -> None:
        """Until it has finished; `deadline_s` by time.monotonic()."""
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        if self._thread.is_alive():
            left = f"about {self._waiting.qsize()} figures are lost"
            self._failed(f"it did not finish within {FINISH_S:g} s; {left}")

    def _drop_one(self) -> None:
        try:
            self._waiting.get_nowait()
            self._num_left_out += 1
        except queue.Empty:
            pass

    def _run(self) -> None:
        try:
            tracker = self._open()
            while (figures := self._waiting.get()) is not None:
                tracker.log(figures)
            tracker.finish()
        except BaseException as error:  # a library may raise anything, SystemExit too
            self._failed(f"{type(error).__name__}: {error}".strip())

    def _failed(self, message: str) -> None:
        self._events.emit("tracker_failed", tracker=self.name, message=redact(message))


def end_all(feeds: Sequence[Feed], timeout_s: float = FINISH_S) -> None:
    """Finish all of them at the same time, in `timeout_s` together."""
    deadline_s = time.monotonic() + timeout_s
    for feed in feeds:
        feed.end()
    for feed in feeds:
        feed.wait(deadline_s)
