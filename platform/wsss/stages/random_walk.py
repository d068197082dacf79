"""Random walk of class maps over learned affinities (IRN's `step/make_sem_seg_labels.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wsss.ops.random_walk import DirectionAffinity, direction_affinity, random_walk
from wsss.pipeline import Arrays, MapStage, StageContext


@dataclass(frozen=True)
class RandomWalkConfig:
    """The walk alone: what the network sees belongs to the edge maps.

    Attributes:
        radius: reach of one step, in positions of the maps.
        beta: power of the affinities.
        exp_times: the walk has 2 ** exp_times steps.
    """

    radius: int
    beta: int
    exp_times: int


def build_random_walk(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config RandomWalkConfig): class maps in role "cam", spread over edge maps in role "edge".

    Returns "walk" float16 (K, h, w) in [0, 1] and "keys" int64 (K,), class ids from 1. The walk is divided by its
    largest value, which a later normalization makes immaterial and which float16 likes. It needs no GPU: an H200 takes
    a fifth of the time of a core, and has more cores than that beside it.
    """
    walks = build_random_walks([context])
    return lambda name: walks(name)[0]


def build_random_walks(contexts: Sequence[StageContext]) -> Callable[[str], Sequence[Arrays]]:
    """`build_random_walk` for several settings: those of one edge map share the affinities of its pairs."""
    radius = max(context.config.radius for context in contexts)

    def walk(name: str) -> Sequence[Arrays]:
        affinities: dict[str, tuple[np.ndarray, DirectionAffinity]] = {}
        return [_walk(context, name, radius, affinities) for context in contexts]

    return walk


def _walk(
    context: StageContext, name: str, radius: int, affinities: dict[str, tuple[np.ndarray, DirectionAffinity]]
) -> Arrays:
    """The walk of one setting; affinities: key of the edge maps -> the image's edges and affinities within `radius`."""
    config: RandomWalkConfig = context.config
    edges, arrays = context.inputs["edge"], context.arrays("cam", name)
    if edges.key not in affinities:
        edge = context.arrays("edge", name)["edge"]
        affinities[edges.key] = edge, direction_affinity(edge, radius)
    edge, affinity = affinities[edges.key]
    walked = random_walk(
        arrays["cam"].astype(np.float32),
        edge,
        config.radius,
        config.beta,
        config.exp_times,
        affinity=affinity,
    )
    largest = walked.max(initial=0.0)
    if largest > 0:
        walked = walked / largest
    return {"walk": walked.astype(np.float16), "keys": arrays["keys"]}


def random_walk_stage(config: RandomWalkConfig, image_list: str) -> MapStage:
    """The walk of the maps of the stage "cam" over those of the stage "edge"."""
    return MapStage(
        name="random_walk",
        version=2,
        config=config,
        inputs={"cam": "cam", "edge": "edge"},
        image_list=image_list,
        build=build_random_walk,
        build_many=build_random_walks,
    )
