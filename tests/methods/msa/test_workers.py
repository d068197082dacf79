"""One and two workers give the same losses and weights, with the contrast loss's count over the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.gloo import run_on_gloo
from tests.methods.in_process import run_pipeline
from tests.methods.two_workers import in_two_workers, worker

from wsss.data.dataset import load_dataset
from wsss.execution.stage_job import StageJob
from wsss.recipe import load_recipe
from wsss.store import open_store
from wsss_methods.msa import METHOD
from wsss_methods.msa.losses import contrast_loss

SMALL = [
    "dataset.shapes.train=12",
    "dataset.shapes.train_aug_extra=4",
    "dataset.shapes.val=1",
    "dataset.shapes.size=64",
    "superpixels.crop_size=64",
    "superpixels.num_epochs=1",
    "superpixels.base_channels=4",
    "train.crop_size=64",
    "train.batch_size=8",
    "train.num_epochs=2",
    "saliency.segments=30",
]
# Case -> stage and overrides.
CASES = {
    "image": ("cam_train", []),
    "saliency": ("cam_train", ["contrast.target=saliency", "contrast.patches=1", "contrast.ap_iterations=0"]),
    "plain": ("cam_train", ["network.dcr=false", "network.gradient_stop=false", "contrast.weight=0"]),
    "superpixels": ("superpixel_train", []),
}


def job_of(folder: Path, stage_name: str, overrides: list[str]) -> StageJob:
    recipe = load_recipe(METHOD.recipe_type, METHOD.recipe_path("demo"), [*SMALL, *overrides])
    dataset, store = load_dataset(recipe.dataset, folder), open_store(str(folder / "store"))
    pipeline = METHOD.pipeline(recipe, dataset)
    stage = pipeline.stage(stage_name)
    upstream = run_pipeline(pipeline, dataset, store, list(stage.inputs.values())).artifacts if stage.inputs else {}
    view = dataset.view(stage.reads, stage.image_list)
    inputs = {role: upstream[name] for role, name in stage.inputs.items()}
    return StageJob(stage=stage, key="0" * 32, view=view, inputs=inputs, store=store)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """Number of workers -> case -> history and weights."""
    folder = tmp_path_factory.mktemp("home")
    jobs = {name: job_of(folder, stage, overrides) for name, (stage, overrides) in CASES.items()}
    return {1: worker(0, 1, jobs), 2: in_two_workers(jobs)}


@pytest.mark.parametrize("case", sorted(CASES))
def test_two_workers_give_the_losses_and_weights_of_one(results: dict[int, Any], case: str) -> None:
    one, two = results[1][case], results[2][case]
    assert one["history"].keys() == two["history"].keys()
    assert len(one["history"]["loss"]) == 4 - 2 * (case == "superpixels") and np.ptp(one["history"]["loss"]) > 0
    assert ("loss/contrast" in one["history"]) == (case in ("image", "saliency"))
    for series, values in one["history"].items():
        np.testing.assert_allclose(two["history"][series], values, rtol=1e-5, atol=1e-9, err_msg=series)
    for name, value in one["weights"].items():
        np.testing.assert_allclose(two["weights"][name].numpy(), value.numpy(), rtol=1e-4, atol=1e-7, err_msg=name)


def patches(kept: tuple[bool, bool]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two patches of each of two workers; those of a worker have both classes and background, or no class."""
    generator = torch.Generator().manual_seed(0)
    foreground = torch.rand(4, 2, 3, 4, generator=generator, dtype=torch.float64)
    for rank, has_both in enumerate(kept):
        foreground[2 * rank : 2 * rank + 2] *= has_both
    return foreground, torch.randn(4, 3, 3, 4, generator=generator, dtype=torch.float64)


KEPT = ((True, True), (True, False), (False, False))


def shares(rank: int, world_size: int) -> list[tuple[float, torch.Tensor]]:
    """This worker's share of the loss, and the gradient of its patches, for each of `KEPT`."""
    found = []
    for kept in KEPT:
        foreground, target = (maps[2 * rank : 2 * rank + 2] for maps in patches(kept))
        foreground = foreground.clone().requires_grad_()
        share, _ = contrast_loss(foreground, target, 0.1)
        share.backward()
        found.append((share.item(), foreground.grad))
    return found


def test_patches_are_kept_and_counted_over_all_workers() -> None:
    """Also where one worker has no patch to keep and another has, and where none has and all patches are."""
    parts = run_on_gloo(shares, 2)
    for number, kept in enumerate(KEPT):
        foreground, target = patches(kept)
        loss, _ = contrast_loss(foreground.requires_grad_(), target, 0.1)
        loss.backward()
        assert sum(part[number][0] for part in parts) == pytest.approx(loss.item(), rel=1e-12)
        assert (parts[1][number][0] == 0) == (kept == (True, False))
        torch.testing.assert_close(torch.cat([part[number][1] for part in parts]), foreground.grad)
