"""Kinds of input that people bring and that cannot be used: what is brought, the command, what the user must see."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

PLAN = ("plan", "ssc", "dataset.shapes.train=6", "dataset.shapes.train_aug_extra=2", "dataset.shapes.val=2")
PLAN += ("dataset.shapes.size=48",)
TUNE = ("tune", "--method", "ssc", "--metric", "pseudo_label/miou_train", *PLAN[2:])
CHECK = ("data", "check", "voc2012", "--quick")
MOBILENET = ("cam.backbone=mobilenet_v2", "cam.width=1.0")
LONG = "x" * 5000
Content = str | bytes | Callable[[Path], None]


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        brought: what, in words.
        words: the command; FOLDER stands for the folder of `files`.
        message: what the first error must say.
        files: name -> text, bytes, or a function that makes the file.
        environment: variables; FOLDER as in words.
    """

    brought: str
    words: tuple[str, ...]
    message: str
    code: int = 1
    files: dict[str, Content] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def recipe(brought: str, content: Content, message: str) -> Kind:
    words = (*PLAN, "--recipe", "FOLDER/mine.yaml")
    return Kind(f"recipe: {brought}", words, message, 2, {"mine.yaml": content})


def override(brought: str, words: tuple[str, ...], message: str) -> Kind:
    return Kind(f"override: {brought}", (*PLAN, *words), message, 2)


def option(brought: str, words: tuple[str, ...], message: str, code: int = 2) -> Kind:
    return Kind(f"option: {brought}", words, message, code)


def space(brought: str, content: Content, message: str) -> Kind:
    return Kind(
        f"search space: {brought}", (*TUNE, "--space", "FOLDER/s.yaml", "--dry-run"), message, 1, {"s.yaml": content}
    )


def keys(entries: str) -> str:
    return f"method: ssc\nkeys:\n  {entries}\n"


def listed(brought: str, content: Content, message: str) -> Kind:
    files: dict[str, Content] = {"set/ImageSets/Segmentation/train.txt": content}
    return Kind(f"list: {brought}", (*CHECK, "dataset.root=FOLDER/set"), message, 1, files)


def labels(brought: str, name: str, content: Content, message: str) -> Kind:
    words = (*CHECK, "dataset.root=FOLDER/set", f"dataset.image_label_file=FOLDER/{name}")
    return Kind(f"label file: {brought}", words, message, 1, {name: content})


def weights(brought: str, content: Content, message: str, name: str = "w.pth") -> Kind:
    words = (*PLAN, *MOBILENET, f"weights.mobilenet_v2=FOLDER/{name}")
    return Kind(f"weights: {brought}", words, message, 1, {name: content})


