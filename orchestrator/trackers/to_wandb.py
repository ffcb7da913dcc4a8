"""Weights & Biases. Where and as whom: its own environment variables (WANDB_API_KEY, WANDB_MODE,
WANDB_PROJECT, WANDB_ENTITY)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import wandb

from orchestrator.trackers.curves import Figures
from orchestrator.trackers.tracker import PROJECT

FINISH_S = 10.0


class Wandb:
    """Curves are drawn over `version`; W&B's own step counts calls, so that a version that is made
    again after a return is not refused."""

    def __init__(
        self, name: str, run_id: str, settings: Mapping[str, object], directory: Path
    ) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=run_id,
            resume="allow",
            dir=directory,
            config=dict(settings),
            settings=wandb.Settings(
                console="off",  # the terminal is the driver's
                disable_code=True,
                disable_git=True,  # environment.json has the commit
                finish_timeout=FINISH_S,
            ),
        )
        self._run.define_metric("version")
        self._run.define_metric("*", step_metric="version")

    def log(self, figures: Figures) -> None:
        if not figures.is_return:
            self._run.log({**figures.values, "version": figures.version})

    def finish(self) -> None:
        self._run.finish()
