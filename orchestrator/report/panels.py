"""The small charts of a run, each with its title and what it says. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.report import charts
from orchestrator.report.charts import Chart
from orchestrator.report.numbers import by_set
from orchestrator.report.read import RunRecord
from orchestrator.report.words import listed

SYNC_PARTS = {
    "gather_s": "gather",
    "publish_s": "publish",
    "wire_s": "wire",
    "pause_s": "pause",
    "load_s": "load",
}

Entry = tuple[str, Chart | None, str]  # title, chart, caption


def learning(run: RunRecord, figures: Mapping[str, Any]) -> list[Entry]:
    return [_reward(run), _held_out(run), _lag(run, figures)]


def _reward(run: RunRecord) -> Entry:
    steps = list(run.history.steps.values())
    if all(step.reward is None for step in steps):
        return "Reward", None, "No step has been made."
    line = charts.reward_line(steps, "", "blue")
    chart = charts.lines("reward", [line], x_label="policy version", y_label="reward")
    return "Reward", chart, "Mean of each batch (dots) and over a twentieth of the run (line)."


def _held_out(run: RunRecord) -> Entry:
    sets = by_set(run)
    if not sets:
        return "Held-out accuracy", None, "No evaluation has ended."
    series = []
    for place, (name, evals) in enumerate(sets.items()):
        colour = charts.series_colour(place)
        series.append(charts.eval_line(evals, name if len(sets) > 1 else "greedy", colour))
        ks = sorted({k for found in evals for k in found.pass_at if k > 1})
        label = f"{name} " if len(sets) > 1 else ""
        series += [charts.pass_line(evals, k, f"{label}pass@{k}", colour) for k in ks]
    series = [line for line in series if len(line.xs)]
    if not series:
        return "Held-out accuracy", None, "No greedy answer has a reward."
    chart = charts.lines(
        "held_out", series, x_label="policy version", y_label="answered right", is_share=True
    )
    return "Held-out accuracy", chart, "Share of held-out prompts, greedy answers."


def _lag(run: RunRecord, figures: Mapping[str, Any]) -> Entry:
    lag = figures["lag"]
    if lag is None:
        return "Lag", None, "No group has trained."
    bound = None if run.setting("replay.on_stale") == "clip" else lag["bound"]
    chart = charts.lag_histogram("lag", run.history.lags, bound)
    said = "no bound" if bound is None else f"the bound is {bound}"
    return "Lag", chart, f"Mean {lag['mean']:.2f} versions, at most {lag['max']}; {said}."


def work(run: RunRecord, figures: Mapping[str, Any]) -> list[Entry]:
    return [_throughput(run, figures), _waiting(figures), _sync(run, figures)]


def _throughput(run: RunRecord, figures: Mapping[str, Any]) -> Entry:
    history = run.history
    if not history.trained[0] and not history.generated[0]:
        return "Throughput", None, "No token was made."
    times = [*history.trained[0], *history.generated[0]]
    edges = charts.bins(min(times), max(times))
    series = [
        charts.rate_line(history.generated, edges, "generated", "blue"),
        charts.rate_line(history.trained, edges, "trained", "amber"),
    ]
    chart = charts.lines(
        *("throughput", series),
        x_label=f"{charts.unit_of(edges[-1] - edges[0])[0]} since work began",
        y_label="tokens/s",
        from_zero=True,
    )
    means = [figures["generated_tokens_per_s"], figures["trained_tokens_per_s"]]
    said = ["?" if mean is None else f"{mean:,.0f}" for mean in means]
    return "Throughput", chart, f"Mean {said[0]} generated, {said[1]} trained tokens/s."


def _waiting(figures: Mapping[str, Any]) -> Entry:
    known = {role: s for role, s in figures["wait_share"].items() if s is not None}
    if not known:
        return "Waiting", None, "No role has told of its time."
    most = dict(sorted(known.items(), key=lambda entry: -entry[1])[:8])
    chart = charts.bars(
        "waiting",
        {role: 100 * s for role, s in most.items()},
        x_label="% of its time",
        text=lambda value: f"{value:.0f}%",
        colours=("amber",),
    )
    return "Waiting", chart, "From the first step to the last; at most eight roles."


def _sync(run: RunRecord, figures: Mapping[str, Any]) -> Entry:
    found = {
        label: figures["sync"][part]
        for part, label in SYNC_PARTS.items()
        if part in figures["sync"]
    }
    if not found:
        return "Weight sync", None, "No update of weights has told of its time."
    chart = charts.bars(
        "sync",
        {label: 1e3 * spread["median_s"] for label, spread in found.items()},
        x_label="milliseconds of one update",
        text=lambda value: f"{value:.3g} ms",
        high={label: 1e3 * spread["p95_s"] for label, spread in found.items()},
        colours=("green",),
    )
    missing = [label for part, label in SYNC_PARTS.items() if label not in found]
    age = figures["sync"].get("since_published_s")
    size = run.history.bytes_published
    said = [
        "Bars are medians, whiskers reach to the 95th percentile.",
        f"Adopted {age['median_s']:.2f} s after publishing (median)." if age else "",
        f"{size / 1e6:,.1f} MB." if size else "",
        f"Not told in this run: {', '.join(missing)}." if missing else "",
    ]
    return "Weight sync", chart, " ".join(filter(None, said))


def losses(run: RunRecord, figures: Mapping[str, Any]) -> list[Entry]:
    return [_drops(figures), _lengths(figures)]


def _drops(figures: Mapping[str, Any]) -> Entry:
    title = "Dropped, or issued again"
    if figures["drops"] is None:
        return (
            title,
            None,
            "Not known: replay's figures are neither in status.json nor result.json.",
        )
    dropped, again, failed = (figures[n] or {} for n in ("drops", "reissues", "failures"))
    said = f" Failed rollouts: {listed(failed)}." if any(failed.values()) else ""
    counts = {
        **{f"dropped: {reason}": n for reason, n in dropped.items() if n},
        **{f"again: {reason}": n for reason, n in again.items() if n},
    }
    if not counts:
        return title, None, f"No prompt was dropped, and none was issued again.{said}"
    colours = ["amber" if label.startswith("dropped") else "sky" for label in counts]
    chart = charts.bars(
        "drops", counts, x_label="prompts", text=lambda n: f"{n:,.0f}", colours=colours
    )
    return title, chart, f"{sum(dropped.values()):,} prompts dropped.{said}"


def _lengths(figures: Mapping[str, Any]) -> Entry:
    found = figures["bias"]
    if found is None:
        return "Length bias", None, "Lengths are not known: no group has trained."
    values = {which: found[f"{which}_length"] for which in ("generated", "trained")}
    chart = charts.bars(
        "lengths",
        values,
        x_label="tokens, mean answer",
        text=lambda value: f"{value:.1f}",
        colours=("blue", "amber"),
    )
    longer = values["trained"] / values["generated"] - 1 if values["generated"] else 0.0
    apart = f"{abs(longer):.1%} {'longer' if longer > 0 else 'shorter'} than"
    said = f"Trained answers are {apart if abs(longer) >= 5e-4 else 'as long as'} generated ones."
    cut = f" Cut by length: {found['generated_cut']:.0%} of generated answers."
    return "Length bias", chart, said + cut
