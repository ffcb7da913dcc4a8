"""What every role did, over time: the whole run in bins, and a minute of it as it was.

Each role is a row. In the whole run a column's height is split as the time of its bin was; what is
left white was no phase at all, or the role was not there. Marks of what happened are below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from orchestrator.event_kinds import KINDS
from orchestrator.report.charts import Chart, draw, unit_of
from orchestrator.report.history import WAIT, History, Mark
from orchestrator.report.spans import Floats, Spans
from orchestrator.report.style import LIGHT, colour_of_phase

Roles = Mapping[str, Mapping[str, Spans]]  # role-index -> phase -> when
Width = Literal["wide", "narrow"]

WIDTHS_IN: dict[Width, float] = {"wide": 14.0, "narrow": 5.0}
NUM_BINS: dict[Width, int] = {"wide": 300, "narrow": 100}
BIN_S = 0.5  # at least
MAX_ROLES = 24
MAX_SPANS = 800  # of a role in the detail; more are shown in bins
EDGE = 0.008  # left and right of the window, so that no mark touches the names
DETAIL_S = 60.0
DETAIL_PART = 5  # of a short run at most its fifth
MARKS = {kind: found.mark for kind, found in KINDS.items() if found.mark}  # marker, colour


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of the run, in seconds since the epoch; its axis counts from `zero_s`."""

    from_s: float
    until_s: float
    zero_s: float

    @property
    def unit(self) -> tuple[str, float]:
        """Of the axis, and its seconds."""
        return unit_of(self.until_s - self.zero_s)

    def places(self, times_s: Floats) -> Floats:
        """On the axis."""
        return (times_s - self.zero_s) / self.unit[1]


def whole(history: History) -> Window | None:
    """From the first that is known of any role to the last; None where nothing is."""
    starts = [s.starts_s for phases in history.spans.values() for s in phases.values()]
    if not starts or history.last_s is None or history.first_s is None:
        return None
    first_s = min(history.first_s, *(min(times) for times in starts))
    return Window(from_s=first_s, until_s=max(history.last_s, first_s + 1.0), zero_s=first_s)


def detail(history: History, window: Window) -> Window | None:
    """A minute around the middle step, of a short run less; None where spans are not known."""
    times = [step.time_s for step in history.steps.values()]
    if not history.has_exact_spans or not times:
        return None
    middle_s = times[len(times) // 2]
    half_s = min(DETAIL_S, (window.until_s - window.from_s) / DETAIL_PART) / 2
    from_s = max(window.from_s, middle_s - half_s)
    return Window(from_s=from_s, until_s=middle_s + half_s, zero_s=from_s)


def shown_roles(history: History) -> list[str]:
    """At most MAX_ROLES: learners first, then the workers, by number."""
    roles = sorted(history.spans, key=lambda name: (_kind(name), _number(name)))
    return roles[:MAX_ROLES]


def phases_of(history: History) -> list[str]:
    """Every phase of a role that is shown; waiting first, then the longest."""
    totals: dict[str, float] = {}
    for role in shown_roles(history):
        for phase, spans in history.spans[role].items():
            totals[phase] = totals.get(phase, 0.0) + spans.total_s
    return sorted(totals, key=lambda phase: (phase != WAIT, -totals[phase]))


def overview(name: str, history: History, window: Window, width: Width) -> Chart:
    """The whole window in bins."""
    roles = shown_roles(history)
    most = int((window.until_s - window.from_s) / BIN_S)
    num_bins = max(10, min(NUM_BINS[width], most))
    edges = np.linspace(window.from_s, window.until_s, num_bins + 1)

    def fill(axes: Axes) -> None:
        for row, role in enumerate(roles):
            _binned(axes, history.spans[role], edges, row, window)
        _rows(axes, roles, window, history.marks)
        axes.set_xlabel(f"{window.unit[0]} since the start")

    return draw(name, fill, (WIDTHS_IN[width], _height_in(roles)))


def close_up(name: str, history: History, window: Window, width: Width) -> Chart:
    """Every span in the window as it was, where a role has not too many."""
    roles = shown_roles(history)

    def fill(axes: Axes) -> None:
        for row, role in enumerate(roles):
            _spans(axes, history.spans[role], row, window, NUM_BINS[width])
        _rows(axes, roles, window, history.marks)

    return draw(name, fill, (WIDTHS_IN[width], _height_in(roles)))


def _spans(
    axes: Axes, phases: Mapping[str, Spans], row: int, window: Window, num_bins: int
) -> None:
    found = {
        phase: spans.within(window.from_s, window.until_s)
        for phase, spans in phases.items()
        if spans.is_exact
    }
    if sum(map(len, found.values())) > MAX_SPANS:
        edges = np.linspace(window.from_s, window.until_s, 2 * num_bins)
        _binned(axes, phases, edges, row, window)
        return
    for phase, spans in found.items():
        unit_s = window.unit[1]
        shown = [((start - window.zero_s) / unit_s, length / unit_s) for start, length in spans]
        axes.broken_barh(shown, (row - 0.4, 0.8), color=colour_of_phase(phase), linewidth=0)


def _binned(
    axes: Axes,
    phases: Mapping[str, Spans],
    edges: Floats,
    row: int,
    window: Window,
) -> None:
    bottom = np.full(len(edges) - 1, row + 0.4)  # rows are counted downwards
    for phase in sorted(phases, key=lambda name: (name == WAIT, name)):
        height = 0.8 * np.clip(phases[phase].share_of(edges), 0.0, 1.0)
        top = np.maximum(bottom - height, row - 0.4)
        axes.stairs(
            *(top, window.places(edges)),
            baseline=bottom,
            fill=True,
            color=colour_of_phase(phase),
            linewidth=0,
        )
        bottom = top


def _rows(axes: Axes, roles: Sequence[str], window: Window, marks: Iterable[Mark]) -> None:
    row = len(roles)
    _marks(axes, [m for m in marks if window.from_s <= m.time_s <= window.until_s], row, window)
    axes.set_yticks([*range(row), row], [*roles, "events"])
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"])
    axes.set_ylim(row + 0.6, -0.6)
    left, right = window.places(np.asarray([window.from_s, window.until_s]))
    axes.set_xlim(left - EDGE * (right - left), right + EDGE * (right - left))
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8))
    axes.set_xlabel(window.unit[0])


def _marks(axes: Axes, marks: Sequence[Mark], row: int, window: Window) -> None:
    """On the row of events; what broke also as a line through all rows."""
    for kind, (marker, colour) in MARKS.items():
        found = [mark.time_s for mark in marks if mark.kind == kind]
        if not found:
            continue
        times = window.places(np.asarray(found))
        axes.plot(
            times,
            [row] * len(times),
            marker,
            color=LIGHT[colour],
            ms=10 if marker == "|" else 6,
            clip_on=False,
        )
        if colour == "red":
            axes.vlines(times, -0.6, row - 0.3, color=LIGHT["red"], lw=0.9, ls=":")


def _height_in(roles: Sequence[str]) -> float:
    return 0.9 + 0.4 * (len(roles) + 1)


def _kind(role: str) -> str:
    return role.rpartition("-")[0]


def _number(role: str) -> int:
    number = role.rpartition("-")[2]
    return int(number) if number.isdigit() else 0
