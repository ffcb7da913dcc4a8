"""Replay and the weight board: one actor each, which Ray starts again where its process dies.

The driver keeps one question under way to each. One that does not answer in time is killed, so that
it comes back; an event tells of that, and of a process that has died by itself. One that has not
answered since it was started again is left alone: those who call it have their own deadlines.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from slipstream.errors import RoleFailed
from slipstream.telemetry import EventLog

LOOK_S = 0.2  # between two looks at one that is waited for


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
        self._is_starting = False  # it was killed or has died, and has not answered since
        self._is_told = False  # of this death
        self._log = EventLog(name, 0)

    def ask(self) -> Any:
        """Ask, if no question is under way; what to wait for."""
        if self._asked is None:
            self._asked, self._asked_s = self._actor.stats.remote(), time.monotonic()
        return self._asked

    def hear(self) -> bool:
        """Whether its answer is there, which is taken. One that owes it for too long is killed."""
        if self._asked is None:
            return False
        if ray.wait([self._asked], timeout=0)[0]:
            asked, self._asked = self._asked, None
            return self._take(asked)
        if self._limit_s is None or self._is_starting or self.silent_s <= self._limit_s:
            return False
        self._is_starting = True
        if self._pid is None or _is_there(self._pid):  # or it has died: it has a journal to read
            self._tell(f"{self._name} does not answer: silent for {self.silent_s:.0f} s, killed")
            self._is_told = True
            ray.kill(self._actor, no_restart=False)
        return False

    def await_answer(self, timeout_s: float) -> None:
        """Until it has answered a question that is open now, for which one that hangs is killed.

        Raises RoleFailed where it does not answer in time.
        """
        if self._limit_s is None:
            return
        self.hear()  # an answer that lies ready says nothing of now
        deadline_s = time.monotonic() + timeout_s
        while True:
            ray.wait([self.ask()], timeout=LOOK_S)
            if self.hear():
                return
            if time.monotonic() > deadline_s:
                raise RoleFailed(f"{self._name} did not answer within {timeout_s:.0f} s")
            time.sleep(LOOK_S)  # an error comes at once

    @property
    def silent_s(self) -> float:
        """How long it has owed an answer."""
        return 0.0 if self._asked is None else time.monotonic() - self._asked_s

    def take_events(self) -> list[dict[str, Any]]:
        return self._log.drain()

    def _take(self, asked: Any) -> bool:
        try:
            self._hear(**ray.get(asked))
        except RayTaskError:  # it fails, as with a full disk, and says so to who calls it
            return True
        except RayError:
            return False
        return True

    def _hear(self, pid: int, **stats: Any) -> None:
        self.stats = stats
        if pid == self._pid:
            self._is_starting = self._is_told  # killed a moment after this answer
            return
        if self._pid is not None and not self._is_told:
            self._tell(f"{self._name} died: it is process {pid} now")
        self._pid, self._is_starting, self._is_told = pid, False, False

    def _tell(self, cause: str) -> None:
        self._log.emit("restarted", cause=cause)


def _is_there(pid: int) -> bool:
    """On this node, where the driver keeps both."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
