"""From events to the curves that people look at. Pure: no clock, no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RATES_EVERY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is known of one policy version, by name; a run has several of the same version."""

    version: int
    at_s: float  # since the epoch
    values: Mapping[str, float] = field(default_factory=dict)
    is_return: bool = False  # the run goes on from this version: later ones are made again


class Curves:
    """Keeps what rates need: since when is counted, and what was generated and trained since."""

    def __init__(self) -> None:
        self._since_s: float | None = None  # the time of a step
        self._counted: Counter[str] = Counter()  # "generated" and "trained" tokens, "steps"

    def hear(self, event: Mapping[str, Any]) -> Figures | None:
        """The figures of one event, if it has any. The names are listed in docs/trackers.md."""
        match event["kind"]:
            case "busy":
                self._counted["generated"] += event["num_tokens"]
                return None
            case "launched" | "went_back":
                self._since_s = None
                return Figures(version=event["version"], at_s=event["time_s"], is_return=True)
            case "step":
                values = self._of_step(event)
            case "eval":
                group = f"eval/{event['set']}" if event.get("set") else "eval"
                passed = {f"pass_at_{k}": share for k, share in event.get("pass_at", {}).items()}
                values = _under(group, {**event, **passed})
            case "adopted":
                values = _under(f"sync/{event['role']}-{event['index']}", event)
            case "published":
                values = _under("sync/learner", event)
            case "commit":
                values = _under("commit", event)
            case _:
                return None
        return Figures(version=event["version"], at_s=event["time_s"], values=values)

    def _of_step(self, event: Mapping[str, Any]) -> dict[str, float]:
        lags, groups = event["lags"], max(1, event["num_groups"])
        values = {
            "train/loss": event["loss"],
            "train/reward": event["reward"],
            "train/lag": sum(int(lag) * count for lag, count in lags.items()) / groups,
            "train/answer_tokens": event["num_answer_tokens"] / max(1, event["num_rollouts"]),
            **_under("learner", event["metrics"]),
            **{f"seconds/{phase}": seconds for phase, seconds in event["seconds"].items()},
        }
        self._counted.update(trained=event["num_answer_tokens"], steps=1)
        return {**values, **self._rates(event["time_s"])}

    def _rates(self, now_s: float) -> dict[str, float]:
        """At a step, if the last rates were long enough ago: workers tell once a second what they
        have generated."""
        since_s, counted = self._since_s, self._counted
        if since_s is not None and now_s - since_s < RATES_EVERY_S:
            return {}
        self._since_s, self._counted = now_s, Counter()
        if since_s is None:
            return {}
        return {
            "throughput/step_s": (now_s - since_s) / counted["steps"],
            "throughput/generated_tokens_per_s": counted["generated"] / (now_s - since_s),
            "throughput/trained_tokens_per_s": counted["trained"] / (now_s - since_s),
        }


NO_FIGURES = ("index", "time_s", "version", "timeline")


def _under(group: str, fields: Mapping[str, Any]) -> dict[str, float]:
    """Those of the fields that are numbers."""
    return {
        f"{group}/{name}": float(value)
        for name, value in fields.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
        if name not in NO_FIGURES
    }
