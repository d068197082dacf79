"""Reads tracked runs back through MLflow's own client, independent of the code under test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run


@dataclass
class Tracked:
    """The runs of one experiment at one address."""

    uri: str
    experiment: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri)

    def runs(self) -> list[Run]:
        found = self.client.get_experiment_by_name(self.experiment)
        return [] if found is None else list(self.client.search_runs([found.experiment_id]))

    def run(self, name: str) -> Run:
        (found,) = [run for run in self.runs() if run.info.run_name == name]
        return found

    def curve(self, name: str, metric: str) -> list[tuple[int, float]]:
        """All (step, value) of a metric as stored, duplicates included."""
        history = self.client.get_metric_history(self.run(name).info.run_id, metric)
        return sorted((point.step, point.value) for point in history)

    def artifact(self, name: str, path: str, folder: Path) -> str:
        folder.mkdir(exist_ok=True)
        return Path(self.client.download_artifacts(self.run(name).info.run_id, path, str(folder))).read_text()
