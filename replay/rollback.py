"""Going back to a commit: which groups come along. Pure functions of snapshots.

A commit holds replay at a step boundary, version v. All that happened since is undone: what got
its fate is pending again, what was issued stays issued. Groups that came since can train after
all, if every token of theirs is from version v or before (those weights are the same as ever)
and the staleness bound still allows them. All others are issued again, in the order of their
ordinals and with the seeds that they had at v. What engines have died of stays known.

What the bound promises holds on: the groups that come along were outstanding before version
v + 1, so admission had counted them. And of the pending prompts, those come first that admission
would let in now: a prompt that waits to be issued again always finds room.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from replay.choosing import all_rewards_equal
from replay.rules import Rules
from replay.state import ReplayState
from replay.tally import Tally
from slipstream.codec import decode
from slipstream.records import Group, ReplaySnapshot


def go_back(
    now: ReplayState,
    commit: ReplaySnapshot,
    rules: Rules,
    *,
    since: Iterable[Group],
    timeline: int,
) -> tuple[dict[str, Any], dict[int, Group]]:
    """The snapshot to go on from, and its buffered groups by lease id.

    `since`: groups accepted later than the commit. `timeline` is the one that begins. Ordinals and
    leases are numbered on from `now`.
    """
    state = copy.deepcopy(dict(commit.state))
    version, ledger, tally = state["version"], state["ledger"], Tally.restore(state["tally"])
    for ordinal in range(ledger["num_issued"], now.ledger.num_issued):
        ledger["pending"][str(ordinal)] = [0, 0]
    ledger["num_issued"] = max(ledger["num_issued"], now.ledger.num_issued)
    pending = sorted(int(ordinal) for ordinal in ledger["pending"])
    admitted = set(pending[: rules.budget(version)])
    uses = {ordinal: uses for ordinal, _, uses in state["buffered"]}
    groups = {ordinal: decode(data) for ordinal, data in commit.groups.items()}
    kept = {
        ordinal: group
        for ordinal, group in groups.items()
        if (ordinal in admitted or 0 < uses[ordinal] < rules.max_uses)
        and _may_train(group, version, rules)
    }
    for group in since:
        is_needed = group.ordinal in admitted and group.ordinal not in kept
        if is_needed and group.newest_version <= version and _may_train(group, version, rules):
            kept[group.ordinal] = group
    if rules.on_stale == "wait":
        kept = _within_deadlines(kept, uses, version, rules)
    for group in kept.values():
        if group.ordinal not in groups:
            tally.generated(group)
    tally.reissues["went_back"] += len(set(pending) - set(kept))
    kills = {**dict(state.get("kills", [])), **now.kills}
    state.pop("journal", None)
    state |= {
        "timeline": timeline,
        "next_lease_id": max(state["next_lease_id"], now.next_lease_id),
        "num_taken": max(state.get("num_taken", 0), now.num_taken),
        "tally": tally.snapshot(),
        "lost": dict(now.lost),
        "kills": [[ordinal, num] for ordinal, num in kills.items() if ordinal not in kept],
        "running": [],
        "ended": [],
        "stop": None,
        "buffered": [
            [ordinal, group.lease_id, uses.get(ordinal, 0)] for ordinal, group in kept.items()
        ],
    }
    return state, {group.lease_id: group for group in kept.values()}


def _within_deadlines(
    kept: Mapping[int, Group], uses: Mapping[int, int], version: int, rules: Rules
) -> dict[int, Group]:
    """Those that can all train in time (`choosing`): at most (k + 1) B with a deadline of
    version + k. The rules of the commit saw to that; today's can be others."""
    taken: dict[int, Group] = {}
    num_unused = 0
    for group in sorted(kept.values(), key=lambda g: (g.oldest_version, g.ordinal)):
        ahead = group.oldest_version + rules.max_staleness - version
        if uses.get(group.ordinal, 0) == 0:
            if num_unused >= (ahead + 1) * rules.groups_per_batch:
                continue
            num_unused += 1
        taken[group.ordinal] = group
    return taken


def _may_train(group: Group, version: int, rules: Rules) -> bool:
    """As the rules are now, which can differ from those of the commit."""
    if rules.dynamic_sampling and all_rewards_equal(group):
        return False
    is_fresh = version - group.oldest_version <= rules.max_staleness
    return len(group.rollouts) == rules.group_size and (is_fresh or rules.on_stale == "clip")
