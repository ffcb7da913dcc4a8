"""The four modes as presets over placement and replay settings.

A preset is data: keys laid under the job file's own before validation. Whatever the file
or the command line sets by hand wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "sync": {
        "rollout": {"colocate": True},
        "replay": {"max_staleness": 0, "on_stale": "wait", "whole_batches": True},
    },
    "split": {
        "rollout": {"colocate": False},
        "replay": {"max_staleness": 1, "on_stale": "wait", "whole_batches": True},
    },
    "buffered": {
        "rollout": {"colocate": False},
        "replay": {"max_staleness": 1, "on_stale": "wait", "whole_batches": False},
    },
    "multinode": {
        "rollout": {"colocate": False, "placement": {"labels": {"slipstream-role": "rollout"}}},
        "learner": {"placement": {"labels": {"slipstream-role": "learner"}}},
        "replay": {"max_staleness": 1, "on_stale": "wait", "whole_batches": False},
    },
}

# Of sections that come in several kinds, where the job file sets a field of the usual one.
USUAL_KINDS: Mapping[str, Any] = {
    "algorithm": {
        "advantage": {"kind": "grpo"},
        "loss": {"kind": "ppo_clip"},
        "correction": {"kind": "truncated"},
    }
}


def apply_preset(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` laid over its mode's preset.

    An unknown mode gets some preset too, so that validation complains of the mode alone.
    """
    preset = PRESETS.get(str(raw.get("mode")), PRESETS["buffered"])
    return _overlay(_overlay(USUAL_KINDS, preset), raw)


def _overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and key != "placement":
            merged[key] = _overlay(below, value)
        else:
            merged[key] = value
    return merged
