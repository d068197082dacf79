import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.reporting.test_tables import report

from wsss.data.palette import colorize
from wsss.pipeline import GridKind
from wsss.reporting.grid import draw, heat_overlay, segment_outlines, write_grid
from wsss.reporting.plots import plot_class_iou, plot_history, plot_threshold_curve, running_mean
from wsss.reporting.report import write_report
from wsss.reporting.run_report import RunReport, SampleImage, SampleRows, StageReport
from wsss.reporting.tables import common_obstacles, other_data

CLASSES = ("background", "cat", "dog")


def sample(name: str, height: int, width: int) -> SampleImage:
    rng = np.random.default_rng(len(name))
    truth = np.zeros((height, width), np.uint8)
    truth[: height // 2] = 2
    truth[height // 2] = 255
    return SampleImage(
        name=name,
        image=rng.integers(0, 255, (height, width, 3), dtype=np.uint8),
        arrays={
            "CAM": rng.random((2, height // 4, width // 4)).astype(np.float16),
            "pseudo label": np.where(truth == 255, 0, truth),
            "truth": truth,
        },
    )


def rows_of(title: str, *samples: SampleImage) -> SampleRows:
    return SampleRows(title=title, columns={"CAM": "cam", "pseudo label": "labels", "truth": "labels"}, samples=samples)


def full_report(*seeds: int) -> RunReport:
    base = report(*((seed, 0.01 * seed) for seed in seeds))
    curve = [
        {"threshold": 0.1 * i, "miou": 0.5 - 0.01 * abs(i - 3), "default": i == 2, "oracle": i == 3} for i in range(6)
    ]
    iterations = [{"iterations": i, "miou": 0.01 * i, "default": i == 1, "oracle": i == 5} for i in range(1, 6)]
    extra = []
    for seed in seeds:
        history = {"loss": [3.0, 2.0, float("nan")], "learning_rate/all": [0.1, 0.1, 0.05]}
        extra.append(
            StageReport(
                name="train", kind="train", status="executed", seconds=1, key="d" * 32, seed=seed, history=history
            )
        )
        extra.append(
            StageReport(
                name="scores",
                kind="reduce",
                status="executed",
                seconds=1,
                key="e" * 32,
                seed=seed,
                metrics={"walk/miou_train": 0.5},
                tables={"curve": curve, "iterations_crf": iterations},
            )
        )
    grid = rows_of("val <first>", sample("one", 24, 32), sample("second", 40, 20))
    return RunReport(
        **{
            **base.__dict__,
            "stages": (*base.stages, *extra),
            "grids": (grid,),
            "classes": CLASSES,
            "settings": {"cam.learning_rate": 0.1, "cam.epochs": 3},
            "changed_settings": ("cam.epochs",),
            "provenance": {"commit": "abc123"},
        }
    )


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.anchors: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href") and value and value[0] != "#"]
        self.anchors += [value[1:] for name, value in attrs if name == "href" and value and value[0] == "#"]
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_report_is_complete_and_self_contained(tmp_path, seeds):
    files = write_report(tmp_path, full_report(*seeds))
    page = files.html.read_text()
    links = Links()
    links.feed(page)
    assert links.open == []
    assert sorted(links.sources) == sorted(path.relative_to(files.folder).as_posix() for path in files.figures)
    assert all((files.folder / source).is_file() for source in links.sources)
    assert {path.name for path in files.figures} == {
        "curve_threshold_walk_train.png",
        "curve_iterations_walk_train_crf.png",
        "class_iou.png",
        "grid_0_val_first.png",
        "loss_train.png",
    }
    assert "val <first>" not in page
    assert links.anchors == links.ids and len(set(links.ids)) == len(links.ids), "the contents list is the page"
    headings = ("results", "images", "verdict", "stages")
    assert [name for name in links.ids if name in headings] == list(headings), "first what was made"
    for text in ("abc123", "cam.epochs", "3  (differs from the recipe)", "d" * 32, "reproduced"):
        assert text in page
    markdown = files.markdown.read_text()
    images = re.findall(r"!\[[^]]*\]\(([^)]+)\)", markdown)
    assert sorted(images) == sorted(links.sources)
    assert markdown.index("## Results") < markdown.index("## Verdict") < markdown.index("## Stages")
    assert files.csv.read_text().count("\n") == 1 + 10 * len(seeds)


def test_on_other_data_one_sentence_stands_in_the_place_of_the_verdicts(tmp_path: Path) -> None:
    elsewhere = replace(full_report(0), dataset="shapes")
    assert other_data(elsewhere).startswith("not comparable: ours is on shapes, the ")
    assert other_data(full_report(0)) == ""
    page = write_report(tmp_path, elsewhere).html.read_text()
    assert '<h2 id="verdict">' not in page and '<details id="verdict">' in page
    assert "<p>Not comparable: ours is on shapes" in page


def test_what_stands_in_the_way_of_every_number_is_said_once() -> None:
    report = full_report(0)
    judged = [each for each in report.verdicts if not each.claim.context]
    assert judged and common_obstacles(report) == "", "numbers that are judged stand in the table"

    def blocked(*reasons: tuple[str, ...]) -> str:
        verdicts = [replace(judged[0], outcome="not comparable", difference=None, obstacles=each) for each in reasons]
        context = replace(judged[0], claim=replace(judged[0].claim, context=True), outcome="context")
        return common_obstacles(replace(report, verdicts=(*verdicts, context)))

    said = blocked(("another recipe", "train is short"), ("train is short", "no such number"))
    assert said.startswith("not comparable with any of the 2 published numbers: train is short")
    assert blocked(("another recipe",), ("no such number",)) == ""
    assert blocked(("train is short",), ()) == "", "one of them is judged"
    assert common_obstacles(replace(report, dataset="shapes")) == other_data(replace(report, dataset="shapes"))


def test_names_and_values_are_no_html(tmp_path: Path) -> None:
    script = "<script>alert(1)</script>{body}$x_$"
    hostile = replace(
        full_report(0),
        recipe=script,
        title=script,
        grids=(rows_of("val", sample(script, 24, 32)),),
        settings={"cam.learning_rate": script, script: 1},
        changed_settings=(script,),
        provenance={"store": script},
        protocol={"masks": script},
    )
    files = write_report(tmp_path, hostile)
    for text in (files.html.read_text(), files.markdown.read_text()):
        assert "<script" not in text and "&lt;script" in text
    assert files.html.read_text().count("</html>") == 1


def test_an_earlier_report_is_replaced(tmp_path):
    stale = tmp_path / "report" / "figures" / "old.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    write_report(tmp_path, full_report(0))
    assert not stale.exists()


def test_a_run_without_numbers_still_has_a_report(tmp_path):
    stage = StageReport(name="cam_train", kind="train", status="executed", seconds=1, key="k" * 32)
    bare = RunReport(
        method="m", title="M", citation="", dataset="shapes", recipe="demo", classes=CLASSES, stages=(stage,)
    )
    files = write_report(tmp_path, bare)
    assert "cam_train" in files.html.read_text()
    assert files.figures == ()


def colors_of(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as image:
        return set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))


def test_grid_shows_labels_in_voc_colors(tmp_path):
    rows = rows_of("val", sample("one", 24, 32), sample("second", 40, 20))
    found = colors_of(write_grid(rows, CLASSES, tmp_path / "grid.png"))
    for index in (0, 2, 255):
        assert tuple(colorize(np.array([[index]], np.uint8))[0, 0].tolist()) in found
    assert tuple(colorize(np.array([[1]], np.uint8))[0, 0].tolist()) not in found


def test_grid_of_samples_with_different_columns(tmp_path):
    bare = SampleImage(name="bare", image=np.zeros((8, 8, 3), np.uint8))
    path = write_grid(rows_of("x", sample("one", 24, 32), bare), CLASSES, tmp_path / "grid.png")
    assert path.stat().st_size > 0


def test_a_grid_has_as_many_columns_as_are_named(tmp_path):
    """Labels and predictions of two rounds, saliency, superpixels: each is drawn as what it is."""
    height, width = 60, 80
    image = np.full((height, width, 3), 100, np.uint8)
    segments = np.arange(height * width).reshape(height, width) % width // 20
    saliency = np.linspace(0, 1, width, dtype=np.float32)[None].repeat(height, axis=0)
    cam = np.zeros((1, 15, 20), np.float32)
    cam[:, :, 10:] = 1
    columns: dict[str, GridKind] = {"superpixels": "segments", "saliency": "grey", "CAM": "cam"}
    arrays = {"superpixels": segments, "saliency": saliency, "CAM": cam}
    for index, title in enumerate(("label", "refined label", "prediction", "second prediction", "truth")):
        columns[title] = "labels"
        arrays[title] = np.where(saliency > 0.1 * index, 1 + index % 2, 0).astype(np.uint8)
    rows = SampleRows(title="all", columns=columns, samples=(SampleImage(name="one", image=image, arrays=arrays),) * 2)
    path = write_grid(rows, CLASSES, tmp_path / "grid.png")
    found = colors_of(path)
    assert (255, 220, 0) in found, "no outline of a superpixel"
    assert {(level, level, level) for level in range(20, 240, 20)} <= found, "no saliency in grey levels"
    with Image.open(path) as picture:
        assert picture.width > 2.2 * picture.height  # nine columns, two rows and a legend


def test_outlines_lie_where_segments_meet():
    image = np.zeros((4, 6, 3), np.uint8)
    outlined = segment_outlines(image, np.array([[0, 1, 1]] * 2))  # stretched twice
    assert np.array_equal(np.argwhere(outlined.any(axis=2).any(axis=0)).ravel(), [2])
    assert draw(image, np.array([[0.0, 1.0, 2.0]]), "grey")[0, :, 0].tolist() == [0, 255, 255]
    assert draw(image, np.array([[0, 7]], np.uint8), "grey")[0, :, 0].tolist() == [0, 7]


def test_heat_is_strongest_where_the_map_is():
    image = np.full((10, 10, 3), 128, np.uint8)
    cam = np.zeros((2, 10, 10), np.float32)
    cam[1, :, 5:] = 1.0
    heat = heat_overlay(image, cam).astype(int)
    assert heat.shape == (10, 10, 3)
    hot, cold = heat[:, 7:].mean(axis=(0, 1)), heat[:, :3].mean(axis=(0, 1))
    assert hot[0] > hot[2] + 30
    assert np.abs(cold - 128).max() < np.abs(hot - 128).max()
    assert heat_overlay(image, np.zeros((0, 3, 3), np.float32)).shape == (10, 10, 3)
    levels = np.rint(255 * np.linspace(0, 1, 100).reshape(1, 10, 10)).astype(np.uint8)
    assert np.array_equal(draw(image, levels, "cam"), draw(image, levels / np.float32(255), "cam"))


def test_plots_are_written(tmp_path):
    history = {"loss": list(np.linspace(3, 1, 200)), "learning_rate/a": [0.1] * 200, "learning_rate/b": [1.0] * 200}
    curve = [{"threshold": 0.1, "miou": None, "default": True, "oracle": False}]
    curve += [{"threshold": 0.2, "miou": 0.4, "default": False, "oracle": True}]
    paths = [
        plot_history("cam_train", {"seed 0": history, "seed 1": history}, tmp_path / "figures" / "a.png"),
        plot_threshold_curve("curve", {"seed 0": curve}, tmp_path / "b.png"),
        plot_class_iou("iou", CLASSES, {"cam": {"cat": 0.4}, "label": {"dog": 0.5}}, tmp_path / "c.png"),
    ]
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) > 200


def test_running_mean_skips_gaps():
    result = running_mean([1.0, 3.0, float("nan"), 5.0], window=2)
    np.testing.assert_allclose(result, [1.0, 2.0, np.nan, 5.0])
