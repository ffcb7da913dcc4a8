"""What a role did, and how busy it was, in plain Python.

A role emits events into its `EventLog`; the orchestrator drains them over the role's
actor, prints progress and writes `metrics.jsonl`. `Busy` splits a loop's wall time into
named phases, so that waiting is visible.

Events (kind: fields beside role, index and time_s; `spans` are [phase, start_s, seconds], where
start_s counts from the epoch):

    rollout `adopted`  timeline, version, pause_s (the engine decoded nothing), wire_s (the bytes
                       were on their way, with object_store beside decoding), load_s (into the
                       engine), since_published_s, probe_error (None without a probe)
            `busy`     seconds {generate, adopt, wait}, spans, num_tokens, num_running, version;
                       about once a second
            `sample`   ordinal, attempt, prompt, answers [{text, reward (None: it failed),
                       finish_reason, num_tokens, spans [[version, num_tokens], ...]}]; goes into
                       `samples.jsonl` instead
            `update_lost`  version, message
            `refused`  ordinal, reason, detail
            `eval_started`  timeline, version
            `eval_dropped`  version: asked of a worker that left, or went back with the run, before
                       it had done it
            `eval_skipped`  version, instead: asked for while another was under way; the newer
                       version `instead` is evaluated
            `left`     reason, num_given_back (leases that another worker gets)
            `eval`     timeline, version, set (its name), num_prompts, num_failures,
                       greedy_accuracy, greedy_reward, sampled_reward (each None where no answer
                       had a reward), pass_at {k: share}, seconds (of all sets together)
    learner `published`  timeline, version, gather_s (of whole parameters from all ranks),
                       publish_s (to pack and send them), num_bytes
            `step`     version (the one made), loss, reward, lags {lag: groups}, num_groups,
                       num_rollouts, num_answer_tokens, tokens_sha256,
                       seconds {wait, train, publish, commit}, spans, metrics {name: value}
            `commit`   version, path, seconds (of writing), pause_s (of training)
            `skipped`  version (which stays), num_groups, detail: a gradient was not finite
            `commit_failed`, `prune_failed`
                       version, message
    driver  `launched`   timeline, version from which it goes on
            `went_back`  timeline, version, cause
            `replay`     num_buffered, num_running (leases); about once a second, when they change
            `paused`, `resumed`
            `tracker_failed`  tracker, message
            `eval_given_up`  version: several workers have died while they evaluated it
            `best`     version, set, metric, value, path (of its commit): better than all before
            and, with the role (and index, of a worker) that they are about:
            `restarted`  cause: `replay` or `weights`, which Ray starts again
            `scaled`  num_before, num_after: from now on; ranks after their step and a commit
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

MERGE_S = 0.02
SHORT_S = 0.01
Span = list[str | float]  # [phase, start_s, seconds]


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

    def __str__(self) -> str:
        """Version and state."""
        doing = "leaving" if self.leaving else self.phase
        return f"v{self.version} {doing}" if self.version >= 0 else doing


class Busy:
    """Seconds spent in each named phase since the last `drain`, and the one under way. Phases do
    not nest. One thread enters them; any may read `now`."""

    def __init__(self, *, keeps_spans: bool = True) -> None:
        self._keeps_spans = keeps_spans
        self._seconds: dict[str, float] = {}
        self._spans: list[_Span] = []
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
            if self._keeps_spans:
                self._note_span(name, start_s, end_s)

    def now(self) -> tuple[str, float]:
        """The phase under way, and the seconds since it began."""
        name, since_s = self._now
        return name, time.perf_counter() - since_s

    def drain(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, {}
        return seconds

    def drain_spans(self) -> list[Span]:
        """[phase, start since the epoch, seconds] of each stretch since the last call, by time."""
        spans, self._spans = self._spans, []
        epoch_s = time.time() - time.perf_counter()
        rounded: list[Span] = [
            [span.phase, round(epoch_s + span.start_s, 4), round(span.end_s - span.start_s, 4)]
            for span in spans
        ]
        return [span for span in rounded if span[2]]

    def _note_span(self, name: str, start_s: float, end_s: float) -> None:
        """A decode step takes milliseconds and an event tells of a second, so what is short goes
        into its neighbour: a phase that goes on after a shorter pause of at most `MERGE_S` is one
        span, and two spans within `SHORT_S` are one, of the longer's phase."""
        for place in reversed(range(len(self._spans))):
            span = self._spans[place]
            pause_s = start_s - span.end_s
            if pause_s > MERGE_S:
                break
            if span.phase == name and pause_s <= span.end_s - span.start_s:
                del self._spans[place + 1 :]
                span.end_s = end_s
                return
        last = self._spans[-1] if self._spans else None
        if last is not None and end_s - last.start_s < SHORT_S:
            if end_s - start_s > last.end_s - last.start_s:
                last.phase = name
            last.end_s = end_s
        else:
            self._spans.append(_Span(name, start_s, end_s))


@dataclass(slots=True)
class _Span:
    """By this process's own clock."""

    phase: str
    start_s: float
    end_s: float
