"""The charts of a report, by matplotlib, each drawn once for its PNG file and for the page.

Every chart is a figure with units on its axes and its series named where they end. It is drawn
in the light colours of `style`, as wide as a phone, so that its text can be read there.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from orchestrator.report.history import Evaluation, Step
from orchestrator.report.markup import Html
from orchestrator.report.style import LIGHT, SERIES, to_variables

WIDTH_IN, HEIGHT_IN = 5.0, 2.9
MAX_POINTS = 1000  # of a line
MAX_BINS = 60
PNG_DPI = 160
RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a run's name may hold a $
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LIGHT["grey"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart in both forms."""

    name: str  # of its file, without ending
    svg: Html
    png: bytes

    def write(self, directory: Path) -> Path:
        path = directory / f"{self.name}.png"
        path.write_bytes(self.png)
        return path


def draw(
    name: str, fill: Callable[[Axes], None], size_in: tuple[float, float] = (WIDTH_IN, HEIGHT_IN)
) -> Chart:
    """A chart of one pair of axes, which `fill` draws on."""
    # Ids of all charts stand in one page, and come from the salt. No file says when it was made.
    with mpl.rc_context({**RC, "svg.hashsalt": name}):
        figure = Figure(figsize=size_in, layout="constrained")
        fill(figure.subplots())
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(png, format="png", dpi=PNG_DPI, facecolor="#ffffff")
    return Chart(name=name, svg=_inline(svg.getvalue(), name), png=png.getvalue())


def _inline(svg: str, name: str) -> Html:
    """The SVG element alone: as wide as its place, and in the page's colours."""
    body = svg[svg.index("<svg") :]
    head, _, rest = body.partition(">")
    view = head.partition('viewBox="')[2].partition('"')[0]
    return Html(
        to_variables(
            f'<svg viewBox="{view}" role="img" aria-label="{name.replace("_", " ")}">{rest}'
        )
    )


# --- lines ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A series to be drawn; points are behind it, as single dots."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str  # a name of `style.COLOURS`
    points: tuple[Sequence[float], Sequence[float]] | None = None
    is_marked: bool = False
    is_dashed: bool = False


def lines(
    name: str,
    series: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    is_share: bool = False,
    from_zero: bool = False,
) -> Chart:
    """Lines over each other, each with its label where it ends."""

    def fill(axes: Axes) -> None:
        for line in series:
            colour = LIGHT[line.colour]
            if line.points is not None:
                axes.plot(*line.points, ".", color=colour, alpha=0.5, ms=5, mew=0)
            marker, style = ("o" if line.is_marked else ""), ("--" if line.is_dashed else "-")
            axes.plot(line.xs, line.ys, style, marker=marker, ms=4, color=colour, lw=1.8)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.02)
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        if is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        _label_ends(axes, [line for line in series if line.label and len(line.ys)])

    return draw(name, fill)


