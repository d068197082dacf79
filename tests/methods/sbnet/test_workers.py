"""One and two workers give the same losses and weights in SBNet's CAM training, with every loss on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.methods.in_process import run_pipeline
from tests.methods.sbnet.small_training import SMALL, build_without_dropout, dataset, pipeline
from tests.methods.two_workers import in_two_workers, trained

from wsss.execution.stage_job import StageJob
from wsss.store import open_store


def test_two_workers_give_the_losses_and_weights_of_one(tmp_path: Path) -> None:
    shapes, store = dataset(tmp_path, 4), open_store(str(tmp_path / "store"))
    stages = pipeline(SMALL, build_without_dropout)
    boundaries = run_pipeline(stages, shapes, store, ["boundary"]).artifacts["boundary"]
    stage = stages.stage("cam_train")
    job = StageJob(
        stage=stage,
        key="0" * 32,
        view=shapes.view(stage.reads, stage.image_list),
        inputs={"boundary": boundaries},
        store=store,
    )
    one, two = trained(job), in_two_workers({"cam": job})["cam"]
    assert one["history"].keys() == two["history"].keys() and len(one["history"]["loss"]) == 2
    assert len(one["history"]) == 8 and np.ptp(one["history"]["loss"]) > 0
    for series, values in one["history"].items():
        np.testing.assert_allclose(two["history"][series], values, rtol=1e-5, err_msg=series)
    for name, value in one["weights"].items():
        np.testing.assert_allclose(two["weights"][name].numpy(), value.numpy(), rtol=1e-4, atol=1e-7, err_msg=name)
