import csv
import io
from dataclasses import replace

import pytest
from rich.console import Console

from wsss.claims import Claim, OurProtocol, verdicts
from wsss.reporting.run_report import RunReport, StageReport
from wsss.reporting.tables import (
    Table,
    class_iou_series,
    class_table,
    other_metrics_table,
    result_table,
    results_csv,
    short_verdicts,
    shown,
    stage_table,
    to_html,
    to_markdown,
    to_rich,
    verdict_table,
)

CLAIM = Claim(
    id="val",
    value=72.7,
    metric="segmentation/miou_val",
    dataset="voc2012",
    split="val",
    protocol="single scale | no CRF",
    source="released_weights",
    citation="<README>",
    tolerance=0.5,
)


def stages(seed: int, shift: float = 0.0) -> list[StageReport]:
    cam = 0.5 + shift
    per_class = [{"class": "background", "iou": 0.8 + shift}, {"class": "cat", "iou": None}]
    return [
        StageReport(name="cam_train", kind="train", status="executed", seconds=3725, key="a" * 32, seed=seed),
        StageReport(
            name="cam_evaluation",
            kind="reduce",
            status="cached",
            seconds=2.25,
            key="b" * 32,
            seed=seed,
            metrics={
                "cam/miou_train": cam,
                "cam/miou_train_low": cam - 0.02,
                "cam/miou_train_high": cam + 0.02,
                "cam/miou_train_oracle": 0.55,
                "cam/oracle_threshold_train": 0.31,
                "cam/miou_train_cross_fitted": 0.54,
                "cam/miou_train_all_background": 0.035,
                "cam/pixel_accuracy_train": 0.9,
            },
            tables={"per_class": per_class},
        ),
        StageReport(
            name="segmentation_evaluation",
            kind="reduce",
            status="executed",
            seconds=1.0,
            key="c" * 32,
            seed=seed,
            metrics={"segmentation/miou_val": 0.725 + shift},
            notes=("chosen by masks",),
        ),
    ]


def report(*seeds: tuple[int, float]) -> RunReport:
    found = tuple(stage for seed, shift in seeds for stage in stages(seed, shift))
    base = RunReport(
        method="example",
        title="Example",
        citation="",
        dataset="voc2012",
        recipe="paper",
        classes=("background", "cat"),
        stages=found,
        headline=("segmentation/miou_val",),
    )
    return RunReport(
        **{
            **base.__dict__,
            "verdicts": verdicts([CLAIM], base.metrics_by_seed, OurProtocol("voc2012", "paper")),
        }
    )


def cell(table, row: int, column: str) -> str:
    return table.rows[row][table.columns.index(column)]


def test_numbers_as_people_read_them():
    assert shown("cam/miou_train", 0.5) == "50.00"
    assert shown("cam/oracle_threshold_train", 0.31) == "0.31"


def test_the_best_number_of_iterations_stands_beside_the_recipes():
    metrics = {
        "segmentation/miou_val_crf": 0.73,
        "segmentation/miou_val_crf_oracle": 0.75,
        "segmentation/oracle_iterations_val_crf": 7.0,
    }
    stage = StageReport(
        name="segmentation_evaluation", kind="reduce", status="executed", seconds=1, key="c" * 32, metrics=metrics
    )
    found = RunReport(method="m", title="", citation="", dataset="", recipe="", classes=(), stages=(stage,))
    table = result_table(found)
    assert [row[0] for row in table.rows] == ["segmentation/miou_val_crf"]
    assert cell(table, 0, "best choice") == "75.00" and cell(table, 0, "at") == "7 iterations"
    assert other_metrics_table(found).rows == ()


@pytest.mark.parametrize(("best", "told"), [(0, True), (1, False), (2, True)])
def test_a_best_choice_at_the_end_of_the_range_says_so(best: int, told: bool):
    metrics = {"cam/miou_train": 0.5, "cam/miou_train_oracle": 0.6, "cam/oracle_threshold_train": 0.3}
    curve = [{"threshold": 0.1 * step, "miou": 0.5, "default": False, "oracle": step == best} for step in range(3)]
    stage = StageReport(
        name="cam_evaluation",
        kind="reduce",
        status="executed",
        seconds=1,
        key="c" * 32,
        metrics=metrics,
        tables={"curve": curve},
    )
    table = result_table(
        RunReport(method="m", title="", citation="", dataset="", recipe="", classes=(), stages=(stage,))
    )
    assert cell(table, 0, "at") == ("0.3 (end)" if told else "0.3")
    assert ("a better one may lie beyond" in table.note) == told


def test_numbers_say_what_their_interval_does_not_cover():
    one, two = report((0, 0.0)), report((0, 0.0), (1, 0.01))
    assert "what another training would give is not in it" in result_table(one).note
    assert "over the trainings of 2 seeds" in result_table(two).note
    assert "A number of one seed is one training" in verdict_table(one.verdicts).note
    assert "one training" not in verdict_table(two.verdicts).note


