"""Hands a run's figures to Ray, whose agent on this node shows them to Prometheus.

Ray's own processes send a gauge only in the interval in which it was set, so that each is set
again at every tick; one that is set no more is gone after two intervals. Whatever fails here is
said once, and the run goes on without metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.util import metrics as ray_metrics

from orchestrator.metrics.catalog import LAG, METRICS, PREFIX, Metric
from orchestrator.metrics.figures import Figures
from orchestrator.run_state import RunState
from orchestrator.status import RoleStatus


class Exporter:
    """Of one run, in its driver, connected to Ray. `say` tells the user."""

    def __init__(self, run: str, say: Callable[[str], None], *, is_on: bool = True) -> None:
        self._run = run
        self._say = say
        self._is_on = is_on
        self._figures = Figures()
        self._exported: dict[Metric, Any] = {}

    def hear(self, event: Mapping[str, Any]) -> None:
        """One event of any role."""
        self._guarded(lambda: self._figures.hear(event))

    def tick(self, state: RunState, roles: Sequence[RoleStatus]) -> None:
        """Hand over what is known now."""
        self._guarded(lambda: self._export(state, roles))

    def _guarded(self, work: Callable[[], None]) -> None:
        if not self._is_on:
            return
        try:
            work()
        except Exception as error:  # of any kind: no metric is worth a run
            self._is_on = False
            self._say(f"no metrics any more: {type(error).__name__}: {error}")

    def _export(self, state: RunState, roles: Sequence[RoleStatus]) -> None:
        self._exported = self._exported or {metric: _made(metric) for metric in METRICS}
        self._figures.look(state, roles)
        for (metric, tags), value in self._figures.gauges.items():
            self._exported[metric].set(value, tags=self._named(metric, tags))
        for lag, num_groups in self._figures.take_lags().items():
            for _ in range(num_groups):
                self._exported[LAG].observe(lag, tags=self._named(LAG, ()))

    def _named(self, metric: Metric, tags: tuple[str, ...]) -> dict[str, str]:
        return {"run": self._run, **dict(zip(metric.tags, tags, strict=True))}


def _made(metric: Metric) -> Any:
    name, tag_keys = PREFIX + metric.name, ("run", *metric.tags)
    if metric.kind == "histogram":
        boundaries = list(metric.boundaries)
        return ray_metrics.Histogram(name, metric.help, boundaries, tag_keys)
    return ray_metrics.Gauge(name, metric.help, tag_keys)
