"""Replay and the weight board: one actor each, which Ray starts again where its process dies.

The driver keeps one question under way to each. One that does not answer in time is killed, so that
it comes back; an event tells of that, and of a process that has died by itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from slipstream.telemetry import EventLog

ANSWER_S = 1.0  # for an answer, of one look


class Service:
    """One of them. `limit_s`: silence after which it is killed; None where it would not come back,
    and is left alone."""

    def __init__(self, name: str, actor: Any, limit_s: float | None) -> None:
        self.stats: Mapping[str, Any] = {}  # the newest that it has told
        self._name = name
        self._actor = actor
        self._limit_s = limit_s
        self._asked: Any = None
        self._asked_s = 0.0
        self._pid: int | None = None
        self._is_killed = False  # and has not answered since
        self._log = EventLog(name, 0)

    def look(self) -> None:
        """Ask where nothing is asked, and wait a moment for the answer."""
        if self._asked is None:
            self._asked, self._asked_s = self._actor.stats.remote(), time.monotonic()
        if ray.wait([self._asked], timeout=ANSWER_S)[0]:
            asked, self._asked = self._asked, None
            with suppress(RayError):
                self._hear(**ray.get(asked))
        elif self._limit_s is not None and not self._is_killed:  # or it may be starting
            silent_s = time.monotonic() - self._asked_s
            if silent_s > self._limit_s:
                self._is_killed = True
                self._tell(f"{self._name} does not answer: silent for {silent_s:.0f} s, killed")
                ray.kill(self._actor, no_restart=False)

    def take_events(self) -> list[dict[str, Any]]:
        return self._log.drain()

    def _hear(self, pid: int, **stats: Any) -> None:
        if self._pid not in (None, pid) and not self._is_killed:
            self._tell(f"{self._name} died: it is process {pid} now")
        self.stats, self._pid, self._is_killed = stats, pid, False

    def _tell(self, cause: str) -> None:
        self._log.emit("restarted", cause=cause)
