"""The report of a sweep: complete, honest about what chose a number, and there for unfinished sweeps too."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.reporting.sweeps import METRIC, SPACE, example
from tests.reporting.test_report import Links

from wsss.evaluation.bootstrap import Interval, PairedComparison
from wsss.reporting.sweep_report import write_sweep_report
from wsss.reporting.sweep_tables import (
    best_table,
    confirmation_table,
    cost_table,
    failed_table,
    selected_table,
    selection_table,
    top_table,
    trials_csv,
)
from wsss.reporting.sweep_values import NO_VALUE, best_so_far, best_trial, pareto_front, stage_costs, value_of
from wsss.search.records import Race, Selected, SweepRecord, TrialRecord, load_trials

IMPORTANCES = {
    "fANOVA": {"cam.learning_rate": 0.7, "random_walk.beta": 0.2, "random_walk.exp_times": 0.1},
    "PED-ANOVA": {"cam.learning_rate": 0.5, "random_walk.beta": 0.45},
}


def _way(rule: str, trials: tuple[int, ...], images: int, by_masks: bool, gain: float) -> Selected:
    difference = PairedComparison(gain, gain - 0.02, gain + 0.02, 0.01)
    return Selected(rule, trials, images, Interval(0.47 + gain, 0.45 + gain, 0.49 + gain), difference, by_masks)


WAYS = (
    _way("default", (0,), 20, False, 0.0),
    _way("oracle", (9,), 20, True, 0.05),
    _way("cross_fitted", (9, 4), 20, True, 0.03),
    _way("held_out", (9,), 11, True, 0.03),
    _way("label_free", (0,), 20, False, 0.0),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def sweep(folder: Path) -> SweepRecord:
    return example(folder)


@pytest.fixture(scope="module")
def trials(sweep: SweepRecord, folder: Path) -> list[TrialRecord]:
    return load_trials(folder)


def column(table, name: str) -> list[str]:
    return [row[table.columns.index(name)] for row in table.rows]


def row_of(table, first: str) -> dict[str, str]:
    found = [row for row in table.rows if row[0] == first]
    assert len(found) == 1, first
    return dict(zip(table.columns, found[0], strict=True))


def test_report_is_complete_and_self_contained(sweep, folder):
    stale = folder / "report" / "figures" / "old.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    index = write_sweep_report(replace(sweep, selected=WAYS), folder, importances=IMPORTANCES)
    target = folder / "report"
    assert index == target / "index.html"
    page = index.read_text()
    links = Links()
    links.feed(page)
    assert links.open == []
    names = {"history.png", "importance.png", "slices.png", "curves.png", "cost.png", "reuse.png"}
    assert {path.name for path in (target / "figures").iterdir()} == names
    assert sorted(links.sources) == sorted(f"figures/{name}" for name in names)
    for name in names:
        with Image.open(target / "figures" / name) as image:
            assert min(image.size) > 250 and len(np.unique(np.asarray(image.convert("L")))) > 5
    order = ["Recipe and best", "Search", "Rules of choosing the trial", "How the number was chosen"]
    order += ["Confirmation over seeds", "Cost and reuse", "Importance of the searched keys", "Trials without a value"]
    positions = [page.index(f">{title}</h2>") for title in order]
    assert positions == sorted(positions)
    assert "&lt;at 2007_000033&gt;" in page and "<at 2007" not in page
    for text in ("50.80 with trial", "47.10 with the recipe", "+3.70", "mean over 3 seeds", "best.yaml"):
        assert text in page, text
    markdown = (target / "report.md").read_text()
    assert sorted(re.findall(r"!\[[^]]*\]\(([^)]+)\)", markdown)) == sorted(links.sources)
    assert "## Cost and reuse" in markdown and "## Search space" in markdown


def test_recipe_and_best_side_by_side(sweep, trials):
    table = best_table(sweep, trials)
    best = best_trial(sweep, trials)
    assert best is not None and best.number == sweep.best.trial
    quoted = row_of(table, "to quote: mean over seeds")
    assert (quoted["recipe"], quoted["best"], quoted["change"]) == ("47.10", "50.80", "+3.70")
    threshold = row_of(table, "pseudo_label.threshold")
    assert (threshold["recipe"], threshold["best"], threshold["change"]) == ("0.25", "0.3", "changed")
    assert threshold["level"] == "curve"
    assert column(table, "")[-len(SPACE) :] == [key.key for key in SPACE]


def test_what_is_quoted_without_confirmation(sweep, trials):
    best = replace(sweep.best, confirmed=False, gain_low=0.0123, gain_high=0.0456)
    table = best_table(replace(sweep, best=best, confirmations=()), trials)
    quoted = row_of(table, "to quote: held out")
    assert (quoted["recipe"], quoted["best"]) == ("47.10", "50.80")
    assert row_of(table, "95 % interval of the gain over images, paired, seed 0")["change"] == "+1.23 to +4.56"
    undeclared = best_table(replace(sweep, best=None, confirmations=()), trials)
    assert not any("to quote" in first for first in column(undeclared, ""))


def test_how_a_number_was_chosen_is_said(sweep, trials):
    table = selection_table(sweep, trials)
    best: Any = best_trial(sweep, trials)
    name = f"best (trial {best.number})"
    held_out = row_of(table, "best of one half, on the other half")
    assert held_out["chosen by masks"] == "yes, of other images"
    interval = f"({100 * best.low:.2f} to {100 * best.high:.2f})"
    assert held_out[name] == f"{100 * best.held_out:.2f} {interval}"
    oracle = row_of(table, "best of all images")
    assert oracle["chosen by masks"] == "yes, of the images that are scored" and "to" not in oracle[name]
    assert not any("without masks" in first for first in column(table, table.columns[0])), "nothing computed it"
    labelled = [replace(each, label_free=0.4) for each in trials]
    assert row_of(selection_table(sweep, labelled), "criterion without masks")[name] == "40.00"


def test_ways_of_choosing_the_trial(sweep):
    table = selected_table(replace(sweep, selected=WAYS))
    assert "only the number on the other half" in table.note, "the search was led by the first half"
    led_by_all = selected_table(replace(sweep, selected=WAYS, select="oracle"))
    assert "every way by masks looks too good" in led_by_all.note
    assert row_of(table, "none: the recipe")["over the recipe"] == "-"
    oracle = row_of(table, "best of all images")
    assert (oracle["chosen"], oracle["by masks"]) == ("trial 9", "yes")
    assert (oracle["mIoU"], oracle["95 % interval"]) == ("52.00", "50.00 to 54.00")
    assert oracle["over the recipe"] == "+5.00 (+3.00 to +7.00)"
    assert row_of(table, "each half at the other half's best")["chosen"] == "trial 9, trial 4"
    blind = row_of(table, "criterion without masks")
    assert (blind["chosen"], blind["by masks"]) == ("recipe", "no")
    assert row_of(table, "best of one half, on the other half")["images"] == "11"


def test_trials_that_lost_a_race_are_accounted_for(sweep, trials):
    lost = replace(
        trials[5], status="pruned", values={}, race=Race(50, 200, 3.0, estimate=0.3, beaten_by=0), reason="dropped"
    )
    plain, raced = cost_table(sweep, trials), cost_table(sweep, [*trials[:5], lost, *trials[6:]])
    assert "dropped" not in plain.note
    assert "1 trials were dropped as clearly worse after 50 to 50 of 200 images" in raced.note
    finished_trials = sum(trial.status == "finished" for trial in trials)
    assert f"judged on {100 * (finished_trials - 0.75) / finished_trials:.0f} % of them" in raced.note


def test_reuse_adds_up(sweep, trials):
    costs = stage_costs(trials)
    assert sum(cost.asked for cost in costs.values()) == sweep.asked
    assert sum(cost.executed for cost in costs.values()) == sweep.executed
    assert costs["cam_train"].asked == 31 and costs["cam_train"].executed == 7
    table = cost_table(sweep, trials)
    training = row_of(table, "cam_train")
    assert (training["asked for"], training["executed"], training["from the store"]) == ("31", "7", "24")
    assert row_of(table, "all")["asked for"] == str(sweep.asked)
    assert "28 finished, 2 failed, 1 pruned of 31 trials" in table.note
    assert f"{sweep.independent_seconds / sweep.executed_seconds:.1f} times less" in table.note


def test_confirmation_and_failures(sweep, trials):
    table = confirmation_table(sweep)
    assert row_of(table, "recipe")["seed 1"] == "47.50"
    assert row_of(table, f"trial {sweep.best.trial}")["95 % interval"] == "49.93 to 51.67"
    failed = failed_table(sweep, trials)
    assert column(failed, "trial") == ["7", "19", "26"] and column(failed, "status") == ["failed", "failed", "pruned"]
    assert "the image is empty" in failed.rows[0][2]
    top = top_table(sweep, trials)
    assert len(top.rows) == 15 and top.rows[0][0] == str(sweep.best.trial)
    assert "random_walk.beta=" in top.rows[0][-1]


def test_csv_holds_every_trial(sweep, trials):
    rows = list(csv.DictReader(io.StringIO(trials_csv(sweep, trials))))
    assert len(rows) == 31
    assert float(rows[0]["value"]) == trials[0].values[METRIC] and rows[0]["random_walk.beta"] == "10"
    assert rows[7]["value"] == "" and rows[7]["status"] == "failed"
    assert rows[4]["random_walk.method"] == "dense" and rows[4]["random_walk.exp_times"] == "", "switched off"


def test_trials_that_are_switched_off(sweep, trials):
    conditional = next(key for key in SPACE if key.conditions)
    assert value_of(sweep, trials[4], conditional) is NO_VALUE
    assert value_of(sweep, trials[0], conditional) == 6, "the recipe's method switches it on"
    other = replace(sweep, recipe={"random_walk.method": "dense"}, space=(conditional,))
    assert value_of(other, trials[0], conditional) is NO_VALUE


def test_a_sweep_that_has_just_begun(sweep, tmp_path):
    begun = replace(sweep, best=None, confirmations=(), status="running", asked=0, executed=0, executed_seconds=0.0)
    page = write_sweep_report(begun, tmp_path).read_text()
    assert "declares no best trial yet" in page and "<img" not in page
    TrialRecord(number=0, outer={}, inner={}, outer_key="0", batch=0, status="failed", reason="no data").save(tmp_path)
    page = write_sweep_report(begun, tmp_path).read_text()
    assert "no data" in page and "<img" not in page


def test_only_the_recipe_has_a_value(sweep, folder, tmp_path):
    first = load_trials(folder)[0]
    first.save(tmp_path)
    alone = replace(sweep, best=replace(sweep.best, trial=0), confirmations=())
    page = write_sweep_report(alone, tmp_path).read_text()
    assert "No trial of 1 beats the recipe" in page and "figures/slices.png" in page


def test_running_best_and_front():
    assert best_so_far([1, 3, 2]) == [1, 3, 3]
    assert pareto_front([3, 1, 2, 2], [0.5, 0.2, 0.2, 0.4]) == [1, 3, 0]
    assert pareto_front([1, 2], [0.2, 0.1]) == [0]