def _label_ends(axes: Axes, series: Sequence[Line]) -> None:
    """Each label right of its line's end, moved apart where they would touch."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    gap = (high - low) * 0.085
    place = -float("inf")
    for line in sorted(series, key=lambda line: float(line.ys[-1])):
        place = max(float(line.ys[-1]), place + gap)
        axes.annotate(
            line.label,
            (1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=LIGHT[line.colour],
            fontsize=9,
            annotation_clip=False,
        )


def reward_line(steps: Sequence[Step], label: str, colour: str, *, points: bool = True) -> Line:
    """Reward over versions: a mean over a twentieth of the run, with every step behind it."""
    known = [(s.version, s.reward) for s in steps if s.reward is not None]
    versions = np.asarray([v for v, _ in known], dtype=float)
    rewards = np.asarray([r for _, r in known], dtype=float)
    width = max(1, len(rewards) // 20)
    means = _trailing_mean(rewards, width)
    kept = thinned(len(rewards))
    return Line(
        label=label,
        xs=versions[kept].tolist(),
        ys=means[kept].tolist(),
        colour=colour,
        points=(versions[kept].tolist(), rewards[kept].tolist()) if points else None,
    )


def eval_line(evals: Sequence[Evaluation], label: str, colour: str) -> Line:
    known = [(found.version, found.accuracy) for found in evals if found.accuracy is not None]
    return Line(
        label=label,
        xs=[version for version, _ in known],
        ys=[accuracy for _, accuracy in known],
        colour=colour,
        is_marked=True,
    )


def pass_line(evals: Sequence[Evaluation], k: int, label: str, colour: str) -> Line:
    known = [found for found in evals if k in found.pass_at]
    return Line(
        label=label,
        xs=[found.version for found in known],
        ys=[found.pass_at[k] for found in known],
        colour=colour,
        is_dashed=True,
    )


def rate_line(
    columns: tuple[Sequence[float], Sequence[float]],
    edges_s: np.ndarray[Any, Any],
    label: str,
    colour: str,
) -> Line:
    """Tokens a second in each bin of time, over the time since the first edge."""
    _, unit_s = unit_of(edges_s[-1] - edges_s[0])
    sums, _ = np.histogram(np.asarray(columns[0]), bins=edges_s, weights=np.asarray(columns[1]))
    middles = (edges_s[1:] + edges_s[:-1]) / 2 - edges_s[0]
    return Line(
        label=label,
        xs=(middles / unit_s).tolist(),
        ys=(sums / np.diff(edges_s)).tolist(),
        colour=colour,
    )


def bins(from_s: float, until_s: float, at_least_s: float = 2.0) -> np.ndarray[Any, Any]:
    """Edges of at most MAX_BINS equal bins."""
    length_s = max(until_s - from_s, 1e-3)
    count = max(1, min(MAX_BINS, int(length_s / at_least_s)))
    return np.linspace(from_s, from_s + length_s, count + 1)


def unit_of(length_s: float) -> tuple[str, float]:
    """The unit of an axis that is so long, and its seconds."""
    if length_s < 300:
        return "seconds", 1.0
    return ("minutes", 60.0) if length_s < 5 * 3600 else ("hours", 3600.0)


def thinned(count: int) -> np.ndarray[Any, Any]:
    """Places of at most MAX_POINTS of `count`, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_POINTS)).round().astype(int))


def _trailing_mean(values: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    finite = np.nan_to_num(values)
    sums = np.concatenate(([0.0], np.cumsum(finite)))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    means: np.ndarray[Any, Any] = (sums[ends] - sums[starts]) / (ends - starts)
    return means


# --- bars -------------------------------------------------------------------------


def lag_histogram(name: str, groups: Mapping[int, int], bound: int | None) -> Chart:
    """The share of trained groups at each lag, against the bound."""
    total = sum(groups.values())
    last = max([*groups, bound or 0])

    def fill(axes: Axes) -> None:
        lags = list(range(last + 1))
        shares = [groups.get(lag, 0) / total for lag in lags]
        over = [bound is not None and lag > bound for lag in lags]
        bars = axes.bar(
            lags, shares, color=[LIGHT["red" if o else "blue"] for o in over], width=0.7
        )
        if last <= 12:
            axes.bar_label(bars, [f"{share:.0%}" if share else "" for share in shares], fontsize=9)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        axes.set_ylim(0, max(shares) * 1.15)
        axes.set_xlabel("lag of the group (versions)")
        axes.set_ylabel("trained groups")
        if bound is not None:
            axes.axvline(bound + 0.5, color=LIGHT["red"], lw=1.4, ls="--")
            axes.set_xlim(-0.6, max(last, bound) + 1.6)
            axes.text(
                *(bound + 0.55, max(shares) * 1.13, f"bound {bound}"),
                color=LIGHT["red"],
                va="top",
                fontsize=9,
            )

    return draw(name, fill)


def bars(
    name: str,
    values: Mapping[str, float],
    *,
    x_label: str,
    text: Callable[[float], str],
    high: Mapping[str, float] | None = None,
    colours: Sequence[str] = ("blue",),
) -> Chart:
    """Horizontal bars with their values. `high`: a whisker up to it."""
    names = list(values)

    def fill(axes: Axes) -> None:
        axes.grid(visible=False)
        shown = [LIGHT[colours[i % len(colours)]] for i in range(len(names))]
        drawn = axes.barh(names, list(values.values()), color=shown, height=0.6)
        axes.bar_label(drawn, [text(v) for v in values.values()], padding=4, fontsize=9)
        if high is not None:
            for place, key in enumerate(names):
                axes.plot([values[key], high[key]], [place + 0.38] * 2, color=LIGHT["muted"], lw=1)
                axes.plot([high[key]], [place + 0.38], "|", color=LIGHT["muted"], ms=5)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_xlabel(x_label)
        axes.tick_params(axis="y", labelcolor=LIGHT["ink"])

    return draw(name, fill, (WIDTH_IN, min(HEIGHT_IN, 1.0 + 0.38 * len(names))))


def series_colour(place: int) -> str:
    return SERIES[place % len(SERIES)]
