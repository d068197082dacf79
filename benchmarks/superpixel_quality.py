"""Superpixels of a trained superpixel network against SLIC of the same count, on pictures with masks.

    python benchmarks/superpixel_quality.py FOLDER/voc_mini WEIGHTS [--images 100] [--picture FILE.png]

WEIGHTS: the network's file, as `wsss export msa superpixel_train` writes it or in any other spelling. Boundary recall
(within 2 pixels), undersegmentation error, achievable segmentation accuracy, superpixels of a picture, the share of its
pixels that lie on their borders (ragged borders find more of a boundary by chance), seconds of a picture on one thread,
and what is left of masks that are shrunk to 12 x 12 and refined by the network's superpixels, the number by which the
official training watches itself. No mask was used to train either. With --picture: some of the pictures with the
borders of both.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "methods"), str(ROOT)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from wsss.data.config import DatasetConfig  # noqa: E402
from wsss.data.dataset import load_dataset  # noqa: E402
from wsss.data.superpixels import slic_superpixels  # noqa: E402
from wsss.data.transforms import channels_first, normalize, resize  # noqa: E402
from wsss.evaluation.confusion import confusion_matrix, miou  # noqa: E402
from wsss.evaluation.superpixel_quality import borders, superpixel_quality  # noqa: E402
from wsss.nn.checkpoint import read_checkpoint, state_dict_of  # noqa: E402
from wsss.ops.superpixel_affinity import hard_superpixels  # noqa: E402
from wsss_methods.msa.inference import padded_size, resized  # noqa: E402
from wsss_methods.msa.recipe import CELL  # noqa: E402
from wsss_methods.msa.superpixel_network import (  # noqa: E402
    SuperpixelNetwork,
    load_superpixel_network,
    scores_from_coarse_masks,
)

SHOWN = 4


@torch.no_grad()
def network_superpixels(network: SuperpixelNetwork, image: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    """Ids int32 (H, W) of a picture, and the association (1, 9, H', W') at the size that the network sees."""
    size = (image.shape[0], image.shape[1])
    planes = torch.from_numpy(channels_first(normalize(image)))[None]
    association = network(resized(planes, padded_size(size, 1.0)))
    ids = hard_superpixels(association, CELL)[0].numpy().astype(np.int32)
    return resize(ids, size, "nearest"), association


def coarse_masks(truth: np.ndarray, association: torch.Tensor, num_classes: int) -> np.ndarray:
    """Confusion matrix of a mask with what superpixels make of it once it was shrunk."""
    height, width = association.shape[2:]
    mask = torch.from_numpy(resize(truth, (height, width), "nearest").astype(np.int64))[None]
    label = scores_from_coarse_masks(mask, association, num_classes).argmax(dim=1)[0].numpy().astype(np.uint8)
    return confusion_matrix(truth, resize(label, (truth.shape[0], truth.shape[1]), "nearest"), num_classes)


def slic_of_count(image: np.ndarray, wanted: int, found: np.ndarray, compactness: float) -> np.ndarray:
    """SLIC gives fewer than it is asked for: asked again for more, up to three times, until 3 % are missing at most."""
    asked = float(wanted)
    for _ in range(3):
        count = len(np.unique(found))
        if abs(count - wanted) <= 0.03 * wanted:
            break
        asked *= wanted / count
        found = slic_superpixels(image, round(asked), compactness)
    return found


def outlined(image: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """A picture with the borders of its superpixels."""
    shown = image.copy()
    shown[borders(ids)] = (255, 230, 0)
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder in the layout of VOC")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--images", type=int, default=100, help="evenly spread over the split")
    parser.add_argument("--compactness", type=float, default=10.0, help="of SLIC")
    parser.add_argument("--picture", type=Path, help="PNG of some pictures: the network's superpixels, SLIC's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset(DatasetConfig(name="voc2012", root=arguments.root), Path(".wsss"))
    view = dataset.view({"images", "masks"}, arguments.split)
    names = view.names[:: max(1, len(view.names) // arguments.images)][: arguments.images]
    network = load_superpixel_network(state_dict_of(read_checkpoint(arguments.weights)), where=str(arguments.weights))
    rows: dict[str, list[Any]] = {"superpixel network": [], "SLIC": []}
    total = np.zeros((dataset.num_classes,) * 2, dtype=np.int64)
    shown = []
    for number, name in enumerate(names):
        image, truth = view.image(name), view.mask(name)
        start = time.perf_counter()
        learned, association = network_superpixels(network, image)
        middle = time.perf_counter()
        slic = slic_superpixels(image, len(np.unique(learned)), arguments.compactness)
        end = time.perf_counter()
        slic = slic_of_count(image, len(np.unique(learned)), slic, arguments.compactness)
        for kind, ids, seconds in (("superpixel network", learned, middle - start), ("SLIC", slic, end - middle)):
            quality = superpixel_quality(ids, truth)
            rows[kind].append([*vars(quality).values(), borders(ids).mean(), seconds])
        total += coarse_masks(truth, association, dataset.num_classes)
        if number % max(1, len(names) // SHOWN) == 0 and len(shown) < SHOWN:
            shown.append(np.concatenate([outlined(image, learned), outlined(image, slic)], axis=1))
    print(f"{len(names)} pictures of {arguments.split}, SLIC of compactness {arguments.compactness:g}\n")
    columns = (
        "superpixels",
        "boundary recall",
        "undersegmentation error",
        "achievable accuracy",
        "count",
        "border pixels",
    )
    print(f"| {' | '.join((*columns, 'seconds'))} |\n{'|---' * 7}|")
    for kind, values in rows.items():
        recall, leak, accuracy, count, border, seconds = np.nanmean(np.array(values), axis=0)
        quality = f"{recall:.3f} | {leak:.4f} | {accuracy:.4f}"
        print(f"| {kind} | {quality} | {count:.0f} | {100 * border:.0f} % | {seconds:.2f} |")
    print(f"\nmasks shrunk to 12 x 12 and refined by the network's superpixels: mIoU {100 * miou(total):.2f}")
    if arguments.picture:
        width = min(picture.shape[1] for picture in shown)
        scaled = [resize(p, (round(p.shape[0] * width / p.shape[1]), width), "bilinear") for p in shown]
        Image.fromarray(np.concatenate(scaled)).save(arguments.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
