"""Sampled groups, for people to read: prompt, answers, rewards, and which version wrote what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.report.markup import Html, tag

MAX_GROUPS, MAX_ANSWERS = 16, 16
MAX_TITLE = 90  # characters
SHADES = ("blue", "amber", "green", "purple", "sky")  # neighbouring versions differ


def samples(groups: Sequence[Mapping[str, Any]]) -> Html:
    if not groups:
        return tag("p", "No answers were kept (telemetry.sample_every_groups).", class_="muted")
    step = max(1, -(-len(groups) // MAX_GROUPS))
    shown = [*groups[::step]]
    if shown[-1] is not groups[-1]:
        shown.append(groups[-1])
    return tag("div", *(_group(group, place == 0) for place, group in enumerate(shown)))


def _group(group: Mapping[str, Any], is_open: bool) -> Html:
    answers = [answer for answer in group["answers"] if isinstance(answer, Mapping)]
    prompt = str(group.get("prompt", ""))
    rewards = [r for answer in answers if isinstance(r := answer.get("reward"), int | float)]
    mean = f"mean reward {sum(rewards) / len(rewards):.3g}" if rewards else "no rewards"
    title = tag(
        "summary",
        f"Prompt {group.get('ordinal', '?')}: ",
        tag("code", _cut(" ".join(prompt.split()))),
        tag("span", f"  {mean}, {len(answers)} answers", class_="muted small"),
    )
    boxes = [_answer(answer) for answer in answers[:MAX_ANSWERS]]
    hidden = len(answers) - len(boxes)
    more = tag("p", f"{hidden} more answers are not shown.", class_="muted") if hidden else None
    inner = tag("div", tag("pre", prompt), tag("p"), tag("div", *boxes, class_="answers"), more)
    return tag("details", title, inner, open=is_open)


def _answer(answer: Mapping[str, Any]) -> Html:
    reward = answer.get("reward")
    said = f"reward {reward:.3g}" if isinstance(reward, int | float) else "no reward: it failed"
    facts = f" · {answer.get('num_tokens', '?')} tokens · {answer.get('finish_reason', '?')}"
    return tag(
        "div",
        tag("div", tag("span", said, class_="reward"), tag("span", facts, class_="muted small")),
        *_versions(answer.get("spans")),
        tag("pre", str(answer.get("text", ""))),
        class_="answer-box",
    )


def _versions(spans: Any) -> list[Html]:
    """A bar as long as the answer, split where another version went on."""
    try:
        known = [(int(version), int(count)) for version, count in spans]
    except (TypeError, ValueError):
        return []
    parts = [
        tag("i", style=f"flex:{count};background:var(--{SHADES[version % len(SHADES)]})")
        for version, count in known
    ]
    words = ", ".join(f"version {version}: {count}" for version, count in known)
    return [
        tag("div", *parts, class_="versions"),
        tag("div", f"tokens by {words}", class_="muted small"),
    ]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TITLE else f"{text[:MAX_TITLE]} ..."
