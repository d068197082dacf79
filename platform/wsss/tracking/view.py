"""How MLflow's page of an experiment shows its runs: the charts and columns that matter first.

MLflow 3.17 orders charts by the names of metrics. What it offers is a view that people share by a link: the tag
`mlflow.sharedViewState.KEY` of the experiment holds it as JSON, and `?viewStateShareKey=KEY` opens it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEY = "main"
TRIAL_TAG = "trial"  # its number, on the run of a trial
VIEW_TAG = f"mlflow.sharedViewState.{KEY}"
_SECTION = "main numbers"
# Of the 20 000 characters that a tag may have, a chart takes about 300.
_MOST_METRICS, _MOST_PARAMS = 24, 24


@dataclass(frozen=True)
class ExperimentView:
    """What stands first on the page of an experiment.

    Attributes:
        metrics: names of metrics, each a bar chart and a column, in this order.
        params: names of parameters that the trials of a sweep differ by: the page then shows its trials, the best by
            the first metric first, and begins with parallel coordinates from the parameters to that metric.
    """

    metrics: tuple[str, ...] = ()
    params: tuple[str, ...] = ()

    def joined(self, other: ExperimentView) -> ExperimentView:
        """This view, and behind it what only the other one shows."""
        return ExperimentView(
            tuple(dict.fromkeys((*self.metrics, *other.metrics)))[:_MOST_METRICS],
            tuple(dict.fromkeys((*self.params, *other.params)))[:_MOST_PARAMS],
        )

    def text(self) -> str:
        """The state of the page in MLflow's words."""
        charts = [_chart("BAR", metric, metricKey=metric, displayName=metric) for metric in self.metrics]
        if self.params:
            parallel = _chart(
                "PARALLEL",
                "parallel",
                selectedParams=list(self.params),
                selectedMetrics=list(self.metrics[:1]),
                showAllRuns=True,
            )
            charts.insert(0, parallel)
        state: dict[str, Any] = {
            "selectedColumns": [
                *(f"metrics.`{metric}`" for metric in self.metrics),
                *(f"params.`{param}`" for param in self.params),
            ],
            "runsHiddenMode": "SHOW_ALL",
            "compareRunCharts": charts,
            "compareRunSections": [{"uuid": _SECTION, "name": _SECTION, "display": True, "isReordered": True}],
            "isAccordionReordered": True,
        }
        if self.params and self.metrics:
            # Sorted by a metric, nested runs stand on their own and not folded into the run that they belong to.
            state |= {"searchFilter": f"tags.{TRIAL_TAG} LIKE '%'", "orderByKey": f"metrics.`{self.metrics[0]}`"}
            state["orderByAsc"] = False
        return json.dumps(state, separators=(",", ":"))


def view_of(text: str) -> ExperimentView:
    """The view that `ExperimentView.text` made; an empty one of any other text."""
    try:
        charts: list[Mapping[str, Any]] = json.loads(text)["compareRunCharts"]
        return ExperimentView(
            tuple(str(chart["metricKey"]) for chart in charts if chart["type"] == "BAR"),
            tuple(str(name) for chart in charts if chart["type"] == "PARALLEL" for name in chart["selectedParams"]),
        )
    except (ValueError, LookupError, TypeError):
        return ExperimentView()


def page_of(experiment_id: str) -> str:
    """Where the view is, behind the address of the server."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}&compareRunsMode=CHART"


def _chart(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {
        "uuid": f"{_SECTION} {name}",
        "type": kind,
        "metricSectionId": _SECTION,
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
        **more,
    }
