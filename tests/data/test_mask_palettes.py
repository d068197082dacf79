"""Masks whose values are no class ids although they look like it: refused; unusual palettes of right ids: accepted."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data.errors import DataError
from wsss.data.palette import SharedPalette, palette_colors, voc_palette
from wsss.data.reading import read_label_map

IDS = np.zeros((6, 8), np.uint8)
IDS[1:3] = 8
IDS[3] = 15
IDS[4] = 255
VOC = voc_palette()
TAB = np.random.default_rng(0).integers(1, 255, (256, 3)).astype(np.uint8)


def saved(path: Path, values: np.ndarray, palette: np.ndarray | None) -> Path:
    image = Image.fromarray(values)
    if palette is not None:
        image.putpalette(palette.astype(np.uint8).tobytes())
    image.save(path)
    return path


def gray(path: Path, bits: int, rows: list[list[int]]) -> Path:
    """A grey PNG of few bits, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = b""
    for row in rows:
        digits = "".join(format(value, f"0{bits}b") for value in row)
        digits += "0" * (-len(digits) % 8)
        lines += b"\0" + bytes(int(digits[place : place + 8], 2) for place in range(0, len(digits), 8))
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


RIGHT = {
    "VOC": (IDS, VOC),
    "no palette": (IDS, None),
    "VOC up to the last class": (np.where(IDS == 255, 0, IDS).astype(np.uint8), VOC[:21]),
    "VOC of two colours": (np.minimum(IDS, 1), VOC[:2]),
    "VOC of four colours": (np.minimum(IDS, 3), VOC[:4]),
    "VOC of sixteen colours": (np.minimum(IDS, 15), VOC[:16]),
    "steps of grey": (IDS, np.repeat(np.arange(256)[:, None], 3, axis=1)),
    "other colours": (IDS, TAB),
    "other colours, some of them VOC's": (IDS, np.concatenate([TAB[:8], VOC[[1]], TAB[9:]])),
    "a grey background": (IDS, np.concatenate([[[128, 128, 128]], TAB[1:]])),
    "black alone": (IDS, np.zeros((256, 3))),
    "red and blue exchanged": (IDS, VOC[:, ::-1]),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_class_ids_come_in_whatever_their_colours(tmp_path: Path, kind: str) -> None:
    values, palette = RIGHT[kind]
    assert np.array_equal(read_label_map(saved(tmp_path / "mask.png", values, palette)).values, values)


def converted(path: Path, **options: object) -> Path:
    Image.fromarray(VOC[IDS]).convert("P", **options).save(path)  # type: ignore[arg-type]
    return path


def test_a_mask_that_went_through_its_colours_is_refused(tmp_path: Path) -> None:
    adaptive = converted(tmp_path / "adaptive.png", palette=Image.Palette.ADAPTIVE)
    with pytest.raises(
        DataError, match=r"no class ids: its palette has VOC's colours in another order.*class 8[\s\S]*adap"
    ):
        read_label_map(adaptive)
    with Image.open(adaptive) as image:  # the same with entries that nothing uses, and a white border
        padded = np.zeros((256, 3), np.uint8)
        own = np.array(image.getpalette()).reshape(-1, 3)
        padded[: len(own)] = np.where(own == VOC[255], 255, own)
        values = np.array(image)
    with pytest.raises(DataError, match="in another order"):
        read_label_map(saved(tmp_path / "padded.png", values, padded))
    with pytest.raises(DataError, match="that of the web"):
        read_label_map(converted(tmp_path / "web.png"))
    alone = np.zeros((2, 2), np.uint8)
    with pytest.raises(DataError, match="value 0 has the colour of class 8"):
        read_label_map(saved(tmp_path / "alone.png", alone, VOC[[8]]))


def test_masks_of_a_folder_whose_palettes_differ_are_refused(tmp_path: Path) -> None:
    """Colours of their own kind, each mask with a palette of its own: no single mask shows it."""
    shared, places = SharedPalette(), np.searchsorted([0, 8, 15], IDS % 255).astype(np.uint8)
    first, second = (
        read_label_map(saved(tmp_path / f"{name}.png", places, TAB[order])).colors
        for name, order in (("a", [0, 8, 15]), ("b", [0, 15, 8]))
    )
    assert shared.conflict(first, "a.png") == ""
    assert "values are places in palettes" in (text := shared.conflict(second, "b.png")) and "a.png" in text


def test_masks_of_a_folder_with_one_palette_agree_even_if_it_is_cut_or_says_nothing() -> None:
    for palette in (VOC, TAB, np.zeros((256, 3), np.uint8)):
        shared = SharedPalette()
        for used in ([0, 1], [0, 8, 255], [15]):
            cut = palette[: used[-1] + 1]
            assert shared.conflict(palette_colors(cut, used), f"{used}.png") == ""


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_is_no_class_id(tmp_path: Path, bits: int) -> None:
    """Pillow makes 17 of a 1 in four bits, which is another class."""
    with pytest.raises(DataError, match=rf"grey with {bits} bits.*8-bit grey[\s\S]*save the class ids with 8 bits"):
        read_label_map(gray(tmp_path / "mask.png", bits, [[0, 1], [1, 3]]))


@pytest.mark.parametrize("mode", ["1", "I;16", "RGB", "RGBA", "LA"])
def test_masks_in_other_modes_say_how_to_mend_them(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray({"I;16": IDS.astype(np.uint16), "1": IDS > 0}.get(mode, IDS)).convert(mode).save(path)
    with pytest.raises(DataError, match=f"in mode {mode}") as caught:
        read_label_map(path)
    if mode in ("1", "I;16"):  # as it says
        snippet = caught.value.remedy.partition(": ")[2]
        exec(snippet, {"Image": Image, "np": np, "file": str(path)})
        assert read_label_map(path).values.max() in (1, 255)
    else:
        assert "loses its class ids" in caught.value.remedy


def test_several_frames_are_no_mask(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (0, 1)]
    frames[0].save(tmp_path / "mask.png", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="has 2 frames"):
        read_label_map(tmp_path / "mask.png")
