"""The official file of the co-trained networks, `best_ckpt.pth` (SSC, section 10).

Layout: `{"net_state_dict": {"network1": {...}, "network2": {...}}}` with the state-dict names of `DeepLabV2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsss.nn.checkpoint import CheckpointError, read_checkpoint, state_dict_of

NETWORKS = ("network1", "network2")

State = dict[str, Tensor]


def read_cotraining_checkpoint(path: Path) -> dict[str, State]:
    """State dicts of both networks by name, ready for `load_state_dict` of the network they were trained in.

    Accepts the official layout, the same without the `net_state_dict` level, a `module.` prefix, the further entries
    of a resume file, and missing batch-norm counters (they start at 0).  Raises CheckpointError for anything else.
    """
    return cotraining_states(read_checkpoint(path), str(path))


def cotraining_states(content: Mapping[str, Any], where: str = "checkpoint") -> dict[str, State]:
    """`read_cotraining_checkpoint` on what the file holds."""
    level = content.get("net_state_dict", content)
    missing = [name for name in NETWORKS if not isinstance(level.get(name), Mapping)]
    if missing:
        found = ", ".join(map(str, list(level)[:5]))
        raise CheckpointError(
            f"the file has no weights of {' and '.join(missing)}; it holds {found}",
            where,
            "give best_ckpt.pth of a co-training run, with both networks",
        )
    return {name: _with_counters(state_dict_of(level[name], where=f"{where}, {name}")) for name in NETWORKS}


def write_cotraining_checkpoint(path: Path, network1: Mapping[str, Tensor], network2: Mapping[str, Tensor]) -> None:
    """Write two state dicts (names without prefix) as the official `best_ckpt.pth`."""
    states = {
        name: {key: value.detach().cpu() for key, value in state.items()}
        for name, state in zip(NETWORKS, (network1, network2), strict=True)
    }
    torch.save({"net_state_dict": states}, path)


def _with_counters(state: State) -> State:
    """Batch-norm layers get a counter where the file has none."""
    complete = dict(state)
    for name in state:
        if name.endswith(".running_var"):
            counter = name.removesuffix("running_var") + "num_batches_tracked"
            complete.setdefault(counter, torch.zeros((), dtype=torch.long))
    return complete
