"""The table of weight files, what a recipe asks of it, and downloads from a server on the loopback."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.file_server import CONTENT, Server, file_server
from tests.torchvision_compat import import_torchvision

from wsss import weights
from wsss.commands.main import main
from wsss.data.dataset import Dataset
from wsss.data.errors import DataError
from wsss.errors import WsssError
from wsss.recipe import load_recipe, setting
from wsss.shapes_weights import SHAPES_WEIGHTS, shapes_file
from wsss.weights import (
    WEIGHTS,
    WeightFile,
    WeightUse,
    fetch_missing,
    fetch_weight,
    file_digest,
    required_weights,
    start_in_words,
    weight_setting,
)

SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass(frozen=True)
class Section:
    """The section `weights` of a recipe."""

    resnet50: Path | None = weight_setting("resnet50")
    resnet38: Path | None = weight_setting("resnet38")
    resnet18: Path | None = weight_setting("resnet18")
    allow_random: bool = setting(True)


CAM = WeightUse("cam", "resnet50", "cam.width")
BODY = WeightUse("body", "resnet38", "body.width")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that the table names for resnet50."""
    with file_server("resnet50-0676ba61.pth") as state:
        row = replace(WEIGHTS["resnet50"], sha256=SHA256, url=state.url, megabytes=len(CONTENT) / 1e6)
        monkeypatch.setattr(weights, "WEIGHTS", {**WEIGHTS, "resnet50": row})
        monkeypatch.setattr("wsss.commands.weights.WEIGHTS", weights.WEIGHTS)
        yield state


def row() -> WeightFile:
    return weights.WEIGHTS["resnet50"]


def dataset(home: Path) -> Dataset:
    return Dataset("shapes", home / "set", ("background",), {}, {}, "file", "", home=home)


def test_the_table_is_torchvisions_own() -> None:
    models = import_torchvision().models
    downloaded = [row for row in WEIGHTS.values() if row.url]
    assert len(downloaded) == 7
    for row in downloaded:
        model, version = row.source.removeprefix("torchvision's ").split()[0].split(".")
        enum = getattr(getattr(models, model), version)
        assert row.url == enum.url and row.url.endswith(f"/{row.file}")
        assert row.sha256.startswith(row.file.rsplit("-", 1)[1].removesuffix(".pth")) and len(row.sha256) == 64
        assert row.megabytes == pytest.approx(enum.meta["_file_size"] * 1.048576, abs=0.06)


def test_every_row_says_where_its_file_comes_from() -> None:
    assert all(row.source and row.preprocessing for row in WEIGHTS.values())
    assert len({row.file for row in WEIGHTS.values()}) == len(WEIGHTS)


def test_roles_get_their_files_and_roles_without_one_start_random(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "given.pth").write_bytes(b"weights")
    section = Section(resnet50=Path("${dataset.root}/given.pth"))
    found = required_weights(section, [CAM, WeightUse("edge", "resnet50"), BODY], dataset(tmp_path))
    assert found == {role: tmp_path / "set" / "given.pth" for role in ("cam", "edge")}


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "there.pth").write_bytes(b"weights")
    section = Section(resnet50=tmp_path / "there.pth", resnet38=Path("auto"), allow_random=False)
    with pytest.raises(WsssError) as error:
        required_weights(section, [replace(CAM, width=0.5), BODY], dataset(tmp_path), ["superpixels are missing"])
    text = str(error.value)
    assert "weights.resnet50 does not fit cam.width = 0.5" in text and "superpixels are missing" in text
    assert f"{tmp_path / 'weights' / 'ilsvrc-cls_rna-a1_cls1000_ep-0001.pth'} does not exist" in text
    assert "1-stage-wseg" in text and "weights.NAME=none" not in text
    with pytest.raises(WsssError, match=r"weights\.resnet50 is none[\s\S]*resnet50-0676ba61\.pth, torchvision"):
        required_weights(Section(allow_random=False), [CAM], dataset(tmp_path))


def test_shapes_is_a_file_of_this_package_for_one_width(tmp_path: Path) -> None:
    section = Section(resnet18=Path("shapes"), resnet50=Path("shapes"))
    small = WeightUse("cam", "resnet18", "cam.width", SHAPES_WEIGHTS["resnet18"])
    section_of_one = replace(section, resnet50=None)
    assert required_weights(section_of_one, [small], dataset(tmp_path)) == {"cam": shapes_file("resnet18")}
    with pytest.raises(WsssError) as error:
        required_weights(section, [replace(small, width=1.0), CAM], dataset(tmp_path))
    assert "weights.resnet18 does not fit cam.width = 1: set it to none, or the width to 0.25" in str(error.value)
    assert "weights.resnet50 = shapes: there is none, only of resnet18 and mobilenet_v2" in str(error.value)


def test_the_protocol_says_what_a_network_starts_from(tmp_path: Path) -> None:
    files = {"cam": shapes_file("resnet18"), "body": tmp_path / "resnet50.pth"}
    assert [start_in_words(files, role) for role in ("cam", "body", "edge")] == [
        "generated pictures",
        "ImageNet",
        "random weights",
    ]
    assert start_in_words(files, "body", "COCO") == "COCO"