def saved(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def cut(share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.save({"features.0.0.weight": torch.ones(1000)}, path)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return write


def growing(first: str, item: str) -> str:
    names = "abcdefghi"
    lines = [f"a: &a {first}"]
    for place in range(1, 9):
        lines.append(f"{names[place]}: &{names[place]} " + item.format(", ".join([f"*{names[place - 1]}"] * 9)))
    return "\n".join(lines)


RECIPES = (
    recipe("a key twice", "seed: 1\nseed: 2\n", "key 'seed' stands in line 1 and again in line 2"),
    recipe("a key twice in a section", "cam:\n  width: 1\n  width: 1\n", "stands in line 2 and again in line 3"),
    recipe("a key dotted and in its section", "cam: {width: 1}\ncam.width: 1\n", "'cam.width' stands twice"),
    recipe("an unknown key", "cam: {widht: 1}\n", "did you mean 'cam.width'?"),
    recipe("an unknown section", "camera: {width: 1}\n", "unknown key 'camera.width'"),
    recipe("a number for a section", "cam: 5\n", "it is a section"),
    recipe("a list for a number", "cam: {width: [1, 2]}\n", "must be number"),
    recipe("a mapping for a number", "cam: {width: {a: 1}}\n", "must be number"),
    recipe("a text for a number", "cam: {width: wide}\n", "must be number"),
    recipe("a number that overflows", "cam: {width: 1e400}\n", "must be number in [0.125, 2]"),
    recipe("infinity", "cam: {width: .inf}\n", "must be number in [0.125, 2]"),
    recipe("NaN", "cam: {width: .nan}\n", "must be number in [0.125, 2]"),
    recipe("a number of 5000 digits", "seed: " + "9" * 5000 + "\n", "a number of 5000 characters"),
    recipe("a number of 350 digits", "cam: {width: " + "9" * 350 + "}\n", "is beyond all numbers"),
    recipe("a leading zero", "seed: 010\n", "010 could be another number"),
    recipe("an unknown choice", "cam: {backbone: resnet5}\n", "did you mean 'resnet50'?"),
    recipe("a key that is no text", "1: 2\n", "key '1' is read as int"),
    recipe("a list", "- seed\n", "must hold a mapping"),
    recipe("3000 brackets", "[" * 3000, "more than 40 levels"),
    recipe("an anchor in itself", "cam: &x {width: *x}\n", "*x stands inside of what it names"),
    recipe("aliases that grow", growing("[1, 1]", "[{}]"), "more than 5000 values"),
    recipe("merges that grow", growing("{x: 1}", "{{<<: [{}]}}"), "more than 5000 values"),
    recipe("an open bracket", "cam: [\n", "not valid YAML"),
    recipe("a tab", "cam:\n\twidth: 1\n", "not valid YAML"),
    recipe("two documents", "seed: 1\n---\nseed: 2\n", "another document"),
    recipe("code of Python", "seed: !!python/object:os.system x\n", "constructor"),
    recipe("a date that does not exist", "seed: 2024-13-45\n", "'2024-13-45' is no timestamp"),
    recipe("Latin-1", "cam: {backbone: rés}\n".encode("latin-1"), "it is not UTF-8 (byte 0xe9 in line 1)"),
    recipe("UTF-16 without its mark", "seed: 1\n".encode("utf-16-le"), "holds NUL"),
    recipe("half a megabyte", "a: " + "x" * 500_000, "500003 bytes"),
    recipe("a picture", b"\x89PNG\r\n\x1a\n\x00\x00", "it is not UTF-8"),
    Kind("recipe: a folder", (*PLAN, "--recipe", "FOLDER/r.yaml"), "does not exist", 2, {"r.yaml/x": ""}),
    Kind("recipe: a file that is not there", (*PLAN, "--recipe", "FOLDER/r.yaml"), "does not exist", 2),
)
OVERRIDES = (
    override("an unknown key", ("cam.widht=1",), "did you mean 'cam.width'?"),
    override("no value", ("demo",), "is not of the form key=value"),
    override("a section", ("cam=1",), "it is a section"),
    override("an empty key", ("=1",), "unknown key ''"),
    override("a comment", ("dataset.root=/data/run #1",), "takes all after # for a comment"),
    override("a seed that is too large", ("seed=99999999999",), "must be integer in [0, 2147483647]"),
    override("a seed below 0", ("seed=-1",), "must be integer in [0, 2147483647]"),
    override("a seed in words", ("seed=one",), "must be integer"),
    override("a fraction for an integer", ("cam.crop_size=32.5",), "must be integer"),
    override("no multiple", ("cam.crop_size=33",), "a multiple of 16"),
    override("a key of 5000 characters", (f"{LONG}=1",), "(5000 characters)"),
    override("a value of 5000 characters", (f"cam.backbone={LONG}",), "(5002 characters)"),
    override("a path of 5000 characters", (f"dataset.root={LONG}",), "the path is too long"),
    override("a path with NUL", ('dataset.root="a\\0b"',), "cannot hold NUL"),
    override("the home of nobody", ("dataset.root=~nobody-is-called-so/x",), "home directory"),
    override("an open bracket", ("cam.width=[",), "is not valid YAML"),
    override("a root that names itself", ("dataset.name=voc2012", "dataset.root=${dataset.root}/x"), "cannot refer to"),
    override("an unknown data set", ("dataset.name=voc2021",), "did you mean 'voc2012'?"),
)
OPTIONS = (
    option("an unknown verb", ("paln", "ssc"), "there is no verb 'paln'; did you mean 'plan'?"),
    option("an unknown method", ("plan", "scc"), "did you mean 'ssc'?"),
    option("an unknown recipe", (*PLAN, "--recipe", "dmo"), "did you mean 'demo'?"),
    option("an unknown option", (*PLAN, "--sedes", "1"), "did you mean '--seeds'?"),
    option("an unknown stage", (*PLAN, "--until", "cam_scor"), "did you mean 'cam_score'?", 1),
    option("seeds that are too large", (*PLAN, "--seeds", "99999999999"), "must be integer in [0, 2147483647]"),
    option("seeds below 0", (*PLAN, "--seeds=-1"), "must be integer in [0, 2147483647]"),
    option("a seed twice", (*PLAN, "--seeds", "1,1"), "seeds are distinct"),
    option("seeds in words", (*PLAN, "--seeds", "one"), "is not a list of integers"),
    option("an empty seed", (*PLAN, "--seeds", "1,"), "is not a list of integers"),
    option("a seed of 5000 digits", (*PLAN, "--seeds", "9" * 5000), "(5000 characters)"),
    option("a home below a file", (*PLAN, "--home", "/dev/null/x"), "/dev/null is a file, not a folder"),
    option("a home of 5000 characters", (*PLAN, "--home", LONG), "the path is too long"),
    option("a store that is a file", (*PLAN, "--store", "/dev/null"), "/dev/null is a file, not a folder"),
    option("a store of another kind", (*PLAN, "--store", "ftp://host/x"), "not an address of a store", 1),
    option("a tracking folder", (*PLAN, "--tracking", "/tmp/mlruns"), "Tracking cannot use the address", 1),
    option("a relative database", (*PLAN, "--tracking", "sqlite:///a.db"), "is relative", 1),
    option("no trials", (*TUNE, "--trials", "0"), "'0' is no integer from 1 to 1000000"),
    option("trials in words", (*TUNE, "--trials", "ten"), "'ten' is no integer"),
    option("a sampler's seed that is too large", (*TUNE, "--search-seed", "4294967296"), "from 0 to 2147483647"),
    option("seconds that are no number", (*TUNE, "--stage-cost-limit", "nan"), "is no number of seconds"),
    option("an unknown rule", (*TUNE, "--select", "hold_out"), "did you mean 'held_out'?"),
    option("an unknown space", (*TUNE, "--space", "scc"), "did you mean 'ssc'?"),
    option("an unknown sampler", (*TUNE, "--dry-run", "--sampler", "cmeas"), "did you mean 'cmaes'?", 1),
    option(
        "an unknown metric", (*TUNE, "--dry-run", "--metric", "cam/miou_trian"), "did you mean 'cam/miou_train'?", 1
    ),
    option("a seed to confirm twice", (*TUNE, "--confirm-seeds", "2,2"), "seeds are distinct"),
    option("a run that is not there", ("report", "20010101"), "there is no run"),
    option("a run with a path for a name", ("report", "../x"), "is no id of a run"),
)
SPACES = (
    space("a key twice", keys("cam.width: {float: [0.5, 1]}\n  cam.width: {float: [0.5, 1]}"), "again in line 4"),
    space("a kind twice", keys("cam.width: {float: [0.5, 1], float: [0.2, 1]}"), "key 'float' stands twice in line 3"),
    space("an unknown entry", "mehtod: ssc\nkeys: {}\n", "method: the name of the method"),
    space("an unknown key", keys("cam.widht: {float: [0.5, 1]}"), "did you mean 'cam.width'?"),
    space("an unknown kind", keys("cam.width: {flaot: [0.5, 1]}"), "did you mean 'float'?"),
    space("an unknown option", keys("cam.width: {float: [0.5, 1], lgo: true}"), "did you mean 'log'?"),
    space("bounds turned round", keys("cam.width: {float: [1, 0.5]}"), "1 is not below 0.5"),
    space("bounds out of range", keys("cam.width: {float: [0.5, 9]}"), "9 must be number in [0.125, 2]"),
    space("infinite bounds", keys("cam.width: {float: [0.5, .inf]}"), "inf must be number"),
    space("steps without number", keys("cam.width: {float: [0.5, 1], step: .nan}"), "step a number above 0"),
    space("steps without end", keys("cam.width: {float: [0.5, 1], step: 1.0e-300}"), "more than 1000000 values"),
    space("one value", keys("cam.backbone: {categorical: [resnet50]}"), "at least two values"),
    space("a value twice", keys("cam.backbone: {categorical: [resnet50, resnet50]}"), "stands there twice"),
    space("a circle", keys("cam.width: {float: [0.5, 1], when: {cam.width: [1]}}"), "depends on itself"),
    space("another method's", "method: wsfcn\nkeys: {seed: {int: [0, 1]}}\n", "is not searched"),
    space("no mapping", "- 1\n", "must hold method and keys"),
    space("3000 brackets", "[" * 3000, "more than 40 levels"),
    space("Latin-1", "méthod: ssc\n".encode("latin-1"), "it is not UTF-8"),
    space("an empty file", "", "must hold method and keys"),
)
LISTS = (
    listed("names with .jpg", "a.jpg\n", "it ends with .jpg"),
    listed("names with .JPG", "a.JPG\n", "it ends with .JPG"),
    listed("names with .jpeg", "a.jpeg\n", "it ends with .jpeg"),
    listed("paths", "JPEGImages/a\n", "it holds a folder"),
    listed("paths of Windows", "JPEGImages\\a\n", "it holds a folder"),
    listed("two columns", "a a\n", "it holds blanks"),
    listed("a name twice", "a\na\n", "image a is also in line 1"),
    listed("a name of 5000 characters", LONG, "it is too long"),
    listed("a character that cannot be seen", "a\u200b\n", "characters that cannot be seen"),
    listed("NUL", "a\0b\n", "line 1 holds NUL"),
    listed("Latin-1", "ä\n".encode("latin-1"), "save it as UTF-8"),
    listed("numbers of VOC", "2007000032\n", "the name of the image is 2007_000032"),
    listed("an empty file", "", "the list is empty"),
    Kind("data set: a folder that is not there", (*CHECK, "dataset.root=FOLDER/absent"), "folder of the data set is"),
    Kind("data set: a folder without pictures", (*CHECK, "dataset.root=FOLDER/set/ImageSets"), "no folder JPEGImages"),
)
LABELS = (
    labels("an unknown class", "l.txt", "a catt\n", "unknown class 'catt'; did you mean 'cat'?"),
    labels("a class of 5000 characters", "l.txt", f"a {LONG}\n", "(5000 characters)"),
    labels("commas", "l.txt", "a,cat\n", "it holds a comma"),
    labels("names with .jpg", "l.txt", "a.jpg cat\n", "it ends with .jpg"),
    labels("an image twice", "l.txt", "a cat\na dog\n", "image a has a second line"),
    labels("NUL", "l.txt", "a cat\0\n", "holds NUL"),
    labels("Latin-1", "l.txt", "ä cat\n".encode("latin-1"), "save it as UTF-8"),
    labels("JSON with an image twice", "l.json", '{"a": ["cat"], "a": ["dog"]}', "image a stands twice"),
    labels("JSON with a text for a list", "l.json", '{"a": "cat"}', "found a text"),
    labels("JSON with numbers", "l.json", '{"a": [8]}', "found a list with other things"),
    labels("JSON with null", "l.json", '{"a": null}', "found null"),
    labels("JSON with an object", "l.json", '{"a": {"cat": 1}}', "found an object"),
    labels("JSON of 100000 brackets", "l.json", "[" * 100_000, "it nests without end"),
    labels("JSON that is a list", "l.json", json.dumps([1]), "holds no object"),
    labels("JSON that is cut", "l.json", '{"a": ["ca', "not valid JSON"),
    labels("a pickle", "l.npy", b"\x93NUMPY", "are never loaded"),
    Kind(
        "label file: one that is not there",
        (*CHECK, "dataset.root=FOLDER/set", "dataset.image_label_file=FOLDER/no.txt"),
        "the label file is missing",
    ),
)
WEIGHTS = (
    weights("an empty file", b"", "is empty"),
    weights("a web page", b"<!DOCTYPE html>", "is a web page"),
    weights("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
    weights("safetensors", (50).to_bytes(8, "little") + b'{"a": {}}', "safetensors"),
    weights("Keras", b"\x89HDF\r\n\x1a\n", "HDF5"),
    weights("an archive", b"\x1f\x8b\x08\x00", "compressed archive"),
    weights("a damaged zip", b"PK\x03\x04" + b"x" * 100, "cannot be read"),
    weights("a text", b"these are no weights", "cannot be read"),
    weights("zeros", bytes(1000), "cannot be read"),
    weights("a file that is cut early", cut(0.1), "cannot be read"),
    weights("a file that is cut late", cut(0.9), "cannot be read"),
    weights("a pickled object", saved({"args": argparse.Namespace(lr=1)}), "which is never run"),
    weights("a list", saved([torch.ones(1)]), "the file holds a list"),
    weights("NaN", saved({"features.0.0.weight": torch.full((4,), torch.nan)}), "holds 4 values of 4 that are not"),
    weights("infinity", saved({"state_dict": {"features.0.0.weight": torch.full((4,), torch.inf)}}), "not finite"),
    weights("complex numbers", saved({"features.0.0.weight": torch.ones(1, dtype=torch.complex64)}), "complex64"),
    Kind(
        "weights: a folder",
        (*PLAN, *MOBILENET, "weights.mobilenet_v2=FOLDER/set"),
        "is a folder, not a file",
    ),
    Kind("weights: a file that is not there", (*PLAN, *MOBILENET, "weights.mobilenet_v2=no.pth"), "does not exist"),
    Kind(
        "weights: another placeholder",
        (*PLAN, *MOBILENET, "weights.mobilenet_v2=${dataset.home}/w.pth"),
        "only ${dataset.root} at the start is replaced",
    ),
    weights("a .params without arrays", b"\x12\x01" + bytes(30), "holds no tensors", "w.params"),
    weights("a damaged .params", b"\x12\x01" + bytes(14) + b"\xff" * 8, "claims to hold", "w.params"),
)
ENVIRONMENT = (
    Kind(
        "environment: WSSS_HOME below a file",
        PLAN,
        "is a file, not a folder",
        2,
        environment={"WSSS_HOME": "/dev/null"},
    ),
    Kind("environment: WSSS_HOME too long", PLAN, "the path is too long", 2, environment={"WSSS_HOME": LONG}),
    Kind("environment: WSSS_STORE a file", PLAN, "is a file, not a folder", 2, environment={"WSSS_STORE": "/dev/null"}),
    Kind("environment: WSSS_STORE nonsense", PLAN, "not an address", environment={"WSSS_STORE": "s3:///x"}),
    Kind("environment: MLFLOW_TRACKING_URI nonsense", PLAN, "cannot use", environment={"MLFLOW_TRACKING_URI": "here"}),
    Kind("environment: RAY_ADDRESS nonsense", PLAN, "is no address", environment={"RAY_ADDRESS": "here"}),
    Kind(
        "environment: RAY_ADDRESS without a cluster", PLAN, "nobody answers", environment={"RAY_ADDRESS": "h.invalid:1"}
    ),
)
KINDS = (*RECIPES, *OVERRIDES, *OPTIONS, *SPACES, *LISTS, *LABELS, *WEIGHTS, *ENVIRONMENT)
