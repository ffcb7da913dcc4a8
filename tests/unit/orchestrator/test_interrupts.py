from __future__ import annotations

import os
import signal

import pytest

from orchestrator.interrupts import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_leaves(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        interrupts.patient = True
        os.kill(os.getpid(), number)
        assert interrupts.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_start_up_is_left_at_once() -> None:
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    assert not interrupts.requested


def test_signals_can_be_taken_back_from_a_library() -> None:
    with Interrupts() as interrupts:
        interrupts.patient = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        interrupts.take()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.requested
