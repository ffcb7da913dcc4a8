"""How each kind of event is told to people: its words, its mark, the fields that matter. Pure.

The kinds and all their fields are listed in `slipstream/telemetry.py`. `left`, which a worker tells
of itself, is missing: the driver's `worker_left` tells the same.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of event that is a mark in a trace."""

    title: str | None = None  # in a report; None: a report does not list it
    is_fault: bool = False
    mark: tuple[str, str] | None = None  # on a report's timeline: matplotlib's marker, a colour
    fields: tuple[str, ...] = ()  # in a trace


_BROKE = ("X", "red")
KINDS = {
    "adopted": Kind(fields=("version", "load_s", "since_published_s")),
    "best": Kind(title="best so far", mark=("*", "green"), fields=("version", "set", "value")),
    "commit": Kind(title="commit", mark=("|", "purple"), fields=("version", "seconds", "pause_s")),
    "commit_failed": Kind(
        title="commit failed", is_fault=True, mark=_BROKE, fields=("version", "message")
    ),
    "eval": Kind(fields=("version", "set", "greedy_accuracy", "sampled_reward", "seconds")),
    "eval_dropped": Kind(title="evaluation not done", is_fault=True, fields=("version",)),
    "eval_given_up": Kind(title="evaluation given up", is_fault=True, fields=("version",)),
    "eval_skipped": Kind(fields=("version", "instead")),
    "eval_started": Kind(fields=("version",)),
    "launched": Kind(title="launched", mark=(">", "ink"), fields=("version", "timeline")),
    "paused": Kind(title="paused", mark=("s", "amber")),
    "prune_failed": Kind(
        title="old commit not removed", is_fault=True, fields=("version", "message")
    ),
    "restarted": Kind(title="started again", is_fault=True, mark=_BROKE, fields=("cause",)),
    "resumed": Kind(title="resumed", mark=(">", "green")),
    "scaled": Kind(title="scaled", mark=("D", "purple"), fields=("num_before", "num_after")),
    "skipped": Kind(
        title="update not made", is_fault=True, mark=_BROKE, fields=("version", "detail")
    ),
    "tracker_failed": Kind(title="tracker failed", is_fault=True, fields=("tracker", "message")),
    "update_lost": Kind(
        title="update of weights lost", is_fault=True, mark=_BROKE, fields=("version", "message")
    ),
    "went_back": Kind(
        title="went back to a commit",
        is_fault=True,
        mark=("<", "red"),
        fields=("version", "timeline", "cause"),
    ),
    "worker_died": Kind(
        title="worker died", is_fault=True, mark=_BROKE, fields=("incarnation", "cause")
    ),
    "worker_given_up": Kind(
        title="worker given up", is_fault=True, mark=_BROKE, fields=("incarnation", "cause")
    ),
    "worker_left": Kind(title="worker left", mark=("v", "muted"), fields=("incarnation", "reason")),
    "worker_started": Kind(
        title="worker started", mark=("^", "green"), fields=("incarnation", "node")
    ),
}
