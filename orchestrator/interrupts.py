"""Ctrl-C and SIGTERM: the first asks for an orderly end, the second leaves at once."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While entered, notes the signals instead of dying of them.

    `patient` says whether an orderly end is possible yet: until it is set, the first
    signal already raises KeyboardInterrupt, so that a start-up can be left.
    """

    def __init__(self) -> None:
        self.requested = False
        self.patient = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in SIGNALS:
            self._before[number] = signal.getsignal(number)
        self.take()
        return self

    def take(self) -> None:
        """Take the signals, again where a library has taken them meanwhile, as ray.init does."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested or not self.patient:
            raise KeyboardInterrupt
        self.requested = True
