"""`make chaos`: roles killed, stopped and starved while a job trains; writes docs/results/chaos.md.

    python -m chaos [--only NAME] [--runs DIRECTORY] [--steps N] [--seed N]

    storm    a strike every 2 to 5 s, at any role but the driver, with any weapon
    paced    a kill every 20 steps, each role in turn: goodput
    real     vLLM instead of the scripted engine; kills each role in turn, the driver too
    lengths  the long-tailed workload of the bench, calm and under kills

`storm` and `paced` run with the scripted engine, on more logical CPUs than the machine has. After
every strike of `real` and at the end of each run `slipstream ledger` must find the promise
unbroken, and nothing may be left behind: no process, no shared memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from chaos import lengths
from chaos.page import page
from chaos.recovery import recoveries
from chaos.run import How, Run
from results import ROOT, signature, write

ARITHMETIC = ROOT / "examples" / "arithmetic" / "buffered.yaml"
COMMON = (
    *("checkpoint.every_steps=5", "learner.warmup_steps=0", "replay.max_staleness=3"),
    *("learner.max_restarts=100", "rollout.max_restarts=100", "data.eval=null"),
)
SCRIPTED = (
    *COMMON,
    *("rollout.engine=scripted", "weights.probe=false", "rollout.num_workers=2"),
    # Of a small step, so that the training itself takes little of the time.
    *("learner.groups_per_batch=8", "rollout.quorum=1"),
)
STRUCK = ("learner", "replay", "weights", "rollout")
PAUSES_S = (2.0, 5.0)
STEPS_A_KILL = 20


def storm(run: Run, chance: random.Random) -> None:
    """Until the job is done."""
    run.launch()
    assert run.wait_for_steps(2)
    while not run.has_ended:
        run.strike(chance.choice(STRUCK), chance.choice(get_args(How)), chance.randrange(8))
        until_s = time.monotonic() + chance.uniform(*PAUSES_S)
        while time.monotonic() < until_s and not run.has_ended:
            run.wake()
            time.sleep(0.1)
    run.finish()


def paced(run: Run, chance: random.Random) -> None:
    """One kill for every STEPS_A_KILL steps that are made."""
    run.launch()
    turn = 0
    while run.wait_for_steps(STEPS_A_KILL):
        run.strike(STRUCK[turn % len(STRUCK)], "kill", chance.randrange(8))
        turn += 1
    run.finish()


def real(run: Run, chance: random.Random) -> None:
    """Each role in turn, the driver too, a random while after the last kill was mended."""
    run.launch()
    roles = (*STRUCK, "driver")
    assert run.wait_for_steps(2)
    for turn in range(2 * len(roles)):
        time.sleep(chance.uniform(0.0, 1.5))
        role = roles[turn % len(roles)]
        if run.has_ended or not run.strike(role, "kill", chance.randrange(8)):
            break
        if role == "driver":
            assert run.process is not None
            run.process.wait(timeout=60)
            run.orphans += run.left_behind()
            run.launch()
        if not run.wait_for_steps(1):
            break
        run.ledger()
    run.finish()


def attacked(
    attack: Callable[[Run, random.Random], None], run: Run, chance: random.Random
) -> dict[str, Any]:
    """The figures of a run under attack."""
    started_s = time.monotonic()
    attack(run, chance)
    events = run.events()
    num_made = sum(event["kind"] == "step" for event in events)
    num_useful = max(event["version"] for event in events if event["kind"] == "step")
    figures = {
        "strikes": [[strike.role, strike.how, strike.num_steps] for strike in run.strikes],
        "launches": run.num_launches,
        "wall_s": time.monotonic() - started_s,
        "steps": num_useful,
        "steps_made": num_made,
        "goodput": num_useful / num_made,
        "recoveries": recoveries(run.strikes, events),
        "left_behind": run.orphans + run.left_behind(),
        "ledger": run.ledger(),
    }
    summary = {key: figures[key] for key in ("launches", "wall_s", "steps_made", "left_behind")}
    print(run.directory.name, len(run.strikes), "strikes", json.dumps(summary), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=("storm", "paced", "real", "lengths"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    options = parser.parse_args()
    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": 8})
    figures: dict[str, Any] = {}
    for attack, settings in ((storm, SCRIPTED), (paced, SCRIPTED), (real, COMMON)):
        name = attack.__name__
        if options.only in (None, name):
            steps = f"learner.num_steps={options.steps}"
            run = Run(ARITHMETIC, options.runs / f"chaos-{name}", (*settings, steps))
            figures[name] = attacked(attack, run, random.Random(options.seed))
    if options.only in (None, "lengths"):
        figures["lengths"] = lengths.compare(options.runs, random.Random(options.seed))
    if options.only is None:
        write("chaos", page(figures, signature("make chaos")), figures)
    else:
        print(json.dumps({"figures": figures}))


if __name__ == "__main__":
    main()
