"""The page of several runs beside each other: curves over each other, figures, differing keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from orchestrator.report import charts
from orchestrator.report.charts import Chart, Line
from orchestrator.report.markup import Html, tag
from orchestrator.report.numbers import by_set, mean_share
from orchestrator.report.page import Page, document
from orchestrator.report.read import RunRecord
from orchestrator.report.tables import flat, table
from orchestrator.report.words import seconds, share

ABSENT = "not set"
Figures = Mapping[str, Any]


def titles(runs: Sequence[RunRecord]) -> list[str]:
    """A name for each: the run's, or its path where two have the same."""
    names = [run.name for run in runs]
    shown = [n if names.count(n) == 1 else str(r.path) for n, r in zip(names, runs, strict=True)]
    return [f"{t} ({i + 1})" if shown.count(t) > 1 else t for i, t in enumerate(shown)]


def compare_page(runs: Sequence[RunRecord], figures: Sequence[Figures]) -> Page:
    names = titles(runs)
    entries = [
        ("Reward over versions", _rewards(runs, names), "Mean over a twentieth of each run."),
        ("Reward over time", _rewards_in_time(runs, names), "The same, by minutes of training."),
        ("Held-out accuracy", _held_out(runs, names), "Greedy answers; the first set of each run."),
        ("Training throughput", _throughput(runs, names), "Tokens that trained."),
    ]
    shown = [
        tag("figure", tag("h3", title), chart.svg, tag("figcaption", caption))
        for title, chart, caption in entries
        if chart is not None
    ]
    body = [
        tag("h1", f"{len(runs)} runs compared"),
        tag("div", tag("span", ", ".join(names)), class_="facts"),
        _boxed("Figures", _figures(names, figures)),
        tag("h2", "Curves"),
        tag("div", *shown, class_="charts"),
        _boxed("Settings that differ", _settings(runs, names)),
    ]
    kept = tuple(chart for _, chart, _ in entries if chart is not None)
    return Page(html=document("Slipstream: runs compared", body), charts=kept)


def differing(jobs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The dotted keys in which the jobs differ, each with every job's value."""
    flats = [dict(flat(job)) for job in jobs]
    keys = sorted({key for found in flats for key in found})
    values = {key: [found.get(key, ABSENT) for found in flats] for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def _boxed(title: str, content: Html) -> Html:
    return tag("section", tag("h2", title), tag("div", content, class_="box"))


def _settings(runs: Sequence[RunRecord], names: Sequence[str]) -> Html:
    found = differing([run.job for run in runs])
    if not found:
        return tag("p", "The resolved jobs are the same.")
    rows = [[key, *values] for key, values in found.items()]
    return table(["key", *names], rows, words={0})


def _figures(names: Sequence[str], figures: Sequence[Figures]) -> Html:
    rows = [[title, *(tell(f) for f in figures)] for title, tell in ROWS.items()]
    return table(["", *names], rows, numbers=range(1, len(names) + 1), words={0})


def _held(figures: Figures, key: str) -> str:
    found = next(iter(figures["evals"].values()), None)
    return "-" if found is None or found[key] is None else f"{found[key]:.1%}"


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _lost(figures: Figures) -> str:
    ledger = figures["ledger"]
    if ledger is None:
        return "not known"
    return "nothing" if ledger["holds"] else f"{ledger['findings']} breaches"


ROWS: dict[str, Callable[[Figures], str]] = {
    "state": lambda f: str(f["state"]),
    "mode": lambda f: str(f["mode"]),
    "model": lambda f: PurePath(str(f["model"])).name,
    "version": lambda f: f"{f['version']:,}",
    "duration": lambda f: seconds(f["wall_s"]),
    "training": lambda f: seconds(f["training_s"]),
    "reward, first steps": lambda f: _number(f["reward"] and f["reward"]["first"], 3),
    "reward, last steps": lambda f: _number(f["reward"] and f["reward"]["last"], 3),
    "held-out, first": lambda f: _held(f, "first"),
    "held-out, last": lambda f: _held(f, "last"),
    "held-out, best": lambda f: _held(f, "best"),
    "generated tokens/s": lambda f: _number(f["generated_tokens_per_s"]),
    "trained tokens/s": lambda f: _number(f["trained_tokens_per_s"]),
    "mean lag": lambda f: _number(f["lag"] and f["lag"]["mean"], 2),
    "learner waits": lambda f: share(mean_share(f, "learner")),
    "rollout waits": lambda f: share(mean_share(f, "rollout")),
    "dropped prompts": lambda f: "-" if f["drops"] is None else f"{sum(f['drops'].values()):,}",
    "faults": lambda f: f"{sum(f['faults'].values()):,}",
    "lost": _lost,
}


# --- curves -----------------------------------------------------------------------


def _rewards(runs: Sequence[RunRecord], names: Sequence[str]) -> Chart | None:
    series = [_reward(run, name, i) for i, (run, name) in enumerate(zip(runs, names, strict=True))]
    return _drawn("compare_reward", series, "policy version", "reward")


def _reward(run: RunRecord, name: str, place: int) -> Line:
    steps = list(run.history.steps.values())
    return charts.reward_line(steps, name, charts.series_colour(place), points=False)


def _rewards_in_time(runs: Sequence[RunRecord], names: Sequence[str]) -> Chart | None:
    series = []
    for place, (run, name) in enumerate(zip(runs, names, strict=True)):
        line = _reward(run, name, place)
        history = run.history
        times = [history.steps[int(version)].time_s for version in line.xs]
        minutes = [history.trained_for_s(time_s) / 60 for time_s in times]
        series.append(Line(label=name, xs=minutes, ys=line.ys, colour=line.colour))
    return _drawn("compare_reward_in_time", series, "minutes of training", "reward")


def _held_out(runs: Sequence[RunRecord], names: Sequence[str]) -> Chart | None:
    series = []
    for place, (run, name) in enumerate(zip(runs, names, strict=True)):
        evals = next(iter(by_set(run).values()), [])
        series.append(charts.eval_line(evals, name, charts.series_colour(place)))
    return _drawn("compare_held_out", series, "policy version", "answered right", is_share=True)


def _throughput(runs: Sequence[RunRecord], names: Sequence[str]) -> Chart | None:
    series = []
    for place, (run, name) in enumerate(zip(runs, names, strict=True)):
        history = run.history
        if history.training_s <= 0:
            continue
        edges = charts.bins(0.0, history.training_s)
        colour = charts.series_colour(place)
        line = charts.rate_line(history.while_training(history.trained), edges, name, colour)
        _, unit_s = charts.unit_of(edges[-1] - edges[0])
        minutes = [x * unit_s / 60 for x in line.xs]  # one axis for all
        series.append(Line(label=name, xs=minutes, ys=line.ys, colour=colour))
    return _drawn("compare_throughput", series, "minutes of training", "tokens/s")


def _drawn(
    name: str, series: Sequence[Line], x_label: str, y_label: str, *, is_share: bool = False
) -> Chart | None:
    known = [line for line in series if len(line.xs)]
    if not known:
        return None
    return charts.lines(name, known, x_label=x_label, y_label=y_label, is_share=is_share)
