"""Reading and writing weights in the layouts of the published files."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsss.errors import WsssError
from wsss.nn.mxnet_params import read_params, wide_resnet38_state

Aliases = Sequence[tuple[str, str]]
"""(alias prefix, canonical prefix) pairs: `("stage2.0", "resnet50.layer2")`."""

_LEVELS = ("net_state_dict", "state_dict", "model")
_COUNTER = "num_batches_tracked"
# What the file of a classifier holds beyond the body.
_CLASSIFIERS = (r"fc\..*", r"fc8\..*", r"linear1000\..*", r"classifier\..*", r"head\..*")


class CheckpointError(WsssError):
    """A file of weights cannot be read, or does not fit the network."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a weights file, on the CPU. Only tensors and plain containers are unpickled.

    Raises CheckpointError when the file is absent, damaged, or holds anything else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError("no such weights file", str(path), "check the path in the recipe") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"the weights file cannot be read: {first_line}",
            str(path),
            "download it again; a file that needs code to unpickle is not accepted",
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"the file holds a {type(content).__name__}, not a state dict", str(path), "save a state dict"
        )
    return dict(content)


def state_dict_of(content: Mapping[str, Any], network: str | None = None, where: str = "") -> dict[str, Tensor]:
    """The flat state dict inside a checkpoint.

    Unwraps the levels `net_state_dict`, `state_dict` and `model`, then the level of network names (`network1`,
    `network2`; `network` chooses), then a `module.` prefix that all names share.
    Raises CheckpointError when there are several networks and none is chosen, or no tensors at all.
    """
    inner: Mapping[str, Any] = content
    while True:
        level = next((key for key in _LEVELS if isinstance(inner.get(key), Mapping)), None)
        if level is not None:
            inner = inner[level]
        elif network is not None and isinstance(inner.get(network), Mapping):
            inner = inner[network]
        else:
            break
    nested = [key for key, value in inner.items() if isinstance(value, Mapping)]
    if nested:
        if len(nested) == 1 and network is None and len(inner) == 1:
            return state_dict_of(inner[nested[0]], None, where)
        wanted = f" and not {network}" if network else ""
        raise CheckpointError(
            f"the file holds the networks {', '.join(sorted(nested))}{wanted}", where, "choose one of them"
        )
    tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError("the file holds no tensors", where, "give a file of weights")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def canonical_state_dict(state: Mapping[str, Tensor], aliases: Aliases, where: str = "") -> dict[str, Tensor]:
    """Merge alias names into canonical ones.

    Raises CheckpointError when two names of one tensor hold different values.
    """
    merged: dict[str, Tensor] = {}
    first_name: dict[str, str] = {}
    differing = []
    for name, value in state.items():
        canonical = _canonical_name(name, aliases)
        if canonical in merged:
            if not torch.equal(merged[canonical], value):
                differing.append(f"{first_name[canonical]} and {name}")
        else:
            merged[canonical], first_name[canonical] = value, name
    if differing:
        raise CheckpointError(
            f"names of one tensor hold different values: {_listed(differing)}",
            where,
            "the file was edited; use the one that the training wrote",
        )
    return merged


def _canonical_name(name: str, aliases: Aliases) -> str:
    # The longest prefix wins: `fc_dp7.4` is the mean shift although `dp_layers.6` is `fc_dp7`.
    for alias, canonical in sorted(aliases, key=lambda pair: -len(pair[0])):
        if name == alias or name.startswith(f"{alias}."):
            return canonical + name[len(alias) :]
    return name


def load_weights(
    module: nn.Module,
    state: Mapping[str, Any],
    *,
    network: str | None = None,
    aliases: Aliases = (),
    ignore: Iterable[str] = (),
    rename: Callable[[str], str] = lambda name: name,
    where: str = "",
) -> None:
    """Load a checkpoint's weights into `module`, strictly, whatever layout the file has.

    Args:
        state: content of a file (`read_checkpoint`) or a state dict.
        network: which network of a file with several.
        aliases: further names of the same tensors; they must agree.
        ignore: regular expressions of whole names that are dropped (`fc\\..*`, path buffers).
        rename: the module's name of a name in the file, applied before aliases.
        where: the file, for messages.

    Missing `num_batches_tracked` counters are tolerated. Raises CheckpointError listing missing, unexpected and
    mis-shaped names; the module is unchanged then.
    """
    flat = {rename(name): value for name, value in state_dict_of(state, network, where).items()}
    patterns = [re.compile(pattern) for pattern in ignore]
    flat = {name: value for name, value in flat.items() if not any(p.fullmatch(name) for p in patterns)}
    loaded = canonical_state_dict(flat, aliases, where)
    own = module.state_dict()
    missing = [name for name in own if name not in loaded and not name.endswith(_COUNTER)]
    unexpected = [name for name in loaded if name not in own]
    shapes = [
        f"{name} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in loaded.items()
        if name in own and value.shape != own[name].shape
    ]
    problems = [
        f"{title}: {_listed(names)}"
        for title, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"the weights do not fit {type(module).__name__}; " + "; ".join(problems),
            where,
            "check that the file belongs to this network, its backbone and its width",
        )
    module.load_state_dict(loaded, strict=False)


def load_imagenet_body(body: nn.Module, path: Path, new_layers: Sequence[str] = ()) -> None:
    """Start a body from the file of an ImageNet classifier, whose last layer is left out.

    The file has the body's own names, or is the `resnetv1d101` of mmcls, whose names begin with `backbone.` and whose
    counters are left out. A stem below `stem_layer.` takes `conv1` and `bn1` (torchvision) or `stem.0` (mmcls). A file
    `.params` of MXNet is that of Wide-ResNet-38, see `wsss.nn.mxnet_params`.

    Args:
        new_layers: first parts of the names that no such file has; they keep their values.

    Raises CheckpointError naming what is missing, surplus or of another shape; the body is unchanged then. The official
    programs tolerate missing names in silence.
    """
    state = (
        _mxnet_state_dict(path) if path.suffix == ".params" else state_dict_of(read_checkpoint(path), where=str(path))
    )
    stem = "stem_layer." if hasattr(body, "stem_layer") else ""

    def own_name(name: str) -> str:
        name = re.sub(r"^(conv1|bn1)\.", rf"{stem}\1.", name.removeprefix("backbone."))
        return re.sub(r"^stem\.(\d+)\.(conv|bn)\.", lambda m: f"{stem}{m[2]}{int(m[1]) + 1}.", name)

    kept = {name: value for name, value in state.items() if not re.match(rf"backbone\..*{_COUNTER}$", name)}
    kept = {name: value for name, value in kept.items() if not any(re.fullmatch(each, name) for each in _CLASSIFIERS)}
    new = {name: value for name, value in body.state_dict().items() if name.split(".")[0] in new_layers}
    load_weights(body, {**kept, **new}, rename=own_name, where=str(path))


def _mxnet_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        return wide_resnet38_state(read_params(path))
    except FileNotFoundError:
        raise CheckpointError("no such weights file", str(path), "check the path in the recipe") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the weights file cannot be read: {error}", str(path), "download it again, or give the .pth made of it"
        ) from error


def official_state_dict(module: nn.Module, aliases: Aliases = ()) -> dict[str, Tensor]:
    """The module's state dict on the CPU with every published name: canonical names, then aliases.

    Aliased names share their tensor, so a saved file holds it once.
    """
    state = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    published = dict(state)
    for alias, canonical in aliases:
        for name, value in state.items():
            if name == canonical or name.startswith(f"{canonical}."):
                published[alias + name[len(canonical) :]] = value
    return published


def _listed(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
