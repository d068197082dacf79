"""How much each key matters, as far as the trials of a sweep tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import optuna
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.trial import TrialState

from wsss.search.propose.samplers import study_trial
from wsss.search.records import SweepRecord, TrialRecord
from wsss.search.space.file import contains

_ENOUGH_TRIALS = 8


def importances(record: SweepRecord, trials: Sequence[TrialRecord]) -> dict[str, Mapping[str, float]]:
    """Way of computing it -> key -> share, 0 to 1, largest first; empty with fewer than 8 finished trials.

    fANOVA is the share of the values' variance that a key explains alone; PED-ANOVA asks what tells the better half
    from the rest. Keys that only some trials have are left out.
    """
    keys = [key for key in record.space if key.level in ("outer", "inner")]
    done = [
        trial
        for trial in trials
        if trial.status == "finished"
        and record.metric in trial.values
        # The recipe may lie outside the ranges, and then in another space.
        and all(contains(key, trial.settings[key.key]) for key in keys if key.key in trial.settings)
    ]
    shared = [key for key in keys if all(key.key in trial.settings for trial in done)]
    varied = [key for key in shared if len({str(trial.settings[key.key]) for trial in done}) > 1]
    if len(done) < _ENOUGH_TRIALS or not varied:
        return {}
    study = optuna.create_study(direction="maximize")
    keys = [replace(key, default=None) if key.kind == "categorical" else key for key in keys]
    for trial in done:
        value = [trial.values[record.metric]]
        study.add_trial(study_trial(keys, trial.settings, TrialState.COMPLETE, value, {}, (trial.started, trial.ended)))
    names = [key.key for key in varied]
    ways: dict[str, BaseImportanceEvaluator] = {
        "fANOVA": FanovaImportanceEvaluator(seed=0),
        "PED-ANOVA": PedAnovaImportanceEvaluator(target_quantile=0.5),
    }
    found: dict[str, Mapping[str, float]] = {}
    for name, evaluator in ways.items():
        try:
            found[name] = optuna.importance.get_param_importances(study, evaluator=evaluator, params=names)
        except (ValueError, RuntimeError, ImportError):  # all values alike, or its own dependency is not installed
            continue
    return found
