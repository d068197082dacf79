"""Weights of official code that methods share: state dicts under their published names, and IRN's affinity network."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsss.data.dataset import Dataset
from wsss.nn.checkpoint import Aliases, CheckpointError, canonical_state_dict, read_checkpoint, state_dict_of
from wsss.nn.irn import HEAD_ALIASES, RESNET50_ALIASES, TRAINING_BUFFERS
from wsss.official import LayoutError
from wsss.store import Artifact, ArtifactWriter

AFFINITY_ALIASES: Aliases = (*RESNET50_ALIASES, *HEAD_ALIASES)


def write_affinity_network(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    """IRN's `res50_irn.pth` of the stage that trained it; its mean displacement is zero."""
    return _save_affinity_network(read_checkpoint(artifact.path("affinity_network.pt")), folder)


def _save_affinity_network(state: Mapping[str, Tensor], folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(official_names(state, AFFINITY_ALIASES), folder / "res50_irn.pth")
    return 1


def write_shifted_affinity_network(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    """IRN's `res50_irn.pth` with the mean displacement over the train list."""
    weights = input_of(artifact, "weights")
    state = read_checkpoint(weights.path("affinity_network.pt"))
    names = [name for name in dataset.lists["train"] if name in set(artifact.images())]
    # The official program goes through whole batches of 16 and leaves the rest out.
    whole = len(names) // 16 * 16 or len(names)
    mean = np.mean([artifact.arrays(name)["displacement"] for name in names[:whole]], axis=0)
    state["mean_shift.running_mean"] = torch.from_numpy(mean.astype(np.float32))
    return _save_affinity_network(state, folder)


def read_affinity_network(path: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    """Takes in IRN's `res50_irn.pth`."""
    state = read_canonical(path, AFFINITY_ALIASES, TRAINING_BUFFERS)
    require_tensor(state, "fc_edge6.weight", path)
    writer.add_file("affinity_network.pt", encode_state(state))
    writer.add_file("history.json", b"{}")


def official_names(state: Mapping[str, Tensor], aliases: Aliases) -> dict[str, Tensor]:
    """The state dict with every tensor also under its further published names."""
    published = dict(state)
    for alias, canonical in aliases:
        for name, value in state.items():
            if name.startswith(f"{canonical}."):
                published[alias + name.removeprefix(canonical)] = value
    return published


def read_canonical(path: Path, aliases: Aliases, ignore: Sequence[str] = ()) -> dict[str, Tensor]:
    """State dict of a file under its canonical names, without what matches one of the patterns `ignore`."""
    state = state_dict_of(read_checkpoint(path), where=str(path))
    state = {name: value for name, value in state.items() if not any(re.fullmatch(each, name) for each in ignore)}
    return canonical_state_dict(state, aliases, str(path))


def encode_state(state: Mapping[str, Any]) -> bytes:
    """The bytes that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def require_tensor(state: Mapping[str, Any], name: str, path: Path) -> None:
    """Raises CheckpointError when a state dict lacks the tensor by which its file is known."""
    if name not in state:
        raise CheckpointError(
            f"the checkpoint has no tensor {name!r}",
            str(path),
            "give the file that the official program wrote for this stage",
        )


def input_of(artifact: Artifact, role: str) -> Artifact:
    """The artifact that another one was computed from, in the same store."""
    place = artifact.provenance.get("inputs", {}).get(role)
    if not place:
        raise LayoutError(
            f"artifact of stage {artifact.stage!r} does not say what it was computed from",
            artifact.location,
            "export the training stage's own layout instead",
        )
    stage, _, key = place.partition("/")
    return Artifact(artifact.backend, stage, key)
