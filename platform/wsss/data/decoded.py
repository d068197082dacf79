"""What only decoding a picture or a mask shows, as plain JSON values that can be remembered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageFile

from wsss.data.reading import opened, read_label_map, require_colors

# Kinds of pictures whose pixels change on the way to a network, and what happens to them.
ODDITIES = {
    "turned": "an EXIF tag says to turn it, which is not done: it is seen as it is stored",
    "profile": "its colour profile is not sRGB and is not applied",
    "CMYK": "it is in CMYK and is converted without a profile",
    "alpha": "it is transparent, which is dropped",
    "frames": "it has several frames, of which the first is taken",
    "16 bits": "it has 16 bits a value, of which the upper 8 are taken",
    "huge": "it has more pixels than Pillow holds safe to decode",
}
_UPRIGHT = 1


def picture_contents(path: Path) -> dict[str, Any]:
    """A picture, decoded whole: "size" [height, width] and "oddities", some of `ODDITIES`.

    Raises:
        DataError: the file is missing, cut off, or no picture that can be read.
    """
    with opened(path, "the picture cannot be decoded", "picture") as image:
        require_colors(image.mode, path)
        size, oddities = [image.height, image.width], _oddities(image)
        # A JPEG is read to its end at an eighth of the size as well, in a third of the time.
        image.draft("RGB", (image.width // 8, image.height // 8))
        image.load()
    return {"size": size, "oddities": oddities}


def mask_contents(path: Path) -> dict[str, Any]:
    """A mask, decoded: "size" [height, width], "counts" {value: pixels} and "colors" as of `palette_colors`.

    Raises:
        DataError: the file is missing, cut off, or holds no class ids.
    """
    mask = read_label_map(path)
    counts = {str(value): pixels for value, pixels in mask.counts.items()}
    return {"size": list(mask.values.shape), "counts": counts, "colors": mask.colors}


def value_counts(contents: Mapping[str, Any]) -> dict[int, int]:
    """Value -> pixels of `mask_contents`; empty where the mask was not decoded."""
    return {int(value): pixels for value, pixels in contents.get("counts", {}).items()}


def _oddities(image: ImageFile.ImageFile) -> list[str]:
    deep = bool(image.tile) and ";16" in str(image.tile[0].args)  # reading the EXIF tags of a PNG decodes it
    profile = image.info.get("icc_profile", b"")
    # Their descriptions are in ASCII, or in UTF-16 since version 4.
    own = bool(profile) and not any("sRGB".encode(code) in profile for code in ("ascii", "utf-16-be"))
    found = {
        "turned": image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT) != _UPRIGHT,
        "profile": own,
        "CMYK": image.mode == "CMYK",
        "alpha": image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info,
        "frames": getattr(image, "n_frames", 1) > 1,
        "16 bits": deep,
        "huge": image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0),
    }
    return [kind for kind, is_there in found.items() if is_there]
