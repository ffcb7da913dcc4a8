"""What `autoscale` decides by, gathered from the roles' events. Pure: times are passed in.

step  {wait, train, ...} ─▶ share of the learner's time without a batch
busy  {wait, ...} ────────▶ share of the workers' time without a prompt
replay's statistics ──────▶ share of the staleness budget that is buffered
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from orchestrator.autoscale import Figures, Memory, target
from slipstream.config.job import JobConfig

WINDOW_S = 10.0  # over which shares are means


class Scaling:
    """Of one job with `rollout.autoscale`."""

    def __init__(self, job: JobConfig, now_s: float) -> None:
        assert job.rollout.autoscale is not None
        self._settings = job.rollout.autoscale
        self._budget = (job.replay.max_staleness + 1) * job.learner.groups_per_batch
        self._memory = Memory(changed_at_s=now_s)
        self._since_s = now_s
        self._seconds: dict[str, Counter[str]] = {"rollout": Counter(), "learner": Counter()}
        self._num_steps = 0

    def hear(self, event: Mapping[str, Any]) -> None:
        """An event of a role."""
        if event["kind"] in ("step", "busy"):
            self._seconds[event["role"]].update(event["seconds"])
            self._num_steps += event["kind"] == "step"

    def target(self, num_now: int, replay: Mapping[str, Any], now_s: float) -> int:
        """How many workers to have from now on, where there are to be `num_now` so far."""
        if now_s - self._since_s < WINDOW_S or self._num_steps == 0:
            return num_now
        figures = Figures(
            at_s=now_s,
            queue_share=replay.get("num_buffered", 0) / self._budget,
            learner_wait_share=self._waited("learner"),
            held_back_share=self._waited("rollout"),
        )
        num, self._memory = target(num_now, figures, self._settings, self._memory)
        self._since_s, self._num_steps = now_s, 0
        for seconds in self._seconds.values():
            seconds.clear()
        return num

    def _waited(self, role: str) -> float:
        seconds = self._seconds[role]
        return seconds["wait"] / max(1e-9, sum(seconds.values()))
