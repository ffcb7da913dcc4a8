"""How long a role that was struck was missed, read from the events of the run. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chaos.run import Strike

Event = Mapping[str, Any]


def recoveries(strikes: Sequence[Strike], events: Sequence[Event]) -> list[dict[str, Any]]:
    """Of every strike: seconds until it was noticed, and until it was mended; None where neither
    was needed, or the job ended before.

    A worker is mended when another incarnation has adopted weights, the learner with its next
    step after it went back, everything else with the next step.
    """
    return [
        {"role": strike.role, "how": strike.how, **_recovery(strike, events)} for strike in strikes
    ]


def _recovery(strike: Strike, events: Sequence[Event]) -> dict[str, float | None]:
    match strike.role:
        case "rollout":
            died = _next(events, strike.at_s, lambda e: e["kind"] == "worker_died")
            if died is None:
                return {"noticed_s": None, "mended_s": None}
            back = _next(
                events,
                died["time_s"],
                lambda e: e["kind"] == "worker_started" and e["index"] == died["index"],
            )
            mended = back and _next(
                events,
                back["time_s"] - 1.0,  # by another process
                lambda e: e["kind"] == "adopted" and e["index"] == died["index"],
            )
        case "learner":
            died = _next(events, strike.at_s, lambda e: e["kind"] == "went_back")
            if died is None:
                return {"noticed_s": None, "mended_s": None}
            mended = _next(events, died["time_s"], lambda e: e["kind"] == "step")
        case _:
            died = None
            mended = _next(events, strike.at_s, lambda e: e["kind"] == "step")
    return {
        "noticed_s": None if died is None else died["time_s"] - strike.at_s,
        "mended_s": None if mended is None else mended["time_s"] - strike.at_s,
    }


def _next(
    events: Sequence[Event], after_s: float, matches: Callable[[Event], bool]
) -> Event | None:
    return next((e for e in events if e["time_s"] > after_s and matches(e)), None)
