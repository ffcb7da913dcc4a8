"""Going back to a commit, as the replay actor does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from replay.rollback import go_back
from replay.rules import Rules
from replay.state import ReplayState
from slipstream.records import Group, ReplaySnapshot


def gone_back(
    now: ReplayState,
    snapshot: ReplaySnapshot,
    rules: Rules,
    *,
    timeline: int,
    since: Sequence[Group] = (),
) -> ReplayState:
    """The state to go on from, after a commit was written and read."""
    read = replace(snapshot, state=json.loads(json.dumps(snapshot.state)))
    state, groups = go_back(now, read, rules, since=since, timeline=timeline)
    return ReplayState.restore(state, groups.__getitem__)