def test_one_seed_has_no_spread():
    table = result_table(report((0, 0.0)))
    assert "spread" not in table.columns
    assert [row[0] for row in table.rows] == ["segmentation/miou_val", "cam/miou_train"]
    assert cell(table, 1, "mIoU") == "50.00"
    assert cell(table, 1, "95 % interval") == "48.00 to 52.00"
    assert cell(table, 1, "best choice") == "55.00"
    assert cell(table, 1, "at") == "0.31"
    assert cell(table, 1, "at") == "0.31"
    assert cell(table, 1, "cross-fitted choice") == "54.00"
    assert cell(table, 1, "all background") == "3.50"
    assert cell(table, 0, "95 % interval") == "-"


def test_seeds_get_mean_and_spread():
    table = result_table(report((0, 0.0), (7, 0.02)))
    assert (cell(table, 0, "seed 0"), cell(table, 0, "seed 7")) == ("72.50", "74.50")
    assert (cell(table, 0, "mIoU"), cell(table, 0, "spread")) == ("73.50", "1.41")
    verdict = verdict_table(report((0, 0.0), (7, 0.02)).verdicts)
    assert cell(verdict, 0, "ours") == "73.50 ± 1.41"
    assert cell(verdict, 0, "difference") == "+0.80"
    assert cell(verdict, 0, "verdict") == "above"


def test_stages_say_what_was_executed():
    table = stage_table(report((0, 0.0)))
    assert cell(table, 0, "time") == "1 h 02 min"
    assert cell(table, 1, "status") == "cached"
    assert cell(table, 1, "numbers") == "cam/miou_train 50.00"
    assert cell(table, 2, "status") == "executed; chosen by masks"
    assert "2 of 3 stages executed in 1 h 02 min" in table.note


def test_every_other_number_is_shown_once():
    table = other_metrics_table(report((0, 0.0)))
    assert [row for row in table.rows] == [("cam/pixel_accuracy_train", "90.00")]


@pytest.mark.parametrize("context", [False, True])
def test_no_difference_is_shown_where_nothing_is_comparable(context: bool) -> None:
    """On the screen, in the page and in Markdown: 85.23 on other data stands 12.53 above no claim."""
    claim = replace(CLAIM, context=context)
    (found,) = verdicts([claim], {0: {CLAIM.metric: 0.8523}}, OurProtocol("shapes", "demo"))
    screen = io.StringIO()
    Console(file=screen, width=200).print(to_rich(short_verdicts([found])))
    table = verdict_table([found])
    assert cell(table, 0, "difference") == "-" and cell(table, 0, "claim") == "72.70"
    for text in (screen.getvalue(), to_html(table), to_markdown(table)):
        assert "12.53" not in text
        assert ("context" if context else "not comparable") in text
        assert ("85.23" in text) == (not context)


def test_class_iou_is_the_mean_over_seeds():
    both = report((0, 0.0), (1, 0.1))
    assert class_iou_series(both) == {"cam/train": {"background": pytest.approx(0.85)}}
    assert class_table(both).rows == (("background", "85.00"), ("cat", "-"))


def test_markdown_and_html_escape_what_they_must():
    table = verdict_table(report((0, 0.0)).verdicts)
    markdown = to_markdown(table)
    assert "single scale \\| no CRF" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    page = to_html(table)
    assert "&lt;README&gt;" in page
    assert '<span class="outcome reproduced">reproduced</span>' in page


def test_five_numbers_with_intervals_fit_beside_each_other_on_a_page():
    metric = "segmentation/miou_val_crf_raw"
    table = Table("Numbers", ("recipe", metric), (("a (long name of it)", "18.75 (-9.93: -12.82 to -7.83)"),))
    page = to_html(replace(table, right=frozenset({metric})))
    assert '<th class="right">segmentation/<br>miou_val_crf_raw</th>' in page
    assert '<td class="right">18.75<br>(-9.93:<br>-12.82 to -7.83)</td>' in page
    assert "<td>a (long name of it)</td>" in page
    short = to_html(Table("Best", ("threshold",), (("0.50 (end)",),), right=frozenset({"threshold"})))
    assert "0.50 (end)" in short


def test_a_terminal_shows_every_cell():
    console = Console(width=220, record=True, file=io.StringIO())
    console.print(to_rich(stage_table(report((0, 0.0)))))
    text = console.export_text()
    for expected in ("cam_train", "1 h 02 min", "executed; chosen by masks", "segmentation/miou_val 72.50"):
        assert expected in text


def test_csv_holds_every_metric_exactly():
    rows = list(csv.DictReader(io.StringIO(results_csv(report((0, 0.0), (7, 0.1))))))
    assert len(rows) == 18
    found = {(row["seed"], row["metric"]): float(row["value"]) for row in rows}
    assert found["7", "cam/miou_train"] == 0.6
    assert rows[0]["key"] == "b" * 32
