from __future__ import annotations

import pytest
from telemetry_cost import SKIPPED_STEPS, cost_of, rate_of


def test_the_rate_is_of_the_steps_after_the_start() -> None:
    slow = [{"time_s": 10.0 * i, "num_groups": 4} for i in range(SKIPPED_STEPS)]
    since_s = 1000.0
    steady = [{"time_s": since_s + 0.5 * i, "num_groups": 4} for i in range(11)]
    assert rate_of([*slow, *steady]) == 8.0


def test_the_cost_is_the_share_that_is_lost() -> None:
    found = cost_of([0.97, 0.99])
    assert found["cost"] == pytest.approx(0.02, abs=1e-4)
    assert found["standard_error"] == pytest.approx(0.0102, abs=1e-4)
    assert cost_of([1.25, 0.8])["cost"] == pytest.approx(0.0)
