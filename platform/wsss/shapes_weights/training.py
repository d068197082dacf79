"""Trains the files of `wsss.shapes_weights`: `python -m wsss.shapes_weights.training [FOLDER]`, minutes on one core.

As ImageNet classifiers are trained: one object a picture, crops of any part of it (Szegedy et al., 2015, here from a
fifth of the area on), label smoothing, SGD with a cosine rate. No mask is looked at. The pictures are of no set that a
recipe runs on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.data.shapes import SHAPE_CLASSES, render_single
from wsss.data.transforms import IMAGENET_MEAN, IMAGENET_STD, channels_first
from wsss.nn.mobilenet import MobileNetV2
from wsss.nn.resnet import ResNet, resnet_structure
from wsss.shapes_weights import SHAPES_WEIGHTS, shapes_file

PICTURES, EPOCHS, BATCH = 4096, 10, 64
SIZE, CROP = 112, 96
LEARNING_RATE, WARMUP_STEPS = 0.1, 50
SEED = 0
STREAM = 7777


def train_classifier(name: str, pictures: int = PICTURES, epochs: int = EPOCHS) -> tuple[dict[str, Tensor], float]:
    """State dict of a backbone of `SHAPES_WEIGHTS` in float16, and its accuracy on the crops of the last epoch."""
    torch.manual_seed(SEED)
    width = SHAPES_WEIGHTS[name]
    body = MobileNetV2(width, output_stride=32) if name == "mobilenet_v2" else ResNet(resnet_structure(18, width=width))
    classifier = nn.Linear(body.channels[-1], len(SHAPE_CLASSES))
    parameters = [*body.parameters(), *classifier.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4, nesterov=True)
    rendered = [render_single(SIZE, STREAM, index) for index in range(pictures)]
    right = 0.0
    steps = epochs * (pictures // BATCH)
    for step, (images, labels) in enumerate(_batches(rendered, epochs)):
        rate = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = classifier(body(images)[-1].mean(dim=(2, 3)))
        optimizer.zero_grad()
        F.cross_entropy(logits, labels, label_smoothing=0.1).backward()
        optimizer.step()
        if step >= steps - pictures // BATCH:
            right += float((logits.argmax(dim=1) == labels).float().mean()) / (pictures // BATCH)
    state = {key: value.half() if value.is_floating_point() else value for key, value in body.state_dict().items()}
    return state, right


def _batches(rendered: list[tuple[np.ndarray, int]], epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """images float32 (BATCH, 3, CROP, CROP), labels int64 (BATCH,)."""
    rng = np.random.default_rng(SEED)
    for _ in range(epochs):
        order = rng.permutation(len(rendered))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = [rendered[index] for index in order[start : start + BATCH]]
            crops = np.stack([_crop(picture, rng) for picture, _ in chosen])
            yield torch.from_numpy(crops), torch.tensor([kind for _, kind in chosen])


def _crop(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A part of the picture of any place and shape, turned, mirrored and lit: float32 (3, CROP, CROP)."""
    area, aspect = rng.uniform(0.2, 1.0), np.exp(rng.uniform(-0.29, 0.29))
    height, width = (min(SIZE, round(SIZE * float(np.sqrt(area * ratio)))) for ratio in (1 / aspect, aspect))
    top, left = int(rng.integers(SIZE - height + 1)), int(rng.integers(SIZE - width + 1))
    part = cv2.resize(picture[top : top + height, left : left + width], (CROP, CROP), interpolation=cv2.INTER_LINEAR)
    pixels = np.rot90(part, int(rng.integers(4))).astype(np.float32) / 255 * rng.uniform(0.8, 1.2)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    mean, deviation = (np.array(values, dtype=np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return channels_first(((pixels - mean) / deviation).astype(np.float32))


def main() -> None:
    """Write the files into FOLDER, or in the place of those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER")
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    for name in SHAPES_WEIGHTS:
        state, right = train_classifier(name)
        path = shapes_file(name) if folder is None else folder / shapes_file(name).name
        torch.save(state, path)
        print(f"{path}: {100 * right:.1f} % of the crops of the last epoch", flush=True)


if __name__ == "__main__":
    main()
