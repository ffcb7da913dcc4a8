"""vLLM's own metrics, handed to Ray, whose agent on this node shows them to Prometheus.

vLLM counts in this process, with Prometheus' own client. What it has counted is read once a second
and set as gauges of Ray, the buckets of histograms too: sums, counts and quantiles stay exact, and
the cost does not grow with the number of requests. (Ray's histograms, which vLLM can feed too, cost
a call for each value, here and once more in Ray's agent, which takes buckets apart into values.)
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from prometheus_client import REGISTRY
from ray.util.metrics import Gauge

PREFIX = "vllm:"
PERIOD_S = 1.0  # Ray drops a gauge that was not set for two of its reporting intervals


class Forgiving:
    """Within it no error counts: the first is logged, later ones are not even that.

    No metric is worth an answer, and vLLM's counters do raise at times, where its own figures of
    a step contradict each other: the next step's count again.
    """

    def __init__(self) -> None:
        self._has_failed = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, Exception) and not self._has_failed:
            self._has_failed = True
            text = "some metrics of this engine are missing (said once)"
            logging.getLogger(__name__).warning(text, exc_info=error)
        return isinstance(error, Exception)


class EngineMetrics:
    """Of this process, on a thread of their own: an engine that waits still says so."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join(timeout=PERIOD_S)

    def _run(self) -> None:
        forgiving = Forgiving()
        while not self._is_over.wait(PERIOD_S):
            with forgiving:
                self._hand_over()

    def _hand_over(self) -> None:
        for family in REGISTRY.collect():
            if not family.name.startswith(PREFIX):
                continue
            samples = [s for s in family.samples if not s.name.endswith("_created")]
            if family.type == "histogram" and not any(sample.value for sample in samples):
                continue  # nothing is counted there
            for sample in samples:
                self._gauge(sample, family.documentation).set(sample.value, sample.labels)

    def _gauge(self, sample: Any, text: str) -> Gauge:
        """Ray knows no colon in a name."""
        if sample.name not in self._gauges:
            name = sample.name.replace(":", "_")
            self._gauges[sample.name] = Gauge(name, text, tuple(sample.labels))
        return self._gauges[sample.name]
