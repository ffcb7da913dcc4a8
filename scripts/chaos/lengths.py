"""Do the answers that train stay as long as those that are generated, when roles are killed?

A system that loses prompts in flight loses the long ones most: the lengths of what trained show it.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from chaos.run import Run
from results import ROOT

from replay.journal import FILE_NAME, JournalReader

LONG_TAILED = ROOT / "scripts" / "bench" / "longtail.yaml"
SETTINGS = ("learner.num_steps=16", "checkpoint.every_steps=2")
KILLED = ("learner", "replay", "rollout")


def compare(runs: Path, chance: random.Random) -> dict[str, list[int]]:
    """Tokens of what trained in the long-tailed workload of the bench, calm and under kills."""
    out = ROOT / "runs" / "bench" / "longtail"
    if not (out / "model").exists():
        maker = ROOT / "scripts" / "bench" / "longtail.py"
        subprocess.run([sys.executable, str(maker), str(out)], check=True)
    calm, stormy = (
        Run(LONG_TAILED, runs / f"chaos-{name}", SETTINGS) for name in ("calm", "stormy")
    )
    calm.launch()
    calm.finish()
    stormy.launch()
    for role in KILLED:
        if not stormy.wait_for_steps(2):
            break
        assert stormy.strike(role, "kill", chance.randrange(8))
    stormy.finish()
    stormy.ledger()
    return {"calm": trained_lengths(calm), "stormy": trained_lengths(stormy)}


def trained_lengths(run: Run) -> list[int]:
    """Tokens of every answer that changed the weights that are left."""
    uses: dict[int, dict[int, int]] = {}  # version -> ordinal -> lease
    lease_of: dict[int, int] = {}
    lengths: dict[int, list[int]] = {}
    taken: dict[int, int] = {}
    with JournalReader(run.directory / FILE_NAME) as journal:
        for row in journal.rows():
            match row.kind:
                case "accepted":
                    lease_of[row.ordinal] = row.lease_id
                    lengths[row.lease_id] = row.data["num_tokens"]
                case "taken":
                    taken[row.ordinal] = lease_of[row.ordinal]
                case "trained":
                    uses[row.version], taken = taken, {}
                case "rollback":
                    uses = {v: batch for v, batch in uses.items() if v <= row.version}
                    taken = {}
                    lease_of |= {o: lease for o, lease, _ in row.state["buffered"]}
    leases = [lease for batch in uses.values() for lease in batch.values()]
    return [length for lease in leases for length in lengths[lease]]


def kolmogorov_smirnov(one: list[int], other: list[int]) -> float:
    """The largest distance between the two distribution functions."""
    values = sorted({*one, *other})
    shares = [
        [sum(x <= value for x in sample) / len(sample) for value in values]
        for sample in (one, other)
    ]
    return max(abs(a - b) for a, b in zip(*shares, strict=True))
