"""Held-out evaluations: which are wanted, who was asked for each, which are under way. Pure.

A worker that leaves or dies before it has answered is forgotten, and another one is asked; it
answers with the newest weights it has. What workers die of again and again is given up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

MAX_DEATHS = 3  # of workers in the midst of it: its prompts may be what kills them


class Evaluations:
    """`ask(version)` asks a worker and gives its name, or None where none can be asked now."""

    def __init__(self, ask: Callable[[int], str | None]) -> None:
        self._ask = ask
        self._wanted: dict[int, str | None] = {}  # by version: who was asked
        self._ever: set[int] = set()  # wanted, of weights that are not gone
        self._deaths: Counter[int] = Counter()  # by version
        self._last: int | None = None  # the newest weights that will ever be

    def want(self, version: int) -> None:
        """Of the weights of `version`, once. Best before there are such weights: the worker then
        takes no newer ones first."""
        if self._last is not None and version > self._last:
            return
        if version > max(self._ever, default=-1):
            self._ever.add(version)
            self._wanted[version] = None

    def heard(self, event: Mapping[str, Any]) -> None:
        """An `eval` event, of weights that are not gone."""
        self._wanted = {v: who for v, who in self._wanted.items() if v > event["version"]}

    def missed(self, worker: str) -> None:
        """What `worker` was asked for it has done with weights that are gone."""
        for version, who in self._wanted.items():
            if who is not None and who.startswith(f"{worker} "):
                self._wanted[version] = None

    def died(self, worker: str, version: int) -> list[int]:
        """`worker` did so while it evaluated `version`. Returns what is wanted no more."""
        for wanted in [v for v, who in self._wanted.items() if who == worker and v <= version]:
            self._deaths[wanted] += 1
        given_up = [v for v in self._wanted if self._deaths[v] >= MAX_DEATHS]
        for wanted in given_up:
            del self._wanted[wanted]
        return given_up

    def forget_after(self, version: int) -> None:
        """Newer weights are gone, or will never be."""
        self._ever = {v for v in self._ever if v <= version}
        self._deaths = Counter({v: n for v, n in self._deaths.items() if v <= version})
        self._wanted = {v: who for v, who in self._wanted.items() if v <= version}

    def finish(self, version: int) -> None:
        """Want the weights of `version`, the last ones, and none that would come after them."""
        self.forget_after(version)
        self.want(version)
        self._last = version

    def tick(self, present: Collection[str]) -> None:
        """Ask for what nobody `present` was asked for."""
        for version, who in self._wanted.items():
            if who not in present:
                self._wanted[version] = self._ask(version)

    @property
    def is_done(self) -> bool:
        return not self._wanted


class UnderWay:
    """The evaluations that workers have begun and not ended."""

    def __init__(self) -> None:
        self.versions: dict[int, int] = {}  # by the worker's index
        self.worked_at_s = 0.0  # when one of them last got on, since the epoch

    def heard(self, event: Mapping[str, Any]) -> None:
        match event["kind"]:
            case "eval_started":
                self.versions[event["index"]] = event["version"]
                self.worked_at_s = max(self.worked_at_s, event["time_s"])
            case "busy" if event["index"] in self.versions and event["num_tokens"]:
                self.worked_at_s = max(self.worked_at_s, event["time_s"])
            case "eval" | "eval_dropped" | "worker_died" | "worker_left":
                self.versions.pop(event["index"], None)
