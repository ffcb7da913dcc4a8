"""The groups of one batch, or what it has to wait for. Pure.

A group sampled from version w may train at versions up to w + S: its *deadline*, with S the
bound `max_staleness`. A running lease counts with the version at which it was granted: what
comes of it is no older. B is `groups_per_batch`; *outstanding* is running or not yet trained.

*`on_stale: wait` never misses a deadline.* Let c(v, k) be the number of outstanding groups
with a deadline of at most v + k, at the time the batch of version v is fixed.
Claim: c(v, k) <= (k + 1) B, for k = 0..S. By induction over v:

  - k = S: admission lets at most (S + 1) B be outstanding.
  - k < S: c(v, k) counts what the step before had with a deadline of at most (v-1) + (k+1), as
    leases since its trained() have deadline v + S. Of c(v-1, k+1) <= (k+2) B groups its batch
    took enough to leave at most (k+1) B (`_demanded`, for k + 1). And what was leased while
    that batch trained (deadline v-1+S, only in k = S-1) fitted in S B with all the rest, as a
    batch under way counts as B in full in admission, however many of its groups are reused.

So c(v, 0) <= B: all that is due now fits in this batch, and the batch waits for what is due
and still running; likewise the demand, c(v, k) - k B, is at most B for every k. An ordinal
issued again, or a refill, gets the version of that moment, as a new lease does.

*Whole batches need no deadlines.* Call rank the place of an ordinal among the outstanding ones
and those to be issued again, lowest first. Admission keeps ranks under (S + 1) B at the lease, a
rank never grows (new ordinals are the highest), and each step lowers it by B: the group
trains at most S steps after its lease.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from replay.facts import Leased
from replay.rules import Rules
from replay.selection import Chosen, preferred
from replay.shelf import Buffered
from slipstream.records import Group, Wait


def choose(
    buffered: Mapping[int, Buffered],
    running: Collection[Leased],
    requeued: Collection[int],
    rules: Rules,
    version: int,
) -> list[Chosen] | Wait:
    """The groups for the step from `version`, by ascending ordinal.

    `buffered` by ordinal; `requeued` are the ordinals to be issued again.
    """
    if rules.whole_batches:
        return _lowest_ordinals(buffered, running, requeued, rules.groups_per_batch)
    chosen = _selected(list(buffered.values()), running, rules, version)
    if isinstance(chosen, Wait):
        return chosen
    return sorted(chosen, key=lambda choice: choice.entry.group.ordinal)


def _lowest_ordinals(
    buffered: Mapping[int, Buffered],
    running: Collection[Leased],
    requeued: Collection[int],
    size: int,
) -> list[Chosen] | Wait:
    """The `size` lowest ordinals that are not trained, once all of them are here."""
    unfinished = {leased.ordinal for leased in running} | set(requeued)
    here = {ordinal for ordinal, entry in buffered.items() if entry.uses == 0}
    lowest = sorted(unfinished | here)[:size]
    num_here = sum(ordinal in here for ordinal in lowest)
    if num_here < size:
        return Wait(reason=f"the batch's prompts: {num_here} of {size} are here")
    return [Chosen(buffered[ordinal]) for ordinal in lowest]


def _selected(
    candidates: list[Buffered], running: Collection[Leased], rules: Rules, version: int
) -> list[Chosen] | Wait:
    """As many of the oldest as their deadlines demand, then by policy.

    What is demanded, and unused groups that all fit, are certain to be in the batch: policy, and
    with it a draw, concerns the rest alone.

    Groups that have trained before (`max_uses`) only fill what unused ones leave, and never
    make a whole batch: a step without new data waits. Under `wait` they fill only while
    running prompts leave room: a step on fewer than B new groups brings the others as much
    nearer to their deadlines as a step on B does.
    """
    size = rules.groups_per_batch
    unused = [entry for entry in candidates if entry.uses == 0]
    if not unused or len(candidates) < size:
        return Wait(reason=f"groups: {len(candidates)} of {size} are here, {len(unused)} unused")
    must = _demanded(unused, running, rules, version) if rules.on_stale == "wait" else []
    if isinstance(must, Wait):
        return must
    taken = {entry.group.ordinal for entry in must}
    first = [entry for entry in unused if entry.group.ordinal not in taken]
    chosen = [Chosen(entry) for entry in must]
    chosen += preferred(first, size - len(chosen), rules, version)
    used = [entry for entry in candidates if entry.uses > 0]
    return chosen + preferred(used, size - len(chosen), rules, version)


def _demanded(
    unused: list[Buffered], running: Collection[Leased], rules: Rules, version: int
) -> list[Buffered] | Wait:
    """The fewest oldest groups that leave at most k B with a deadline of version + k, all k."""
    size, bound = rules.groups_per_batch, rules.max_staleness
    oldest_first = sorted(unused, key=lambda e: (e.group.oldest_version, e.group.ordinal))
    num_here_by_version = Counter(entry.group.oldest_version for entry in unused)
    num_running_by_version = Counter(leased.min_version for leased in running)
    num_demanded = 0
    for ahead in range(bound + 1):
        sampled_by = version + ahead - bound  # from these versions: deadline version + ahead
        num_here = _count_up_to(num_here_by_version, sampled_by)
        num_running = _count_up_to(num_running_by_version, sampled_by)
        demand = num_here + num_running - ahead * size
        if demand > num_here:
            return Wait(reason=f"{num_running} running prompts, due by version {version + ahead}")
        num_demanded = max(num_demanded, demand)
    assert num_demanded <= size, "admission bounds what is due"
    return oldest_first[:num_demanded]


def _count_up_to(count_by_version: Counter[int], version: int) -> int:
    return sum(count for sampled, count in count_by_version.items() if sampled <= version)


def all_rewards_equal(group: Group) -> bool:
    """Nothing to learn from, where advantages are relative to the group."""
    return len({rollout.reward for rollout in group.rollouts}) == 1
