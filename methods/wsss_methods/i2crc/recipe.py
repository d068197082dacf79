"""The typed recipe of I2CRC: every setting with its range. Defaults are the published configuration on VOC."""

from __future__ import annotations

from dataclasses import dataclass

from wsss.nn.backbones import BACKBONES
from wsss.recipe import setting


@dataclass(frozen=True)
class CamSettings:
    """The classifier whose class maps are the CAM (official `classification/train.sh`)."""

    backbone: str = setting(
        "vgg16", choices=("vgg16", *BACKBONES), help="of the classifier; vgg16 at stride 8 is published, others have 16"
    )
    width: float = setting(1.0, minimum=0.125, maximum=2, help="width of the backbone; 1 takes ImageNet weights")
    head_width: int = setting(512, minimum=8, maximum=1024, help="channels of the three convolutions behind it")
    normalization: str = setting(
        "frozen",
        choices=("frozen", "batch"),
        help="of a backbone with norms. frozen: ImageNet statistics; batch: trained, for networks without weights",
    )
    input_size: int = setting(
        256, minimum=32, maximum=1024, multiple_of=16, help="images are squeezed to this square, for the CAM too"
    )
    color_jitter: float = setting(
        1.0, minimum=0, maximum=2, help="factor on brightness 0.3, contrast 0.3, saturation 0.3 and hue 0.1"
    )
    batch_size: int = setting(5, minimum=1, maximum=256, help="images in a step, over all workers")
    num_epochs: int = setting(30, minimum=1, maximum=500, help="passes over the training images")
    learning_rate: float = setting(1e-3, above=0, maximum=1, help="SGD rate of the backbone's weights; biases: twice")
    head_lr_mult: float = setting(10.0, minimum=1, maximum=100, help="factor for what is behind the backbone")
    momentum: float = setting(0.9, above=0, maximum=0.999, help="SGD momentum, Nesterov's")
    weight_decay: float = setting(5e-4, minimum=0, maximum=0.1, help="SGD weight decay, of biases too")
    lr_decay_epochs: tuple[int, ...] = setting(
        (5, 10), minimum=1, maximum=500, help="epochs after which the rate falls"
    )
    lr_decay_factor: float = setting(0.1, above=0, maximum=1, help="by which it falls")
    relation_losses: bool = setting(True, help="false: the classification loss alone")
    loss_weight_intra_object: float = setting(
        0.01, minimum=0, maximum=10, help="weight of the distances to the object's prototype, L_cad_ob"
    )
    loss_weight_intra_background: float = setting(
        0.025, minimum=0, maximum=10, help="weight of the distances to the background's prototype, L_cad_bg"
    )
    loss_weight_inter: float = setting(0.1, minimum=0, maximum=10, help="weight of what parts the two, L_csd")
    saliency_size: int = setting(
        256, minimum=16, maximum=1024, help="side of the square at which maps and saliency are compared"
    )
    precision: str = setting("float32", choices=("float32", "amp"), help="amp: mixed precision on a GPU")

    def check(self) -> list[str]:
        """Relations between settings."""
        if self.backbone == "vgg16" and self.normalization == "batch":
            return ["normalization = batch needs a backbone with norms, and vgg16 has none"]
        return []


@dataclass(frozen=True)
class PseudoLabelSettings:
    """Labels from class maps and saliency (official `gen_gt.py`): a recipe's section, and the stage's config."""

    foreground_threshold: float = setting(
        0.3, minimum=0, below=1, help="confidence below it is none, of the background too"
    )
    conflict_threshold: float = setting(
        0.9, above=0, maximum=1, help="a pixel at which two confidences exceed it is ignored"
    )
    saliency_threshold: int = setting(32, minimum=1, maximum=255, help="background this salient (of 255) is ignored")
    attention_threshold: float = setting(
        0.5, minimum=0, maximum=1, help="background where a class map exceeds it is ignored"
    )
    min_object_ratio: float = setting(
        0.01, minimum=0, maximum=0.5, help="an image with a smaller share of object pixels is ignored"
    )


@dataclass(frozen=True)
class RefinementSettings:
    """Object-guided label refinement (official `label_refinement.py`)."""

    enabled: bool = setting(True, help="false: round two trains on the labels of round one")
    initial_for_multiclass: bool = setting(
        True, help="where an image of several classes is predicted background, take the first label"
    )
    missing_class_ignores_background: bool = setting(
        True, help="when a class of the image is not predicted anywhere, ignore the background"
    )
    min_object_ratio: float = setting(
        0.01, minimum=0, maximum=0.5, help="an image with a smaller share of object pixels is ignored"
    )
