"""`make peers`: our formulas beside TRL's and verl's; writes docs/results/peers.md.

Fails where what has one definition differs by more than TOLERANCE, and where what is said to
differ does not.
"""

from __future__ import annotations

import math
import sys
from importlib.metadata import version
from typing import Any

import torch
from advantage_cases import advantage_cases
from case import ALL, SEEDS, Result, measure
from correction_cases import correction_cases
from differences import Answers, Difference, differences
from draws import GROUP_SIZES, NUM_TOKENS, SCALES
from loss_cases import loss_cases
from results import signature, table, write

TOLERANCE = 1e-5
PEERS = ("trl", "verl", "torch", "transformers")


def main() -> None:
    torch.set_num_threads(1)
    results = [measure(case) for case in advantage_cases() + loss_cases() + correction_cases()]
    shown = [(difference, difference.answers()) for difference in differences()]
    write("peers", page(results, shown), figures(results, shown))
    wrong = [f"{r.case.ours} and {r.case.peer} differ" for r in results if not agrees(r)]
    wrong += [f"no difference: {d.what}" for d, answers in shown if not differ(*answers)]
    if wrong:
        sys.exit("\n".join(wrong))


def agrees(result: Result) -> bool:
    return all(x is None or x <= TOLERANCE for x in (result.value, result.gradient))


def differ(mine: float, theirs: float | str) -> bool:
    return isinstance(theirs, str) or not abs(mine - theirs) <= TOLERANCE


def page(results: list[Result], shown: list[tuple[Difference, Answers]]) -> str:
    scales = ", ".join(f"±{bound:g} ({name})" for name, bound in SCALES.items())
    versions = ", ".join(f"{name} {version(name)}" for name in PEERS)
    head = ["ours", "peer's", "settings", "only to", "value", "gradient"]
    return "\n".join(
        [
            "# Beside TRL and verl",
            "",
            signature("make peers"),
            f"{versions}. The installed functions are called, none is copied.",
            "",
            "## The same",
            "",
            f"Largest difference over {len(SEEDS)} seeds: {sum(GROUP_SIZES)} answers of 1 to "
            f"{NUM_TOKENS} tokens with holes in their masks, groups of {min(GROUP_SIZES)} to "
            f"{max(GROUP_SIZES)}, float32. Log-ratios are drawn up to {scales}; *only to* names a "
            "smaller bound, where above it one side clamps what the other does not. A difference "
            "is |a - b| / max(1, |b|), of values and of gradients (of log-probs, or of the "
            f"critic's values); `make peers` fails above {TOLERANCE:g}. Advantages and weights are "
            "constants and have no gradient. What is masked is not compared: it enters no loss.",
            "",
            table(head, [_row(result) for result in results]),
            "",
            "TRL's losses are methods of its trainers, called on trainers without a model; its "
            "advantages are written in line, and only what they call can be called.",
            "",
            "## Different on purpose",
            "",
            "Reasons, and what no number shows, are in [algorithms.md](../algorithms.md).",
            "",
            table(
                ["ours", "peer's", "why", "shown by", "ours", "peer's"],
                [_difference(difference, answers) for difference, answers in shown],
            ),
            "",
        ]
    )


def _row(result: Result) -> list[str]:
    case = result.case
    reach = "" if case.scales == ALL else f"±{max(SCALES[scale] for scale in case.scales):g}"
    return [case.ours, case.peer, case.note, reach, _short(result.value), _short(result.gradient)]


def _difference(difference: Difference, answers: Answers) -> list[str]:
    mine, theirs = (x if isinstance(x, str) else _number(x) for x in answers)
    return [difference.what, difference.peer, difference.why, difference.shown, mine, theirs]


def _number(answer: float) -> str:
    return f"{answer:.4g}" if math.isfinite(answer) else "NaN or infinite"


def _short(difference: float | None) -> str:
    if difference is None:
        return "—"
    return "0" if difference == 0.0 else f"{difference:.0e}"


def figures(results: list[Result], shown: list[tuple[Difference, Answers]]) -> dict[str, Any]:
    return {
        "versions": {name: version(name) for name in PEERS},
        "same": [
            {
                "ours": result.case.ours,
                "peer": result.case.peer,
                "settings": result.case.note,
                "scales": result.case.scales,
                "value": result.value,
                "gradient": result.gradient,
            }
            for result in results
        ],
        "different": [
            {"what": difference.what, "ours": _plain(mine), "peer": _plain(theirs)}
            for difference, (mine, theirs) in shown
        ],
    }


def _plain(answer: float | str) -> float | str:
    """JSON has no NaN."""
    return answer if isinstance(answer, str) or math.isfinite(answer) else str(answer)


if __name__ == "__main__":
    main()
