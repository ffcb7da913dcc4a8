"""MLflow. Where: MLFLOW_TRACKING_URI and its other environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from orchestrator.trackers.curves import Figures
from orchestrator.trackers.tracker import PROJECT

MAX_PARAM_CHARS = 500
MAX_PARAMS = 100  # of one call


class Mlflow:
    """Through the client alone: MLflow's notion of an active run belongs to the process."""

    def __init__(self, name: str, run_id: str | None, settings: Mapping[str, object]) -> None:
        self._client = MlflowClient()
        if run_id is None:
            run = self._client.create_run(self._experiment(), run_name=name)
            self.run_id: str = run.info.run_id
            params = [Param(key, value[:MAX_PARAM_CHARS]) for key, value in _flat(settings)]
            for start in range(0, len(params), MAX_PARAMS):
                self._client.log_batch(self.run_id, params=params[start : start + MAX_PARAMS])
        else:
            self.run_id = run_id
            self._client.update_run(run_id, status="RUNNING")

    def log(self, figures: Figures) -> None:
        at_ms = round(figures.at_s * 1000)
        metrics = [
            Metric(name, value, at_ms, figures.version) for name, value in figures.values.items()
        ]
        if metrics:
            self._client.log_batch(self.run_id, metrics=metrics)

    def finish(self) -> None:
        self._client.set_terminated(self.run_id)

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))


def _flat(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting by its dotted key, as it stands in a job file."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
