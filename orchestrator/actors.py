"""Ray actors as the orchestrator sees them: made, asked under a deadline, listened to.

What goes wrong becomes a RoleFailed that names the role and quotes its reason.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from orchestrator.health import Failure, Limits, State, failure, state_of
from orchestrator.watchdog import Heard
from slipstream.errors import Restartable, RoleFailed, SlipstreamError
from slipstream.telemetry import Beat

Event = Mapping[str, Any]


def make_actor(cls: type[Any], name: str, **options: Any) -> Any:
    """A remote class with these options; call `.remote(...)` of it."""
    return ray.remote(cls).options(name=f"{name}-{time.time_ns()}", **options)


def is_done(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0)[0])


def answer(reference: Any, timeout_s: float, role: str) -> Any:
    """The answer; a RoleFailed that says who failed and why instead of Ray's trace."""
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayError as error:
        raise failed(role, error, timeout_s) from None


def cause_of(error: RayError) -> BaseException | None:
    """What was raised inside the role."""
    # A timeout inside the role is a RayTaskError and a GetTimeoutError at once.
    return error.cause if isinstance(error, RayTaskError) else None


def says_why(error: RayError) -> bool:
    """Whether the role itself said what is wrong, so that another start would end the same way."""
    cause = cause_of(error)
    return isinstance(cause, SlipstreamError) and not isinstance(cause, Restartable)


def failed(role: str, error: RayError, timeout_s: float = math.inf) -> RoleFailed:
    if isinstance(error, RayTaskError):
        cause = cause_of(error)
        if isinstance(cause, SlipstreamError):
            return RoleFailed(f"{role}: {cause}")
        if isinstance(cause, RayActorError):
            return RoleFailed(f"{role} lost a role that it talks to: {cause}")
        return RoleFailed(f"{role} failed:\n{error}")
    if isinstance(error, GetTimeoutError):
        return RoleFailed(f"{role} did not answer within {timeout_s:.0f} s")
    return RoleFailed(f"{role} died: {error}")


@dataclass(slots=True)
class Listener:
    """Keeps one question to an actor under way: what has happened, and what do you do now?"""

    actor: Any
    limits: Limits
    beat: Beat | None = None  # the last one heard
    _heard_s: float = field(default_factory=time.monotonic)
    _asked: Any = None
    _asked_s: float = 0.0

    def ask(self) -> Any:
        """Ask, if no question is under way; what to wait for."""
        if self._asked is None:
            self._asked, self._asked_s = self.actor.drain.remote(), time.monotonic()
        return self._asked

    def hear(self) -> list[Event]:
        """What was told since the last time, if the answer is there."""
        if self._asked is None or not is_done(self._asked):
            return []
        asked, self._asked = self._asked, None
        try:
            self.beat, events = ray.get(asked)
        except RayError:
            return []  # its call to `run` says why
        self._heard_s = time.monotonic()
        return list(events)

    @property
    def silent_s(self) -> float:
        """How long it has owed an answer."""
        return 0.0 if self._asked is None else time.monotonic() - self._asked_s

    def failure(self) -> Failure | None:
        return failure(self.beat, self.silent_s, self.limits)

    def state(self, newest: tuple[int, int]) -> State:
        """`newest`: timeline and version of the published weights."""
        return state_of(self.beat, self.silent_s, self.limits, newest)

    @property
    def version(self) -> int | None:
        """Of the weights held; None before the first."""
        return None if self.beat is None or self.beat.version < 0 else self.beat.version

    @property
    def heard(self) -> Heard:
        return Heard(beat=self.beat, at_s=self._heard_s)
