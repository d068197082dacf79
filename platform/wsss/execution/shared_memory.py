"""Whether the shared memory of a machine holds the batches that its data-loading processes hand over."""

from __future__ import annotations

import shutil
from pathlib import Path

from wsss.errors import WsssError
from wsss.formatting import byte_count
from wsss.train_task import Batch

SHARED_MEMORY = Path("/dev/shm")
# Batches that a loading process of torch's DataLoader makes ahead.
PREFETCH_FACTOR = 2


class SharedMemoryError(WsssError):
    """A loading process would be killed (SIGBUS) when it writes its batch."""


def check_shared_memory(sample: Batch, micro_batch: int, loader_workers: int, folder: Path = SHARED_MEMORY) -> None:
    """Refuse batches that do not fit into the folder in which processes share tensors. Elsewhere than on Linux, pass.

    Args:
        sample: one sample of the training.
        micro_batch: samples in the largest batch that a loading process hands over.
        loader_workers: loading processes of one training worker.

    Raises:
        SharedMemoryError: with what is free and what is needed.
    """
    if not folder.is_dir():
        return
    size = sum(value.numel() * value.element_size() for value in sample.values()) * micro_batch
    # One more batch than is made ahead: the one in use.
    needed, free = size * (PREFETCH_FACTOR * loader_workers + 1), shutil.disk_usage(folder).free
    if needed > free:
        raise SharedMemoryError(
            f"{loader_workers} data-loading processes need {byte_count(needed)} of shared memory"
            f" ({micro_batch} samples a batch), {byte_count(free)} are free",
            str(folder),
            "set execution.loader_workers=0 or a smaller execution.micro_batch; in a container give more shared memory"
            " (docker run --shm-size=8g; in Kubernetes an emptyDir with medium Memory at /dev/shm)",
        )
