"""What the replay process asks of its journal, off its own thread.

    facts as they come ─▶ write ─▶ journal     restore ◀─ journal, after the process died
    snapshot ─▶ keep_commit ... forget_before   groups_since, keep_rollback: to go back

With `replay.durability: off` there is no journal: nothing is kept, and nothing can be restored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from replay.facts import Fact
from replay.journal import Journal
from replay.journal_writer import JournalWriter
from replay.rules import Rules
from replay.state import ReplayState
from slipstream.config.job import Durability
from slipstream.records import Group

T = TypeVar("T")


class Keeper:
    """One journal and the thread that writes it. Every method raises JournalError.

    What is asked for is queued at the call, and not only when its answer is awaited: the journal
    has everything in the order of the calls.
    """

    def __init__(self, path: Path, *, job: str, durability: Durability, rules: Rules) -> None:
        bound = None if rules.on_stale == "clip" else rules.max_staleness
        # What the audit holds the history to, from here on.
        self._promise = {
            "max_uses": rules.max_uses,
            "max_staleness": bound,
            "max_kills": rules.max_kills,
        }
        self._journal: Journal | None = None
        if durability != "off":
            self._journal = Journal(path, job=job, durability=durability)
            self._id = self._journal.id
            self._writer = JournalWriter(self._journal)

    def restore(self) -> ReplayState | None:
        """As it was when the last answer was given; None where nothing has happened yet."""
        journal = self._journal
        if journal is None:
            return None
        latest = journal.latest()
        if latest is None:
            begin = {**ReplayState().snapshot(), "promise": self._promise}
            journal.snapshot("begin", version=0, timeline=0, state=begin)
            return None
        state = ReplayState.restore(latest.state, journal.group_of)
        for fact in latest.facts:
            state.apply(fact)
        return state

    def write(self, facts: Sequence[Fact]) -> Awaitable[object]:
        """Done once they, and all before them, are as durable as the job asks."""
        if self._journal is None:
            return _done()
        return self._writer.write(facts)

    def keep_commit(self, state: Mapping[str, Any]) -> Awaitable[dict[str, Any]]:
        """The place of a step boundary in the journal, to be put into its commit."""
        journal = self._journal
        if journal is None:
            return _done({})

        def write() -> dict[str, Any]:
            version, timeline = state["version"], state["timeline"]
            seq = journal.snapshot("commit", version=version, timeline=timeline, state=state)
            return {"id": self._id, "seq": seq}

        return self._writer.do(write)

    def forget_before(
        self, place: Mapping[str, Any], live_lease_ids: Collection[int]
    ) -> Awaitable[object]:
        """The commit of this place is durable: nothing goes back behind it."""
        if self._journal is None:
            return _done()
        return self._writer.do(partial(self._journal.prune, place["seq"], live_lease_ids))

    def groups_since(
        self, place: Mapping[str, Any], version: int, timeline: int
    ) -> Awaitable[list[Group] | None]:
        """Accepted later than the commit of this place, no token of a newer version than the
        commit's; None where the place is none of this journal's, but of one that was lost."""
        journal = self._journal
        if journal is None or place.get("id") != self._id:
            return _done(None)
        seq = place["seq"]

        def read() -> list[Group] | None:
            if not journal.is_commit(seq, version=version, timeline=timeline):
                return None
            return list(journal.candidates(since_seq=seq, max_version=version))

        return self._writer.do(read)

    def keep_rollback(
        self, state: Mapping[str, Any], groups: Collection[Group]
    ) -> Awaitable[object]:
        """The run goes on from `state`, with these groups buffered."""
        if self._journal is None:
            return _done()
        return self._writer.do(
            partial(
                self._journal.snapshot,
                "rollback",
                version=state["version"],
                timeline=state["timeline"],
                state={**state, "promise": self._promise},
                groups=groups,
            )
        )


async def _done(value: T = None) -> T:  # type: ignore[assignment]
    return value
