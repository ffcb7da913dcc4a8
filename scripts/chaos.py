"""`make chaos`: kills every role at random moments and asks the ledger; writes
docs/results/chaos.md.

    python scripts/chaos.py [--kills N] [--steps N] [--runs DIRECTORY] [--no-page]

*Kills.* The arithmetic example in `buffered` mode. Learner, replay, rollout worker and driver are
killed (SIGKILL) in turn, each a random while after the last kill's damage was mended. A learner
and replay come back within the job; after the others the job is launched again with --resume.
After every kill, and at the end, `slipstream ledger` must find the promise unbroken.

*Lengths.* The long-tailed workload of the bench, once without a kill and once with three. A system
that loses prompts in flight loses the long ones most: the lengths of what trained show it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from results import ROOT, signature, table, write

from replay.journal import FILE_NAME, JournalReader

ROLES = {
    "learner": "ray::LearnerRank",
    "replay": "ray::ReplayActor",
    "rollout": "ray::RolloutWorkerActor",
    "driver": "orchestrator.cli",
}
ARITHMETIC = ROOT / "examples" / "arithmetic" / "buffered.yaml"
LONG_TAILED = ROOT / "scripts" / "bench" / "longtail.yaml"
MENDED_S, WHOLE_S = 240.0, 1500.0


@dataclass(slots=True)
class Run:
    """One run over as many launches as it takes."""

    file: Path
    directory: Path
    settings: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    num_launches: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    mended_s: dict[str, list[float]] = field(default_factory=dict)  # kill -> next step, by role
    num_orphans: int = 0  # processes that outlived a killed driver by 30 s

    def launch(self) -> None:
        how = "--resume" if self.num_launches else "--overwrite"
        if not self.num_launches:
            shutil.rmtree(self.directory, ignore_errors=True)  # also its count of steps
        command = [sys.executable, "-m", "orchestrator.cli", "launch", str(self.file), how]
        directory = f"checkpoint.dir={self.directory.parent}"
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        log = self.directory.with_suffix(".log").open("ab")
        self.process = subprocess.Popen(
            [*command, f"name={self.directory.name}", directory, *self.settings],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts' / 'bench'}"},
            stdout=log,
            stderr=log,
        )
        self.num_launches += 1

    def steps(self) -> int:
        """Learner steps so far, also those that were undone."""
        file = self.directory / "metrics.jsonl"
        return file.read_text().count('"kind": "step"') if file.exists() else 0

    def wait_for_steps(self, num_more: int) -> bool:
        """Whether so many more were made; False where the job ended before."""
        assert self.process is not None
        goal, deadline_s = self.steps() + num_more, time.monotonic() + MENDED_S
        while self.steps() < goal:
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline_s, f"no step for {MENDED_S:.0f} s"
            time.sleep(0.1)
        return True

    def kill(self, role: str) -> None:
        """Kill it, and mend what does not mend itself."""
        assert self.process is not None
        family = [self.process_tree(), *self.process_tree().children(recursive=True)]
        pids = [p for p in family if ROLES[role] in _title(p)]
        killed_s = time.monotonic()
        for process in pids[:1]:
            process.kill()
        assert pids, f"no process of {role}"
        self.kills[role] += 1
        if role in ("driver", "rollout"):
            self.process.wait(timeout=120)
            self._wait_for_orphans(family)
            self.launch()
        if self.wait_for_steps(1):
            self.mended_s.setdefault(role, []).append(time.monotonic() - killed_s)

    def process_tree(self) -> psutil.Process:
        assert self.process is not None
        return psutil.Process(self.process.pid)

    def _wait_for_orphans(self, family: list[psutil.Process]) -> None:
        _, alive = psutil.wait_procs(family, timeout=30)
        self.num_orphans += len(alive)
        for process in alive:
            process.kill()

    def finish(self) -> None:
        """To the end; a worker whose death came late ends the launch, and another one goes on."""
        assert self.process is not None
        while self.process.wait(timeout=WHOLE_S) != 0:
            assert self.num_launches < 50
            self.launch()

    def ledger(self) -> dict[str, Any]:
        """What `slipstream ledger` says. Its exit code is the verdict."""
        command = [sys.executable, "-m", "orchestrator.cli", "ledger", str(self.directory)]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def trained_lengths(self) -> list[int]:
        """Tokens of every answer that changed the weights that are left."""
        uses: dict[int, dict[int, int]] = {}  # version -> ordinal -> lease
        lease_of: dict[int, int] = {}
        lengths: dict[int, list[int]] = {}
        taken: dict[int, int] = {}
        with JournalReader(self.directory / FILE_NAME) as journal:
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


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill_in_turn(run: Run, num_kills: int, chance: random.Random) -> None:
    """Launch, kill, mend, and so on; then let it come to its end."""
    roles = list(ROLES)
    run.launch()
    assert run.wait_for_steps(2)
    for number in range(num_kills):
        time.sleep(chance.uniform(0, 1.5))
        role = roles[number % len(roles)]
        print(f"{run.directory.name}: {run.steps()} steps, killing {role}", flush=True)
        run.kill(role)
        run.ledger()
    run.finish()


def kolmogorov_smirnov(one: list[int], other: list[int]) -> float:
    """The largest distance between the two distribution functions."""
    values = sorted({*one, *other})
    shares = [
        [sum(x <= value for x in sample) / len(sample) for value in values]
        for sample in (one, other)
    ]
    return max(abs(a - b) for a, b in zip(*shares, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--no-page", action="store_true", help="kills only, and write nothing")
    options = parser.parse_args()
    chance = random.Random(0)
    settings = (
        f"learner.num_steps={options.steps}",
        *("checkpoint.every_steps=5", "data.eval_num_prompts=20", "data.eval_every_steps=0"),
        "learner.warmup_steps=0",
    )
    run = Run(ARITHMETIC, options.runs / "chaos", settings)
    kill_in_turn(run, options.kills, chance)
    figures = {
        "kills": dict(run.kills),
        "launches": run.num_launches,
        "mended_s": run.mended_s,
        "orphans": run.num_orphans,
        "ledger": run.ledger(),
    }
    print(json.dumps(figures, indent=1))
    if options.no_page:
        return
    out = ROOT / "runs" / "bench" / "longtail"
    if not (out / "model").exists():
        maker = ROOT / "scripts" / "bench" / "longtail.py"
        subprocess.run([sys.executable, str(maker), str(out)], check=True)
    settings = ("learner.num_steps=16", "checkpoint.every_steps=2")
    calm, stormy = (
        Run(LONG_TAILED, options.runs / f"chaos-{name}", settings) for name in ("calm", "stormy")
    )
    calm.launch()
    calm.finish()
    kill_in_turn(stormy, 3, chance)
    figures["lengths"] = lengths = {
        "calm": calm.trained_lengths(),
        "stormy": stormy.trained_lengths(),
    }
    figures["stormy_ledger"] = stormy.ledger()
    write("chaos", page(figures, lengths), figures)


def page(figures: dict[str, Any], lengths: dict[str, list[int]]) -> str:
    mended = figures["mended_s"]
    rows = [
        [role, str(count), f"{min(mended[role]):.0f} to {max(mended[role]):.0f} s"]
        for role, count in figures["kills"].items()
    ]
    means = {name: sum(found) / len(found) for name, found in lengths.items()}
    distance = kolmogorov_smirnov(lengths["calm"], lengths["stormy"])
    smaller = min(len(found) for found in lengths.values())
    bound = 1.36 * (2 / smaller) ** 0.5
    return "\n".join(
        [
            "# Roles killed at random moments",
            "",
            signature("make chaos"),
            f"`{ARITHMETIC.relative_to(ROOT)}`, a commit every 5 steps. After each kill and at the "
            "end `slipstream ledger` found every prompt trained once, dropped with a reason, or "
            "pending.",
            "",
            table(["killed with SIGKILL", "times", "until the next learner step"], rows),
            "",
            f"{figures['launches']} launches. Processes that outlived a killed driver or job by "
            f"30 s: {figures['orphans']}.",
            "",
            "## Lengths of what trained",
            "",
            f"`{LONG_TAILED.relative_to(ROOT)}` without a kill and with three (learner, replay, "
            f"rollout worker): mean length of the trained answers {means['calm']:.1f} and "
            f"{means['stormy']:.1f} tokens ({len(lengths['calm'])} and {len(lengths['stormy'])} "
            f"answers), Kolmogorov-Smirnov distance {distance:.4f} (two samples of one "
            f"distribution are below {bound:.4f} in 95% of cases).",
            "",
        ]
    )


if __name__ == "__main__":
    main()
