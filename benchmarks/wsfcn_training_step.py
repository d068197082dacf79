"""Images per second of WS-FCN's training step, and where its time goes.

    python benchmarks/wsfcn_training_step.py                                  # all backbones; CUDA when there is one
    python benchmarks/wsfcn_training_step.py --backbones vgg16 --crop 161 --batch 1

Full-width networks at their crop (Wide-ResNet-38 321, the others 448: a guess, the paper does not say), random
weights, noise images with two classes each. The step is that of an epoch after the warm-up: forward, pseudo labels
(PAMR and thresholds), both losses, backward, SGD. Shares are of the median step; "data" is the time to augment one
batch on one CPU core, which loader processes spend beside the step and is not part of it. On CUDA float32 (without
TF32) and AMP with channels_last are measured in the same run, so that their ratio means something; on a CPU one step
in float32, without a step to warm up.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
# Runs from a bare checkout as well as from an installation.
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "methods"), str(ROOT)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from benchmarks.training_stages import NoiseData  # noqa: E402
from torch.utils.data import default_collate  # noqa: E402

from wsss.pipeline import StageContext  # noqa: E402
from wsss.train_task import Batch  # noqa: E402
from wsss_methods.wsfcn.losses import (  # noqa: E402
    FocalPenalty,
    class_scores,
    classification_loss,
    denormalized,
    mask_loss,
    pseudo_label,
)
from wsss_methods.wsfcn.networks import PUBLISHED_BACKBONES, Structure, WsFcn, parameter_groups  # noqa: E402
from wsss_methods.wsfcn.recipe import PseudoLabelSettings, TrainSettings  # noqa: E402
from wsss_methods.wsfcn.training import ImageSamples  # noqa: E402

CROPS = {"resnet38": 321, "resnet50": 448, "resnet101": 448, "vgg16": 448}
PARTS = ("forward", "pseudo labels", "losses", "backward", "optimizer")


@dataclass(frozen=True)
class Result:
    """Speed of one backbone in one mode; seconds of each part of the median step."""

    backbone: str
    mode: str
    crop: int
    batch: int
    seconds: dict[str, float]
    data_seconds: float
    peak_gib: float

    @property
    def images_per_second(self) -> float:
        """Of the step alone."""
        return self.batch / sum(self.seconds.values())


class Step:
    """A network with its optimizer and one batch, ready to take steps."""

    def __init__(self, backbone: str, crop: int, batch: int, device: str, amp: bool) -> None:
        torch.manual_seed(0)
        self.device, self.amp = device, amp
        self.network = WsFcn(Structure(21, backbone)).to(device).train()
        settings = TrainSettings(crop_size=crop)
        groups = parameter_groups(
            self.network,
            # Random weights diverge at the published rate; its size does not change the time of a step.
            learning_rate=1e-6,
            weight_decay=settings.weight_decay,
            multipliers=settings.multipliers(backbone),
        )
        self.optimizer = torch.optim.SGD(groups, momentum=settings.momentum)
        self.scaler = torch.amp.GradScaler("cuda", enabled=amp)
        samples = ImageSamples(cast(StageContext, _Context(NoiseData(count=batch))), settings)
        begin = time.perf_counter()
        self.batch: Batch = default_collate([samples.sample(i, np.random.default_rng(i)) for i in range(batch)])
        self.data_seconds = time.perf_counter() - begin
        self.batch = {name: value.to(device) for name, value in self.batch.items()}
        if amp:
            self.network = self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            self.batch["image"] = self.batch["image"].to(memory_format=torch.channels_last)

    def run(self) -> dict[str, float]:
        """One step; seconds of each part."""
        times = [self._now()]
        image, labels = self.batch["image"], self.batch["label"]
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(image.device.type, torch.float16, enabled=self.amp):
            logits = self.network(image)
        logits = logits.float()
        times.append(self._now())
        masks = logits.softmax(dim=1)
        pseudo = pseudo_label(denormalized(image), masks, labels, PseudoLabelSettings())
        times.append(self._now())
        classification = classification_loss(class_scores(logits, masks, FocalPenalty()), labels).mean()
        loss = classification + mask_loss(logits, pseudo.label, labels).mean()
        times.append(self._now())
        self.scaler.scale(loss).backward()
        times.append(self._now())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        times.append(self._now())
        return {part: after - before for part, (before, after) in zip(PARTS, itertools.pairwise(times), strict=True)}

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()


@dataclass(frozen=True)
class _Context:
    """The part of a stage's context that samples read."""

    data: Any


def measure(backbone: str, crop: int, batch: int, device: str, amp: bool, steps: int, warmup: int) -> Result:
    """Median step of `steps` after `warmup` of them."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = Step(backbone, crop, batch, device, amp)
    runs = [step.run() for _ in range(warmup + steps)][warmup:]
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    seconds = {part: statistics.median(run[part] for run in runs) for part in PARTS}
    return Result(backbone, "AMP" if amp else "float32", crop, batch, seconds, step.data_seconds, peak)


def table(results: list[Result]) -> str:
    """Markdown table; the ratio is to the same backbone in float32."""
    base = {result.backbone: result.images_per_second for result in results if result.mode == "float32"}
    titles = ["backbone", "mode", "crop", "batch", "images/s", "ratio", *(f"{part} %" for part in PARTS)]
    titles += ["data, s per batch and core", "CUDA memory (GiB)"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for result in results:
        total = sum(result.seconds.values())
        ratio = result.images_per_second / base[result.backbone] if result.backbone in base else float("nan")
        cells = [result.backbone, result.mode, str(result.crop), str(result.batch)]
        cells += [f"{result.images_per_second:.2f}", f"{ratio:.2f}"]
        cells += [f"{100 * result.seconds[part] / total:.0f}" for part in PARTS]
        cells += [f"{result.data_seconds:.2f}", f"{result.peak_gib:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", choices=PUBLISHED_BACKBONES, default=list(PUBLISHED_BACKBONES))
    parser.add_argument("--crop", type=int, help="side of the crops (default: each backbone's own)")
    parser.add_argument("--batch", type=int, help="images in a step (default: 16 on CUDA, 1 on a CPU)")
    parser.add_argument("--steps", type=int, help="timed steps (default: 10 on CUDA, 1 on a CPU)")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    on_gpu = arguments.device.startswith("cuda")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    batch, steps = arguments.batch or (16 if on_gpu else 1), arguments.steps or (10 if on_gpu else 1)
    results, failed = [], 0
    for backbone in arguments.backbones:
        for amp in (False, True) if on_gpu else (False,):
            crop = arguments.crop or CROPS[backbone]
            print(f"measuring {backbone} {'AMP' if amp else 'float32'} ...", file=sys.stderr, flush=True)
            try:
                results.append(measure(backbone, crop, batch, arguments.device, amp, steps, 3 if on_gpu else 0))
            except torch.cuda.OutOfMemoryError:
                failed += 1
                print(f"{backbone} at batch {batch} does not fit into GPU memory", file=sys.stderr)
    name = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, TF32 off, torch {torch.__version__}\n")
    print(table(results))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
