"""What a stage asks of clusters that are empty, grow, or have nodes of several sizes. No Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wsss.execution.nodes import (
    Cluster,
    NodeType,
    NodeTypesError,
    Resources,
    declared_types,
    growing_cluster,
    present_cluster,
    types_of_configuration,
)
from wsss.execution.scheduling import growth_in_words, nodes_asked, stage_resources
from wsss.method import ExecutionSettings
from wsss.pipeline import MapStage, ReduceStage, Reduction, Stage, TrainStage
from wsss.plan import Plan, PlannedStage

HEAD = {"CPU": 0.0, "node:__internal_head__": 1.0}
CPU, GPU = NodeType(name="cpu", cpus=16, most=8), NodeType(name="gpu", cpus=16, gpus=1, most=4)
EMPTY = growing_cluster((CPU, GPU), None, [HEAD])


def never(context: Any) -> Any:
    raise AssertionError


TRAIN = TrainStage(name="train", version=1, config=None, build=never, uses_gpu=True, seed=0)
MAP = MapStage(name="map", version=1, config=None, build=never)
NETWORK = MapStage(name="network", version=1, config=None, build=never, uses_gpu=True)
REDUCE = ReduceStage(name="reduce", version=1, config=None, compute=lambda context: Reduction(metrics={}))


def asked(stage: Stage, cluster: Cluster, **execution: Any) -> tuple[int, int, int]:
    """Workers, and the CPUs and GPUs of each."""
    workers, each = stage_resources(stage, ExecutionSettings(**execution), cluster)
    return workers, each.cpus, each.gpus


def planned(stage: Stage, images: int = 0) -> PlannedStage:
    return PlannedStage(stage, "key", None, True, images, None)


def test_a_cluster_without_nodes_is_asked_for_what_it_can_become() -> None:
    assert asked(TRAIN, EMPTY) == (4, 16, 1), "one worker a GPU, with the CPUs of its node"
    assert asked(TRAIN, EMPTY, device="cpu") == (1, 16, 0)
    assert asked(NETWORK, EMPTY) == (4, 1, 1)
    assert asked(MAP, EMPTY) == (128, 1, 0), "the CPUs of nodes without GPUs"
    assert asked(REDUCE, EMPTY) == (1, 1, 0)


def test_work_without_a_gpu_takes_gpu_nodes_only_where_there_are_no_others() -> None:
    assert asked(MAP, growing_cluster((GPU,), None, [HEAD])) == (64, 1, 0)
    here = growing_cluster((CPU, GPU), None, [HEAD, {"CPU": 16, "GPU": 1}])
    assert asked(MAP, here) == (144, 1, 0), "one that is there anyway is used"


@pytest.mark.parametrize(
    ("nodes", "execution", "expected"),
    [
        ([8], {}, (1, 8, 0)),
        ([64], {}, (1, 16, 0)),
        ([8], {"train_workers": 3}, (3, 2, 0)),
        ([1, 1], {}, (1, 1, 0)),
        ([1, 1], {"train_workers": 2}, (2, 1, 0)),
        ([4, 4], {"train_workers": 3}, (3, 2, 0)),
        ([8, 2], {}, (1, 8, 0)),
        ([8, 2], {"train_workers": 2}, (2, 4, 0)),
        ([4], {"threads": 3}, (1, 3, 0)),
        ([], {}, (1, 1, 0)),
    ],
)
def test_threads_fit_a_node_and_not_the_sum_of_all(
    nodes: list[int], execution: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    assert asked(TRAIN, present_cluster([{"CPU": cpus} for cpus in nodes]), **execution) == expected


def test_gpus_of_one_node_share_its_cpus() -> None:
    assert asked(TRAIN, present_cluster([{"CPU": 32, "GPU": 4}])) == (4, 8, 1)
    mixed = present_cluster([{"CPU": 32, "GPU": 4}, {"CPU": 4, "GPU": 1}])
    assert asked(TRAIN, mixed) == (5, 4, 1), "the worker of the small node has 4"


def test_the_limit_over_all_types_counts_nodes_that_are_there() -> None:
    full = growing_cluster((CPU, GPU), 3, [HEAD, {"CPU": 16}, {"CPU": 16}])
    assert full.room == 1 and full.slots(Resources(gpus=1)) == 1 and full.slots(Resources()) == 48
    assert not growing_cluster((CPU, GPU), 2, [HEAD, {"CPU": 16}, {"CPU": 16}]).grows


def test_a_plan_says_which_nodes_it_will_start() -> None:
    execution = ExecutionSettings()
    assert [(each.name, count) for each, count in nodes_asked(planned(MAP, 40), execution, EMPTY)] == [("cpu", 1)]
    assert [(each.name, count) for each, count in nodes_asked(planned(MAP, 10582), execution, EMPTY)] == [("cpu", 3)]
    plan = Plan((planned(TRAIN, 40), planned(MAP, 10582), planned(REDUCE)))
    assert growth_in_words(plan, execution, EMPTY) == [
        "the cluster grows: cpu (16 CPU, 0 of at most 8 here), gpu (16 CPU + 1 GPU, 0 of at most 4 here)",
        "asks for up to 4 gpu: train 4",
        "asks for up to 3 cpu: map 3, reduce 1",
    ]
    many = growth_in_words(plan, ExecutionSettings(map_workers=500), EMPTY)
    assert "map: 192 of 500 workers fit at a time" in many
    assert growth_in_words(plan, execution, present_cluster([{"CPU": 4}])) == []


def test_types_of_a_launcher_file(repository: Path) -> None:
    import yaml

    config = yaml.safe_load((repository / "cluster" / "aws.yaml").read_text())
    types, limit = types_of_configuration(config)
    assert {each.name for each in types} == set(config["available_node_types"]) - {config["head_node_type"]}
    assert limit == config["max_workers"] and all(each.most and each.cpus for each in types)


def test_declared_types() -> None:
    assert declared_types("{cpu: {CPU: 16, max: 8}, gpu: {CPU: 16, GPU: 1, max: 4}}") == (CPU, GPU)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can not be read"),
        ("4", "can not be read"),
        ("{cpu: 16}", "can not be read"),
        ("{cpu: {CPU: 16}}", "'max' is missing"),
        ("{cpu: {CPU: 16, max: 0}}", "too small"),
        ("{cpu: {CPU: many, max: 1}}", "many"),
        ("{cpu: {CPU: 1, max: 1, TPU: 1}}", "cpu has TPU"),
    ],
)
def test_unreadable_types_are_refused(text: str, message: str) -> None:
    with pytest.raises(NodeTypesError, match=message) as error:
        declared_types(text)
    assert "WSSS_NODE_TYPES" in error.value.where and "max: 8" in error.value.remedy
