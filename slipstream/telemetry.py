"""What a role did, and how busy it was, in plain Python.

A role emits events into its `EventLog`; the orchestrator drains them over the role's
actor, prints progress and writes `metrics.jsonl`. `Busy` splits a loop's wall time into
named phases, so that waiting is visible.

Events (kind: fields beside role, index and time_s):

    rollout `adopted`  timeline, version, load_s, since_published_s, probe_error (None without
                       a probe)
            `busy`     seconds {generate, adopt, wait}, num_tokens, num_running, version;
                       about once a second
            `update_lost`  version, message
            `refused`  ordinal, reason, detail
            `eval_started`  timeline, version
            `eval_dropped`  version: asked of a worker that left, or went back with the run, before
                       it had done it
            `eval_skipped`  version, instead: asked for while another was under way; the newer
                       version `instead` is evaluated
            `left`     reason, num_given_back (leases that another worker gets)
            `eval`     timeline, version, set (its name), num_prompts, num_failures,
                       greedy_accuracy, greedy_reward, sampled_reward, pass_at {k: share}, seconds
                       (of all sets together)
    learner `step`     version (the one made), loss, reward, lags {lag: groups}, num_groups,
                       num_rollouts, num_answer_tokens, tokens_sha256,
                       seconds {wait, train, publish, commit}, metrics {name: value}
            `commit`   version, path, seconds (of writing), pause_s (of training)
            `skipped`  version (which stays), num_groups, detail: a gradient was not finite
            `commit_failed`, `prune_failed`
                       version, message
    driver  `went_back`  timeline, version, cause
            `best`     version, set, metric, value, path (of its commit): better than all before
            and, with the role and index of the worker that they are about:
            `worker_started`  incarnation, node, pid
            `worker_died`     incarnation, cause, blame (its prompts may have killed it)
            `worker_left`     incarnation, reason
            `worker_given_up` incarnation, cause, num_wanted (from now on)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class EventLog:
    """A thread-safe list of events that is emptied by its reader."""

    def __init__(self, role: str, index: int) -> None:
        self._role = role
        self._index = index
        self._lock = threading.Lock()
        self._events: list[dict[str, Any]] = []

    def emit(self, kind: str, **fields: Any) -> None:
        event = {
            "kind": kind,
            "role": self._role,
            "index": self._index,
            "time_s": time.time(),
            **fields,
        }
        with self._lock:
            self._events.append(event)

    def drain(self) -> list[dict[str, Any]]:
        with self._lock:
            events, self._events = self._events, []
        return events


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a role's work loop does now, read beside it. Ages are of the role's own clock."""

    timeline: int  # of the weights held
    version: int  # of them; -1 before the first
    phase: str  # of `Busy`, or "between"
    phase_s: float  # since it began; of "between": since the last one ended
    token_s: float | None = None  # since an engine last made a token, None while it sleeps
    leaving: bool = False  # finishes what it has, and asks for nothing new


class Busy:
    """Seconds spent in each named phase since the last `drain`, and the one under way. Phases do
    not nest. One thread enters them; any may read `now`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._now = ("between", time.perf_counter())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start_s = time.perf_counter()
        self._now = (name, start_s)
        try:
            yield
        finally:
            end_s = time.perf_counter()
            self._now = ("between", end_s)
            self._seconds[name] = self._seconds.get(name, 0.0) + end_s - start_s

    def now(self) -> tuple[str, float]:
        """The phase under way, and the seconds since it began."""
        name, since_s = self._now
        return name, time.perf_counter() - since_s

    def drain(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, {}
        return seconds