def test_a_key_before_the_download_is_the_key_after_it(server: Server, tmp_path: Path) -> None:
    section = load_recipe(Section, None, ["resnet50=auto"])
    path = required_weights(section, [CAM], dataset(tmp_path))["cam"]
    assert path == tmp_path / "weights" / "resnet50-0676ba61.pth" and not path.exists()
    before, told = file_digest(path), list[str]()
    assert server.asked == []
    fetch_missing([path], told.append)
    assert path.read_bytes() == CONTENT and file_digest(path) == before == SHA256
    assert (
        told[0] == f"resnet50-0676ba61.pth: downloading 300.0 kB from {server.url}"
        and "300.0 kB of 300.0 kB" in told[-1]
    )
    fetch_missing([path], told.append)
    assert len(server.asked) == 1
    with pytest.raises(DataError, match="missing"):
        file_digest(tmp_path / "other.pth")


def test_auto_refuses_another_content(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / row().file).write_bytes(b"something else")
    with pytest.raises(WsssError, match="another content"):
        required_weights(Section(resnet50=Path("auto")), [CAM], dataset(tmp_path))


def test_a_truncated_download_continues(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.cuts = 100_000, 1
    with pytest.raises(WsssError, match=r"put resnet50-0676ba61\.pth into"):
        fetch_weight(row(), tmp_path, attempts=0, pause=0)
    assert [path.suffix for path in tmp_path.iterdir() if not path.name.startswith(".")] == [".part"]
    fetch_weight(row(), tmp_path)
    assert server.asked == [None, "bytes=100000-"] and (tmp_path / row().file).read_bytes() == CONTENT


def test_a_wrong_content_never_appears(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(WsssError, match=r"checksum is wrong: sha256[\s\S]*weights\.resnet50=FILE"):
        fetch_weight(row(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f".{row().file}.lock"]


def test_without_a_network_the_error_says_which_file_to_put_where(tmp_path: Path) -> None:
    offline = replace(row(), url="http://127.0.0.1:9/resnet50-0676ba61.pth")
    with pytest.raises(WsssError, match=r"resnet50-0676ba61\.pth cannot be downloaded") as error:
        fetch_weight(offline, tmp_path, pause=0)
    assert f"put resnet50-0676ba61.pth into {tmp_path}, or give it as weights.resnet50=FILE" in str(error.value)
    with pytest.raises(WsssError, match="get it from Wide-ResNet-38"):
        fetch_weight(WEIGHTS["resnet38"], tmp_path)


def test_two_that_want_a_file_download_it_once(server: Server, tmp_path: Path) -> None:
    threads = [threading.Thread(target=fetch_weight, args=(row(), tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1 and (tmp_path / row().file).read_bytes() == CONTENT


def test_the_verb_lists_and_fetches(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--home", str(tmp_path)]
    assert main(["weights", "fetch", "resnet50", *at]) == 0
    assert capsys.readouterr().out.strip() == f"resnet50: {tmp_path / 'weights' / row().file}"
    (tmp_path / "weights" / "mit_b2.pth").write_bytes(b"given")
    (tmp_path / "weights" / WEIGHTS["vgg19"].file).write_bytes(b"wrong")
    assert main(["weights", "ls", *at]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert "yes, verified" in lines["resnet50"] and "no; auto downloads it" in lines["resnet18"]
    assert "no; put it there" in lines["resnet38"] and "ANOTHER CONTENT" in lines["vgg19"]
    assert " yes " in lines["mit_b2"]
    assert main(["weights", "fetch", "resnet51", *at]) == 2 and main(["weights", "fetch", *at]) == 2
    assert main(["weights", "fetch", "resnet50", "vgg19", "--url", server.url, *at]) == 2


def test_a_plan_says_what_would_be_downloaded(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--home", str(tmp_path), "cam.backbone=resnet50", "cam.width=1", "weights.resnet50=auto"]
    assert main(["plan", "ssc", *options]) == 0
    assert f"to download: {row().file}, 300.0 kB, torchvision's" in capsys.readouterr().out
    assert server.asked == [] and not (tmp_path / "weights").exists()


@pytest.mark.parametrize("offline", [False, True])
def test_a_run_downloads_before_any_ray_work(
    offline: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights" / row().file

    def connect() -> None:
        assert path.read_bytes() == CONTENT
        raise WsssError("the cluster was asked for")

    monkeypatch.setattr("wsss.execution.cluster.connect", connect)
    server.status = 404 if offline else None
    options = ["--home", str(tmp_path), "cam.backbone=resnet50", "cam.width=1", "weights.resnet50=auto"]
    assert main(["run", "ssc", "--until", "cam_train", *options]) != 0
    output = capsys.readouterr()
    assert (f"put {row().file} into" in output.err) is offline
    assert ("the cluster was asked for" in output.err) is not offline
    assert f"{row().file}: downloading" in output.out and path.exists() is not offline
