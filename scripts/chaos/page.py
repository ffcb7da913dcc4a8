"""docs/results/chaos.md."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from chaos.lengths import kolmogorov_smirnov
from chaos.run import STARVED_S, STOPPED_S
from results import table

TITLES = {
    "storm": "A strike every 2 to 5 s (scripted engine, two rollout workers)",
    "paced": "A kill every 20 steps (scripted engine, two rollout workers)",
    "real": "Every role killed in turn, the driver too (vLLM, DeepSpeed)",
}


def page(figures: dict[str, Any], signed: str) -> str:
    """As Markdown."""
    return "\n".join(
        [
            "# Roles killed, stopped and starved while a job trains",
            "",
            signed,
            f"`kill` is SIGKILL; `stop` is SIGSTOP for {STOPPED_S:.0f} s, longer than "
            f"`health.heartbeat_timeout_s`; `starve` is SIGSTOP for {STARVED_S:.0f} s. At the end "
            "of each run `slipstream ledger` found every prompt trained once, dropped with a "
            "reason, or pending, and no group of a replaced worker accepted.",
            "",
            *(line for name in TITLES if name in figures for line in _run(name, figures[name])),
            *(_lengths(figures["lengths"]) if "lengths" in figures else []),
        ]
    )


def _run(name: str, found: dict[str, Any]) -> list[str]:
    times: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for one in found["recoveries"]:
        key = one["role"], one["how"]
        counts[key] += 1
        for which in ("noticed_s", "mended_s"):
            if one[which] is not None:
                times[key][which].append(one[which])
    rows = [
        [
            role,
            how,
            str(count),
            *(_quantiles(times[role, how][which]) for which in ("noticed_s", "mended_s")),
        ]
        for (role, how), count in sorted(counts.items())
    ]
    fates = ", ".join(f"{count:,} {fate}" for fate, count in found["ledger"]["fates"].items())
    left = "; ".join(found["left_behind"]) or "nothing"
    return [
        f"## {TITLES[name]}",
        "",
        f"{len(found['strikes'])} strikes in {found['wall_s']:.0f} s, {found['launches']} "
        f"launch{'es' if found['launches'] > 1 else ''}. {found['steps']} steps that count of "
        f"{found['steps_made']} made: goodput {found['goodput']:.2f}. Fates: {fates}. Left behind: "
        f"{left}.",
        "",
        table(
            ["role", "how", "times", "noticed after, s (p50, p95)", "mended after, s (p50, p95)"],
            rows,
        ),
        "",
    ]


def _quantiles(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    return ", ".join(f"{np.percentile(seconds, q):.1f}" for q in (50, 95))


def _lengths(found: dict[str, list[int]]) -> list[str]:
    calm, stormy = found["calm"], found["stormy"]
    distance = kolmogorov_smirnov(calm, stormy)
    bound = 1.36 * (2 / min(len(calm), len(stormy))) ** 0.5
    return [
        "## Lengths of what trained",
        "",
        "The long-tailed workload of the bench without a kill and with three (learner, replay, "
        f"rollout worker): mean length of the trained answers {sum(calm) / len(calm):.1f} and "
        f"{sum(stormy) / len(stormy):.1f} tokens ({len(calm)} and {len(stormy)} answers), "
        f"Kolmogorov-Smirnov distance {distance:.4f} (two samples of one distribution are below "
        f"{bound:.4f} in 95% of cases).",
        "",
    ]
