"""Every issued ordinal is trained, dropped with a reason, or pending."""

from __future__ import annotations

import json

import pytest

from replay.ledger import Ledger
from slipstream.records import DropReason


def a_ledger() -> Ledger:
    """0 trained, 1 pending, 2 stale, 3 pending."""
    ledger = Ledger()
    assert [ledger.issue() for _ in range(4)] == [0, 1, 2, 3]
    ledger.trained(0)
    ledger.dropped(2, DropReason.STALE)
    return ledger


def test_an_ordinal_has_one_fate() -> None:
    ledger = a_ledger()
    ledger.check()
    assert list(ledger.pending) == [1, 3]
    assert ledger.counts == {"trained": 1, "stale": 1}
    assert ledger.drops() == {"stale": 1}


def test_the_frontier_is_the_lowest_pending_ordinal() -> None:
    ledger = a_ledger()
    assert ledger.frontier == 1
    ledger.trained(1)
    assert ledger.frontier == 3
    ledger.trained(3)
    assert ledger.frontier == 4 == ledger.num_issued


def test_an_ordinal_ends_once_and_only_after_it_was_issued() -> None:
    ledger = a_ledger()
    with pytest.raises(AssertionError, match="0 is not pending"):
        ledger.dropped(0, DropReason.STALE)
    with pytest.raises(AssertionError, match="4 is not pending"):
        ledger.trained(4)


def test_memory_follows_what_is_pending() -> None:
    ledger = Ledger()
    held_back = ledger.issue()
    for _ in range(1000):
        ledger.trained(ledger.issue())
    assert list(ledger.pending) == [held_back]


def test_restored_from_json() -> None:
    ledger = a_ledger()
    ledger.pending[3].num_leased = 2
    ledger.pending[3].num_failed = 1
    restored = Ledger.restore(json.loads(json.dumps(ledger.snapshot())))
    assert restored.num_issued == 4
    assert restored.pending == ledger.pending
    assert restored.counts == ledger.counts


def test_a_snapshot_that_lost_an_ordinal_is_refused() -> None:
    snapshot = a_ledger().snapshot()
    del snapshot["pending"]["3"]
    with pytest.raises(AssertionError, match="vanished"):
        Ledger.restore(snapshot)
