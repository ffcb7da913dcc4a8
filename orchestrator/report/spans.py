"""When a role was in a phase, by the million, and what share of each bin of time that is. Pure."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(slots=True)
class Spans:
    """The stretches of one phase of one role. Times are seconds since the epoch.

    `shares` is 1 where the stretch was spent in the phase as a whole; less where only its part of
    a longer stretch is known.
    """

    starts_s: array[float] = field(default_factory=lambda: array("d"))
    lengths_s: array[float] = field(default_factory=lambda: array("d"))
    shares: array[float] = field(default_factory=lambda: array("d"))

    def add(self, start_s: float, length_s: float, share: float = 1.0) -> None:
        self.starts_s.append(start_s)
        self.lengths_s.append(length_s)
        self.shares.append(share)

    @property
    def is_exact(self) -> bool:
        return all(share == 1.0 for share in self.shares)

    @property
    def total_s(self) -> float:
        return float(np.dot(self.lengths_s, self.shares)) if self.shares else 0.0

    def within(self, from_s: float, until_s: float) -> list[tuple[float, float]]:
        """(start, length) of what overlaps the window, cut to it."""
        starts = np.asarray(self.starts_s)
        ends = starts + np.asarray(self.lengths_s)
        inside = (ends > from_s) & (starts < until_s)
        cut_starts = np.maximum(starts[inside], from_s)
        lengths = np.minimum(ends[inside], until_s) - cut_starts
        return list(zip(cut_starts.tolist(), lengths.tolist(), strict=True))

    def share_of(self, edges_s: Floats) -> Floats:
        """The share of each bin between two neighbouring edges that was spent in the phase."""
        if not self.shares:
            return np.zeros(len(edges_s) - 1)
        starts, shares = np.asarray(self.starts_s), np.asarray(self.shares)
        ends = starts + np.asarray(self.lengths_s)
        passed = _since(edges_s, starts, shares) - _since(edges_s, ends, shares)
        return np.diff(passed) / np.diff(edges_s)


def _since(edges: Floats, times: Floats, shares: Floats) -> Floats:
    """At each edge, the sum over all times before it of share x (edge - time)."""
    order = np.argsort(times, kind="stable")
    times, shares = times[order], shares[order]
    base = times[0]  # sums of epoch seconds would lose the milliseconds
    weights = np.concatenate(([0.0], np.cumsum(shares)))
    moments = np.concatenate(([0.0], np.cumsum(shares * (times - base))))
    num_before = np.searchsorted(times, edges, side="left")
    found: Floats = weights[num_before] * (edges - base) - moments[num_before]
    return found
