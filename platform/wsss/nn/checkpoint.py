"""Reading and writing weights in the layouts of the published files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsss.errors import WsssError
from wsss.nn.mxnet_params import read_params, wide_resnet38_state
from wsss.text_file import path_problem, shortened

Aliases = Sequence[tuple[str, str]]
"""(alias prefix, canonical prefix) pairs: `("stage2.0", "resnet50.layer2")`."""

_LEVELS = ("net_state_dict", "state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
# What wraps a network while it is trained: DataParallel, torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")
_DEEPEST = 8
_COUNTER = "num_batches_tracked"
# What the file of a classifier holds beyond the body.
_CLASSIFIERS = (r"fc\..*", r"fc8\..*", r"linear1000\..*", r"classifier\..*", r"head\..*")


class CheckpointError(WsssError):
    """A file of weights cannot be read, or does not fit the network."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a weights file, on the CPU. Only tensors and plain containers are unpickled.

    Raises CheckpointError when the file is absent, damaged, of another kind, or holds anything else.
    """
    if problem := path_problem(str(path)):
        raise CheckpointError(problem, str(path), "check the path in the recipe")
    if path.is_dir():
        files = sorted(found.name for found in path.iterdir() if found.suffix in (".pth", ".pt", ".bin"))
        inside = f"give a file in it: {', '.join(files[:4])}" if files else "give a file; there is none in it"
        raise CheckpointError("the weights file is a folder", str(path), inside)
    try:
        if other := _other_kind(path):
            raise CheckpointError(f"the weights file {other[0]}", str(path), other[1])
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError("no such weights file", str(path), "check the path in the recipe") from None
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file makes torch raise anything, from KeyError to MemoryError
        raise _unreadable(path, error) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"the file holds a {type(content).__name__}, not a state dict", str(path), "save a state dict"
        )
    return dict(content)


def check_weights_file(path: Path) -> None:
    """Read a file of weights before anything is spent on it; whether it fits its network only the stage can tell.

    Raises:
        CheckpointError: as of `read_checkpoint`, and for values that are not finite.
    """
    if path.suffix == ".params":
        content: Mapping[str, Any] = _mxnet_state_dict(path)
    else:
        content = read_checkpoint(path)
    try:
        state = state_dict_of(content, where=str(path))
    except CheckpointError:
        if any(isinstance(value, Mapping) for value in content.values()):
            return  # several networks: the stage chooses
        raise
    _require_finite(
        {name: value for name, value in state.items() if not any(re.fullmatch(each, name) for each in _CLASSIFIERS)},
        str(path),
    )


def _other_kind(path: Path) -> tuple[str, str] | None:
    """What a file is that torch.save did not write, and what to do with it; None for all that torch may read."""
    with path.open("rb") as stream:
        start = stream.read(512)
    text = start.lstrip().lower()
    again = "download it again"
    if not start:
        return "is empty", again
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not weights", f"{again}: the address needs a login or a click, open it in a browser"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the weights", "run `git lfs pull` in its repository"
    if start.startswith(b"\x89HDF"):
        return "is HDF5 (Keras)", "give the PyTorch file of the same network"
    if start.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!")):
        return "is a compressed archive", "unpack it and give the file in it"
    if len(start) > 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000:
        convert = "torch.save(safetensors.torch.load_file(FILE), NEW)"
        return "is in the format safetensors", f"convert it once: {convert}"
    return None


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    text = " ".join(str(error).split())
    pickled = re.search(r"Unsupported (?:global|class|type)\S*:? (?:GLOBAL )?([\w.]+)", text)
    if pickled:
        return CheckpointError(
            f"the weights file holds a pickled object ({pickled[1]}): it needs code to unpickle, which is never run",
            str(path),
            "where you trust the file, save its state dict alone: torch.save(torch.load(FILE, weights_only=False)"
            "['state_dict'], NEW), with the key that holds it",
        )
    if "TorchScript" in text:
        return CheckpointError(
            "the weights file is a TorchScript archive",
            str(path),
            "save its state dict: torch.save(torch.jit.load(FILE).state_dict(), NEW)",
        )
    first_line = shortened(text or type(error).__name__, 160)
    return CheckpointError(
        f"the weights file cannot be read: {first_line} ({path.stat().st_size} bytes)",
        str(path),
        "download it again; it is damaged, cut short or no file of torch.save",
    )


def state_dict_of(content: Mapping[str, Any], network: str | None = None, where: str = "") -> dict[str, Tensor]:
    """The flat state dict inside a checkpoint.

    Unwraps the levels that trainings write (`state_dict`, `model`, ...) and the level of network names (`network1`,
    `network2`; `network` chooses); without `network` also any other level, when it is the only one that holds
    nothing but tensors. Then the prefixes `module.` and `_orig_mod.` that all names share.
    Raises CheckpointError when there are several networks and none is chosen, or no tensors at all.
    """
    inner: Mapping[str, Any] = content
    for _ in range(_DEEPEST):
        level = next((key for key in _LEVELS if isinstance(inner.get(key), Mapping)), None)
        if level is None and network is not None and isinstance(inner.get(network), Mapping):
            level = network
        if level is None and network is None and not any(isinstance(value, Tensor) for value in inner.values()):
            nested = [key for key, value in inner.items() if isinstance(value, Mapping)]
            full = [key for key in nested if inner[key] and all(isinstance(v, Tensor) for v in inner[key].values())]
            only = nested if len(inner) == 1 else full
            level = only[0] if len(only) == 1 else None
        if level is None:
            break
        inner = inner[level]
    nested = [str(key) for key, value in inner.items() if isinstance(value, Mapping)]
    if nested:
        wanted = f" and not {network}" if network else ""
        raise CheckpointError(
            f"the file holds the networks {_listed(sorted(nested))}{wanted}",
            where,
            "choose one of them: torch.save(torch.load(FILE, weights_only=True)['NAME'], NEW), and give NEW",
        )
    if wrong := [name for name in inner if not isinstance(name, str)]:
        raise CheckpointError(
            f"the file has names that are no texts: {_listed([repr(name) for name in wrong])}",
            where,
            "give a file of weights: texts and their tensors",
        )
    tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError("the file holds no tensors", where, "give a file of weights")
    while prefix := next((each for each in _WRAPPERS if all(name.startswith(each) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _without_foreign_prefix(state: Mapping[str, Tensor], fits: Callable[[str], bool]) -> dict[str, Tensor]:
    """The state without the first parts that all its names share, as far as no name fits with them."""
    found = dict(state)
    while found and not any(fits(name) for name in found):
        first = {name.partition(".")[0] for name in found}
        if len(first) > 1 or not all("." in name for name in found):
            return dict(state)
        found = {name.partition(".")[2]: value for name, value in found.items()}
    return found


def _require_finite(state: Mapping[str, Tensor], where: str) -> None:
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            raise CheckpointError(
                f"the tensor {name} is {'quantized' if value.is_quantized else f'{value.dtype}, {value.layout}'}",
                where,
                "save it as an ordinary tensor of real numbers",
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise CheckpointError(
                f"the tensor {name} holds {bad} values of {value.numel()} that are not finite",
                where,
                "the file is damaged or comes from a training that diverged: download it again, or take another one",
            )


def canonical_state_dict(state: Mapping[str, Tensor], aliases: Aliases, where: str = "") -> dict[str, Tensor]:
    """Merge alias names into canonical ones.

    Raises CheckpointError when two names of one tensor hold different values, or a tensor holds NaN or infinity.
    """
    _require_finite(state, where)
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

    A first part that all names of the file share is taken off (`backbone.`), where no name fits with it. Missing
    `num_batches_tracked` counters are tolerated. Raises CheckpointError listing missing, unexpected and
    mis-shaped names; the module is unchanged then.
    """
    own = module.state_dict()
    found = _without_foreign_prefix(
        state_dict_of(state, network, where), lambda name: _canonical_name(rename(name), aliases) in own
    )
    flat = {rename(name): value for name, value in found.items()}
    patterns = [re.compile(pattern) for pattern in ignore]
    flat = {name: value for name, value in flat.items() if not any(p.fullmatch(name) for p in patterns)}
    loaded = canonical_state_dict(flat, aliases, where)
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

    own = body.state_dict()
    state = _without_foreign_prefix(state, lambda name: own_name(name) in own)
    kept = {name: value for name, value in state.items() if not re.match(rf"backbone\..*{_COUNTER}$", name)}
    kept = {name: value for name, value in kept.items() if not any(re.fullmatch(each, name) for each in _CLASSIFIERS)}
    new = {name: value for name, value in own.items() if name.split(".")[0] in new_layers}
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
