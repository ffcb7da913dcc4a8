"""What vLLM counts is what Ray is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rollout_worker import engine_metrics
from rollout_worker.engine_metrics import EngineMetrics

Sent = dict[tuple[str, tuple[tuple[str, str], ...]], float]

ENGINE = (("model_name", "run/rollout-0"),)


class Metrics:
    """As vLLM makes them, in a registry of the test's own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        label = ["model_name"]
        self.tokens = Counter("vllm:generation_tokens", "tokens", label, registry=registry)
        self.running = Gauge("vllm:num_requests_running", "running", label, registry=registry)
        self.latency = Histogram(
            "vllm:latency_seconds", "s", label, buckets=(0.5, 1.0), registry=registry
        )
        self.unused = Histogram("vllm:unused", "never", label, registry=registry)
        self.others = Gauge("python_info", "not vLLM's", label, registry=registry)
        for metric in (self.tokens, self.running, self.latency, self.unused, self.others):
            metric.labels("run/rollout-0")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What Ray was told last, by name and tags."""
    values: Sent = {}

    class RaysGauge:
        def __init__(self, name: str, text: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.tag_keys = name, tag_keys

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert tuple(tags) == self.tag_keys
            values[self.name, tuple(tags.items())] = value

    monkeypatch.setattr(engine_metrics, "Gauge", RaysGauge)
    monkeypatch.setattr(engine_metrics, "PERIOD_S", 0.01)
    return values


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, sent: Sent) -> Iterator[Metrics]:
    registry = CollectorRegistry()
    monkeypatch.setattr(engine_metrics, "REGISTRY", registry)
    metrics = Metrics(registry)
    metrics.tokens.labels("run/rollout-0").inc(7)
    metrics.running.labels("run/rollout-0").set(3)
    for seconds in (0.1, 0.2, 0.7, 30.0):
        metrics.latency.labels("run/rollout-0").observe(seconds)
    exported = EngineMetrics()
    yield metrics
    exported.close()


def wait_until(holds: Any) -> None:
    for _ in range(500):
        if holds():
            return
        engine_metrics.threading.Event().wait(0.01)
    pytest.fail("it never came")


def test_counters_gauges_and_buckets_arrive_as_they_are(counted: Metrics, sent: Sent) -> None:
    name = "vllm_latency_seconds"
    wait_until(lambda: (f"{name}_sum", ENGINE) in sent)
    assert sent == {
        ("vllm_generation_tokens_total", ENGINE): 7,
        ("vllm_num_requests_running", ENGINE): 3,
        (f"{name}_bucket", (*ENGINE, ("le", "0.5"))): 2,
        (f"{name}_bucket", (*ENGINE, ("le", "1.0"))): 3,
        (f"{name}_bucket", (*ENGINE, ("le", "+Inf"))): 4,
        (f"{name}_count", ENGINE): 4,
        (f"{name}_sum", ENGINE): pytest.approx(31.0),
    }


def test_an_engine_that_waits_goes_on_saying_so(counted: Metrics, sent: Sent) -> None:
    running = ("vllm_num_requests_running", ENGINE)
    wait_until(lambda: sent.get(running) == 3)
    counted.running.labels("run/rollout-0").set(0)
    wait_until(lambda: sent.get(running) == 0)
    sent.clear()  # no step of the engine since, and yet
    wait_until(lambda: sent.get(running) == 0)


def test_metrics_that_fail_are_said_once_and_come_again(
    counted: Metrics, sent: Sent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failed = 0

    def fails(*_: object) -> None:
        nonlocal failed
        failed += 1
        raise ValueError("no such tag")

    with monkeypatch.context() as broken:
        broken.setattr(EngineMetrics, "_gauge", fails)
        wait_until(lambda: failed >= 3)
    sent.clear()
    wait_until(lambda: sent)
    assert caplog.text.count("some metrics of this engine are missing") == 1
