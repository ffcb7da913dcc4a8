"""How long a role that was struck was missed, read from the events of the run. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chaos.run import Strike

Event = Mapping[str, Any]
NEITHER: dict[str, float | None] = {"noticed_s": None, "mended_s": None}


def recoveries(strikes: Sequence[Strike], events: Sequence[Event]) -> list[dict[str, Any]]:
    """Of every strike: seconds until it was noticed, and until it was mended; None where neither
    was needed, or the job ended before.

    A worker is mended when its next incarnation has adopted weights, the learner with its next
    step after it went back, everything else with the next step.
    """
    return [
        {
            "role": strike.role,
            "how": strike.how,
            **_recovery(strike, events, _next_same(strike, strikes)),
        }
        for strike in strikes
    ]


def _next_same(strike: Strike, strikes: Sequence[Strike]) -> float:
    """When the same worker, or any rank, was struck again: what is noticed later may be of that."""
    later = (one for one in strikes if one.role == strike.role and one.at_s > strike.at_s)
    same = (one.at_s for one in later if one.pid == strike.pid or one.role != "rollout")
    return next(same, math.inf)


def _recovery(strike: Strike, events: Sequence[Event], until_s: float) -> dict[str, float | None]:
    match strike.role:
        case "rollout":
            started = _next(
                events, 0.0, lambda e: e["kind"] == "worker_started" and e["pid"] == strike.pid
            )
            if started is None:
                return NEITHER  # it was struck before it had started
            index, incarnation = started["index"], started["incarnation"]
            noticed = _next(
                events,
                strike.at_s,
                lambda e: _is(e, "worker_died", index) and e["incarnation"] == incarnation,
            )
            back = noticed and _next(
                events, noticed["time_s"], lambda e: _is(e, "worker_started", index)
            )
            # Told by another process, whose clock is not the driver's.
            mended = back and _next(
                events, back["time_s"] - 1.0, lambda e: _is(e, "adopted", index)
            )
        case "learner":
            noticed = _next(events, strike.at_s, lambda e: e["kind"] == "went_back")
            mended = noticed and _next(events, noticed["time_s"], lambda e: e["kind"] == "step")
        case _:
            noticed = None
            mended = _next(events, strike.at_s, lambda e: e["kind"] == "step")
    if noticed is not None and noticed["time_s"] > until_s:
        return NEITHER
    return {
        "noticed_s": None if noticed is None else noticed["time_s"] - strike.at_s,
        "mended_s": None if mended is None else mended["time_s"] - strike.at_s,
    }


def _is(event: Event, kind: str, index: int) -> bool:
    return bool(event["kind"] == kind and event["index"] == index)


def _next(
    events: Sequence[Event], after_s: float, matches: Callable[[Event], bool]
) -> Event | None:
    return next((e for e in events if e["time_s"] > after_s and matches(e)), None)
