"""Every kind of bad input is told once, with its place and a remedy. `bad_inputs.md` is the table of what is seen.

`WSSS_WRITE_TABLE=1 python -m pytest tests/commands/test_bad_inputs.py` writes the table again.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.commands.bad_inputs import KINDS, Kind

from wsss.commands.main import main
from wsss.data.palette import write_palette_mask

TABLE = Path(__file__).with_name("bad_inputs.md")
HEAD = """# Bad input, and what the user sees

Written by `test_bad_inputs.py`.

| brought | exit code | seen |
|---|---|---|
"""
# Of this process, imports included; how busy the machine is makes no difference.
SECONDS = 20


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures in the layout of VOC."""
    root = tmp_path_factory.mktemp("set")
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name in ("2007_000032", "a"):
        Image.new("RGB", (16, 16)).save(root / "JPEGImages" / f"{name}.jpg")
        write_palette_mask(root / "SegmentationClass" / f"{name}.png", np.full((16, 16), 8, dtype=np.uint8))
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_000032\n")
    return root


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, str]]:
    """Rows of the table by what is brought; written at the end where that is asked for. Kinds not tried keep theirs."""
    lines = TABLE.read_text().splitlines(keepends=True)[6:] if TABLE.is_file() else []
    found = {line.split(" | ")[0].removeprefix("| "): line for line in lines}
    yield found
    if os.environ.get("WSSS_WRITE_TABLE") == "1":
        TABLE.write_text(HEAD + "".join(found[kind.brought] for kind in KINDS if kind.brought in found))


def row(kind: Kind, code: object, said: str) -> str:
    return f"| {kind.brought} | {code} | {said.replace('|', chr(92) + '|')} |\n"


@pytest.mark.parametrize("kind", KINDS, ids=[kind.brought for kind in KINDS])
def test_it_is_told(
    kind: Kind,
    shared_home: Path,
    small_set: Path,
    rows: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(small_set, tmp_path / "set")
    for name, content in kind.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("WSSS_HOME", str(shared_home))
    for name, value in kind.environment.items():
        monkeypatch.setenv(name, value.replace("FOLDER", str(tmp_path)))
    begun = time.process_time()
    try:
        code = main([word.replace("FOLDER", str(tmp_path)) for word in kind.words])
    except SystemExit as stop:  # how argparse refuses
        code = stop.code
    assert time.process_time() - begun < SECONDS
    out, err = capsys.readouterr()
    text = err if "error: " in err else out
    assert code == kind.code, text
    assert kind.message in text and "Traceback" not in out + err
    assert len(text) < 8000
    told = text[text.index("error: ") + 7 :].splitlines()
    if err and "usage: " not in err:
        assert any(line.startswith("  where: ") for line in told) and any(line.startswith("  do: ") for line in told)
    said = f"{told[0]} {told[1].strip().removeprefix('- ')}" if told[0].endswith(":") else told[0]
    for folder, word in ((tmp_path, "FOLDER"), (shared_home, "HOME"), (Path.cwd(), "HERE")):
        said = said.replace(str(folder), word)
    # What PyTorch, Python and the resolver of names say depends on their versions.
    said = re.sub(r"(the weights file cannot be read|not valid JSON|nobody answers at \S+ = \S+): .*", r"\1: ...", said)
    rows[kind.brought] = row(kind, code, said if len(said) <= 240 else f"{said[:240]}...")
    if os.environ.get("WSSS_WRITE_TABLE") != "1":
        assert rows[kind.brought] in TABLE.read_text(), "write the table again, and read what changed"


def test_the_table_has_every_kind_once() -> None:
    named = [kind.brought for kind in KINDS]
    assert len(set(named)) == len(named) >= 120
    if os.environ.get("WSSS_WRITE_TABLE") != "1":
        lines = TABLE.read_text().splitlines()[6:]
        assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == named
