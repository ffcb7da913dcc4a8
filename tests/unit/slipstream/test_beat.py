"""How a role says what it does, in Ray's dashboard and logs."""

from __future__ import annotations

from slipstream.telemetry import Beat


def test_a_beat_is_told_as_version_and_state() -> None:
    assert str(Beat(timeline=0, version=-1, phase="wait", phase_s=1.0)) == "wait"
    assert str(Beat(timeline=1, version=17, phase="generate", phase_s=0.1)) == "v17 generate"
    leaving = Beat(timeline=1, version=17, phase="generate", phase_s=0.1, leaving=True)
    assert str(leaving) == "v17 leaving"
