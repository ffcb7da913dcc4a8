"""How figures are said. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime


def share(value: float | None) -> str:
    return "?" if value is None else f"{value:.0%}"


def counted(count: int, what: str, several: str = "") -> str:
    return f"{count:,} {what if count == 1 else several or what + 's'}"


def seconds(value: float | None) -> str:
    if value is None:
        return "unknown"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )


def moment(at_s: float | None) -> str:
    return (
        "unknown" if at_s is None else f"{datetime.fromtimestamp(at_s, tz=UTC):%Y-%m-%d %H:%M} UTC"
    )


def listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items() if count) or "none"
