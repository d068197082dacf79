import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data.dataset import Dataset
from wsss.data.errors import LabelFirewallError
from wsss.data.firewall import forbid_mask_reading

PLATFORM = Path(__file__).resolve().parents[2] / "platform"

# What a training function may try. Runs in a process of its own: an audit hook stays for good.
SCRIPT = """
import os, pathlib, sys
import numpy as np, torch
from PIL import Image
from wsss.data.errors import LabelFirewallError
from wsss.data.firewall import forbid_mask_reading

root, scratch = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
masks = root / "SegmentationClass"
mask = sorted(masks.glob("*.png"))[0]
os.chdir(root)
relative = os.path.join("JPEGImages", "..", "SegmentationClass", mask.name)
(scratch / "file_link.png").symlink_to(mask)
(scratch / "folder_link").symlink_to(masks, target_is_directory=True)

tries = {
    "open": lambda: open(mask, "rb"),
    "open of text": lambda: open(str(mask)),
    "open of bytes": lambda: open(os.fsencode(mask), "rb"),
    "pathlib": lambda: mask.read_bytes(),
    "PIL": lambda: Image.open(mask),
    "np.fromfile": lambda: np.fromfile(mask, dtype=np.uint8),
    "np.load": lambda: np.load(mask, allow_pickle=False),
    "os.open": lambda: os.open(mask, os.O_RDONLY),
    "torch.load": lambda: torch.load(mask, weights_only=True),
    "relative": lambda: open(relative, "rb"),
    "file link": lambda: open(scratch / "file_link.png", "rb"),
    "folder link": lambda: open(scratch / "folder_link" / mask.name, "rb"),
    "hard link": lambda: os.link(mask, scratch / "hard.png"),
    "listdir": lambda: os.listdir(masks),
    "scandir": lambda: list(os.scandir("SegmentationClass")),
    "aug": lambda: open(root / "SegmentationClassAug" / mask.name, "rb"),
    "data loader thread": lambda: __import__("concurrent.futures").futures.ThreadPoolExecutor(1)
    .submit(mask.read_bytes).result(),
}

def training(guard):
    for name, attempt in tries.items():
        try:
            attempt()
        except LabelFirewallError as error:
            assert "weakly supervised" in str(error)
            print("stopped", name)
        else:
            print("READ", name)
    picture = sorted((root / "JPEGImages").glob("*.jpg"))[0]
    Image.open(picture).load()
    (root / "image_labels.txt").read_text()
    (scratch / "out.bin").write_bytes(b"weights")
    print("violations", len(guard.violations) == len(tries))

try:
    with forbid_mask_reading([root / "SegmentationClass", root / "SegmentationClassAug"]) as guard:
        training(guard)
except LabelFirewallError as error:
    print("reported at the end", len(tries), str(error).split()[0])
for name, attempt in tries.items():
    if name not in ("np.load", "torch.load", "open of text"):
        attempt()
print("open again")
"""


def test_no_road_leads_to_a_mask_in_a_fresh_process(shapes: Dataset, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(PLATFORM)}
    command = [sys.executable, "-c", SCRIPT, str(shapes.root), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line.startswith("READ")]
    assert len([line for line in lines if line.startswith("stopped")]) == 17
    assert lines[-3:] == ["violations True", "reported at the end 17 17", "open again"]


def test_the_guard_ends_with_its_context_even_after_an_error(shapes: Dataset):
    view = shapes.view({"masks"}, "val")
    with pytest.raises(LabelFirewallError), forbid_mask_reading(shapes.mask_folders):
        view.mask(view.names[0])
    assert view.mask(view.names[0]).ndim == 2
    with pytest.raises(ZeroDivisionError), forbid_mask_reading(shapes.mask_folders):
        _ = 1 / 0
    assert view.mask(view.names[0]).ndim == 2


def test_contexts_nest(shapes: Dataset, tmp_path):
    path = shapes.mask_path(shapes.names("val")[0], "val")
    (tmp_path / "other").mkdir()
    with pytest.raises(LabelFirewallError), forbid_mask_reading(shapes.mask_folders):
        with forbid_mask_reading([tmp_path / "other"]):
            pass
        path.read_bytes()
    assert path.read_bytes()


def test_a_folder_with_a_similar_name_stays_open(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks_of_crops").mkdir()
    (tmp_path / "masks_of_crops" / "a.txt").write_text("fine")
    with forbid_mask_reading([tmp_path / "masks"]):
        assert (tmp_path / "masks_of_crops" / "a.txt").read_text() == "fine"
        assert list(tmp_path.iterdir())
    with pytest.raises(LabelFirewallError), forbid_mask_reading([tmp_path / "masks"]):
        list((tmp_path / "masks").iterdir())


def test_masks_that_are_links_are_guarded_at_their_targets(tmp_path):
    """A data set is often put together from links into one pool of files."""
    pool = tmp_path / "pool"
    pool.mkdir()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(pool / "mask.png")
    (pool / "picture.txt").write_text("fine")
    masks = tmp_path / "SegmentationClass"
    masks.mkdir()
    (masks / "a.png").symlink_to(pool / "mask.png")
    with pytest.raises(LabelFirewallError, match=r"mask\.png"), forbid_mask_reading([masks]):
        assert (pool / "picture.txt").read_text() == "fine"
        (pool / "mask.png").read_bytes()


def test_the_guard_holds_in_every_thread(shapes: Dataset):
    path = shapes.mask_path(shapes.names("val")[0], "val")
    caught: list[BaseException] = []

    def read() -> None:
        try:
            path.read_bytes()
        except LabelFirewallError as error:
            caught.append(error)

    with pytest.raises(LabelFirewallError, match="swallowed"), forbid_mask_reading(shapes.mask_folders):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    assert len(caught) == 1
