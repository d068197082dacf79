"""What dynamic convolutional reconstruction (DCR) does in a trained classification network of MSA.

    python benchmarks/msa_reconstruction.py RUN --home HOME [--images 36]

RUN: a run of MSA whose `cam_train` is in the store. Prints how the classification loss went (means of six equal parts
of the training); the entropy of the kernels that rebuild the features before the last stage (ln 9 = 2.197 is uniform)
and the mean of the gate on them; the best mIoU over thresholds of the CAM on the first pictures of train, with the
scores smoothed by DCR, as the method has it, and without.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "methods"), str(ROOT)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from wsss.commands.arguments import run_folder  # noqa: E402
from wsss.commands.artifacts import selection_of, store_at  # noqa: E402
from wsss.data.dataset import load_dataset  # noqa: E402
from wsss.data.transforms import channels_first, normalize  # noqa: E402
from wsss.evaluation.confusion import miou  # noqa: E402
from wsss.evaluation.curves import threshold_confusions  # noqa: E402
from wsss.run_record import RunRecord  # noqa: E402
from wsss.stages.candidates import read_weights  # noqa: E402
from wsss_methods.msa.inference import class_maps  # noqa: E402
from wsss_methods.msa.networks import CamNetwork, ReconstructionNetwork, ScoreMaps, build_network  # noqa: E402
from wsss_methods.msa.recipe import STATISTICS  # noqa: E402
from wsss_methods.msa.superpixel_network import WEIGHTS as SUPERPIXEL_WEIGHTS  # noqa: E402
from wsss_methods.msa.superpixel_network import load_superpixel_network  # noqa: E402
from wsss_methods.msa.training import WEIGHTS, structure_of  # noqa: E402

THRESHOLDS = tuple(np.arange(0.1, 0.7, 0.05).round(2).tolist())
PARTS = 6


class Watched(nn.Module):
    """A network with DCR whose kernels and gates are noted; `smoothed`: whether its scores are the rebuilt ones."""

    def __init__(self, network: ReconstructionNetwork) -> None:
        super().__init__()
        self.network, self.smoothed = network, True
        self.entropy: list[float] = []
        self.gate: list[float] = []

    def forward(self, image: Tensor, association: Tensor) -> ScoreMaps:
        """As `ReconstructionNetwork.forward`."""
        maps = self.network.features(image, association)
        kernels = maps["kernels4"]
        self.entropy.append(-(kernels * kernels.clamp_min(1e-12).log()).sum(dim=1).mean().item())
        self.gate.append(maps["gate4"].mean().item())
        scores = maps["rebuilt" if self.smoothed else "scores"]
        return ScoreMaps(scores, scores.mean(dim=(2, 3), keepdim=True), maps["x4_rebuilt"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--home", type=Path, default=Path(".wsss"))
    parser.add_argument("--images", type=int, default=36, help="the first of train")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = RunRecord.load(run_folder(arguments.home, arguments.run))
    recipe: Any = selection_of(record).recipe
    store = store_at(record.store_url, arguments.home)
    trained = store.artifact("cam_train", record.keys["cam_train"])
    loss = np.array(trained.json("history.json")["loss/classification"])
    print("classification loss:", " ".join(f"{part.mean():.4f}" for part in np.array_split(loss, PARTS)))
    dataset = load_dataset(recipe.dataset, arguments.home)
    built = build_network(structure_of(recipe.network, dataset.num_classes))
    if not isinstance(built, ReconstructionNetwork):
        print("the network of this run has no DCR")
        return 0
    weights = read_weights(trained, WEIGHTS, 0)
    built.load_state_dict({name: weights[name] for name in built.state_dict()})
    network = Watched(built).eval()
    artifact = store.artifact("superpixel_train", record.keys["superpixel_train"])
    superpixels = load_superpixel_network(read_weights(artifact, SUPERPIXEL_WEIGHTS, 0), "cpu")
    view = dataset.view({"images", "image_labels", "masks"}, "train")
    totals: dict[bool, Any] = {True: 0, False: 0}
    for name in view.names[: arguments.images]:
        planes = channels_first(normalize(view.image(name), *STATISTICS[recipe.network.norm_stats]))
        present = np.flatnonzero(view.image_labels(name)) + 1
        for smoothed in totals:
            network.smoothed = smoothed
            image = torch.from_numpy(planes)[None]
            maps = class_maps(cast(CamNetwork, network), superpixels, image, present, recipe.inference).numpy()
            totals[smoothed] += threshold_confusions(maps, present, view.mask(name), THRESHOLDS, dataset.num_classes)
    print(f"kernels before the last stage: entropy {np.mean(network.entropy):.3f}, gate {np.mean(network.gate):.3f}")
    for smoothed, total in totals.items():
        scores = 100 * np.array([miou(each, "truth") for each in total])
        best = int(scores.argmax())
        print(f"scores {'smoothed' if smoothed else 'as they are'}: mIoU {scores[best]:.2f} at {THRESHOLDS[best]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
