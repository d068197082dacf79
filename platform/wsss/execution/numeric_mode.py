"""How exactly a process computes: the one place that sets torch's numeric modes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def numeric_mode(mode: str, *, training_on_gpu: bool = False) -> Iterator[None]:
    """Compute in `mode` inside the block; afterwards all modes are what they were before.

    Worker processes stay warm from stage to stage, so every mode is set, also where it is torch's default.

    Args:
        mode: "parity": float32 products and deterministic algorithms, on every device. "fast": torch's defaults
            (on a GPU, convolutions in TF32 and matrix products in float32).
        training_on_gpu: in "fast", matrix products are in TF32 as well and cuDNN tries its kernels out: the
            batches of a training all have one shape, images that are mapped do not.
    """
    if mode not in ("fast", "parity"):
        raise ValueError(f"the numeric mode is fast or parity, not {mode!r}")
    before = _modes()
    parity = mode == "parity"
    if parity:
        # cuBLAS reads it once in a process, before its first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    tuned = training_on_gpu and not parity
    _set_modes((parity, parity, "high" if tuned else "highest", not parity, tuned))
    try:
        yield
    finally:
        _set_modes(before)


def _modes() -> tuple[bool, bool, str, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
    )


def _set_modes(modes: tuple[bool, bool, str, bool, bool]) -> None:
    deterministic, warn_only, precision, convolutions_in_tf32, try_kernels = modes
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions_in_tf32
    torch.backends.cudnn.benchmark = try_kernels
