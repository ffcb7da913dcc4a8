"""trackio, in a database of this machine (TRACKIO_DIR) or a Space (TRACKIO_SPACE_ID)."""

from __future__ import annotations

from collections.abc import Mapping

import trackio

from orchestrator.trackers.curves import Figures
from orchestrator.trackers.tracker import PROJECT


class Trackio:
    """A run goes on by its name."""

    def __init__(self, name: str, settings: Mapping[str, object]) -> None:
        self._run = trackio.init(
            project=PROJECT, name=name, resume="allow", config=dict(settings), embed=False
        )

    def log(self, figures: Figures) -> None:
        if figures.values:
            self._run.log(dict(figures.values), step=figures.version)

    def finish(self) -> None:
        self._run.finish()
