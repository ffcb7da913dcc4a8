"""Whether the engine still makes tokens. One that has nothing to do makes one of a probe.

A prompt of one token fills no cache block, and the probe runs alone and greedily: it draws no
random number, so that rollouts are the same with and without it.
"""

from __future__ import annotations

import time

import numpy as np

from rollout_worker.engine import GREEDY, Engine, GenerationRequest

PROBE = GenerationRequest(
    request_id="probe",
    prompt_token_ids=np.zeros(1, dtype=np.int32),
    max_new_tokens=1,
    temperature=GREEDY,
    top_p=1.0,
    seed=0,
)


class Pulse:
    """Of one engine; stands still until its first weights, and while it sleeps."""

    def __init__(self, engine: Engine, every_s: float) -> None:
        self._engine = engine
        self._every_s = every_s
        self._num_tokens = engine.num_tokens
        self._token_at_s: float | None = None

    @property
    def token_s(self) -> float | None:
        """Seconds since a token, or since new weights; None while it stands still."""
        token_at_s = self._token_at_s  # read once: other threads ask too
        return None if token_at_s is None else time.monotonic() - token_at_s

    @property
    def probe_due(self) -> bool:
        """Whether the engine is idle and has not shown for long that it generates."""
        token_s = self.token_s
        return token_s is not None and token_s >= self._every_s and not self._engine.num_running

    def restart(self) -> None:
        """The engine has made a token, or has new weights."""
        self._num_tokens = self._engine.num_tokens
        self._token_at_s = time.monotonic()

    def stop(self) -> None:
        """The engine sleeps."""
        self._token_at_s = None

    def note(self) -> None:
        """After a step: it counts only where it made a token."""
        if self._engine.num_tokens > self._num_tokens:
            self.restart()

    def probe(self) -> None:
        """Have the idle engine make a token; comes back only once it has."""
        self._engine.submit(PROBE)
        while self._engine.num_running:
            self._engine.step()
        self.note()
