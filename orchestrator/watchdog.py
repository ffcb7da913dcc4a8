"""Who waits for what, when a job stands still. Pure, but for the file of stacks.

beats of all roles, replay's statistics ──▶ who_waits ──▶ one sentence
stacks of all processes ────────────────▶ write_stacks ──▶ <run>/stacks-<time>.txt
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slipstream.telemetry import Beat

SILENT_AFTER_S = 8.0  # beats are asked for about every second
MAX_TOLD = 16  # roles in the sentence, those that stand still the longest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a role last said of itself."""

    beat: Beat | None  # None: it has never answered
    at_s: float  # when, or when it was first asked; by the clock of `now_s`


def who_waits(
    heard: Mapping[str, Heard], stats: Mapping[str, Any], now_s: float, *, groups_per_batch: int
) -> str:
    """What each role does or waits for, and since when. `heard`: by role name, learner-0;
    `stats`: replay's, {} where it does not answer."""
    replay = _replay(stats, groups_per_batch)
    told = sorted(
        (_told(name, last, now_s, replay, stats) for name, last in heard.items()),
        key=lambda entry: -entry[0],
    )
    texts = [text for _, text in told[:MAX_TOLD]]
    if len(told) > MAX_TOLD:
        texts.append(f"and {len(told) - MAX_TOLD} more")
    if not any(replay in text for text in texts):
        texts.append(replay)
    return "; ".join(texts)


def _told(
    name: str, last: Heard, now_s: float, replay: str, stats: Mapping[str, Any]
) -> tuple[float, str]:
    """For how long the role has stood still, and the words for it."""
    beat, silent_s = last.beat, now_s - last.at_s
    if beat is None:
        return silent_s, f"{name} has not answered yet, for {_seconds(silent_s)}"
    if silent_s > SILENT_AFTER_S:
        before = f"before: {beat.phase}, {_version(beat)}"
        return silent_s, f"{name} does not answer for {_seconds(silent_s)} ({before})"
    phase_s = beat.phase_s + silent_s
    if name.startswith("learner") and beat.phase == "wait":
        return phase_s, f"{name} has waited {_seconds(phase_s)} for a batch ({replay})"
    tokenless_s = 0.0 if beat.token_s is None else beat.token_s + silent_s
    ends = [_version(beat)]
    if tokenless_s > SILENT_AFTER_S:
        ends.append(f"no token for {_seconds(tokenless_s)}")
    if beat.leaving:
        ends.append("leaving")
    if name.startswith("rollout") and beat.phase in ("wait", "between"):
        held_back = f" ({stats['held_back']})" if stats.get("held_back") else ""
        doing = f"{name} waits for prompts{held_back}"  # in naps, so their age says nothing
    else:
        doing = f"{name}: {beat.phase} for {_seconds(phase_s)}"
    return max(phase_s, tokenless_s), ", ".join([doing, *ends])


def _replay(stats: Mapping[str, Any], groups_per_batch: int) -> str:
    if not stats:
        return "replay does not answer"
    parts = [
        f"replay: {stats['num_buffered']} of {groups_per_batch} groups",
        f"{stats['num_running']} leases running",
    ]
    if stats.get("oldest_lease_s") is not None:
        parts.append(f"oldest {_seconds(stats['oldest_lease_s'])}")
    if stats.get("waiting_for"):
        parts.append(f"it waits for {stats['waiting_for']}")
    return ", ".join(parts)


def _version(beat: Beat) -> str:
    return "no version yet" if beat.version < 0 else f"version {beat.version}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def write_stacks(run_dir: Path, stacks: Mapping[str, str]) -> Path:
    """Write the threads' stacks of each role, `slipstream.stacks.stacks()`, beside the metrics."""
    path = run_dir / f"stacks-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.txt"
    path.write_text(
        "\n".join(f"===== {role}\n\n{text}" for role, text in stacks.items()), encoding="utf-8"
    )
    return path
