"""Runs a function in several processes that form one process group on gloo."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


def run_on_gloo(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """What `function(rank, world_size, *arguments)` returns in each process, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_process, args=(function, world_size, arguments, folder), nprocs=world_size)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _process(rank: int, function: Callable[..., Any], world_size: int, arguments: tuple[Any, ...], folder: str) -> None:
    torch.set_num_threads(1)
    # A file, not a port: another process may take a port between its choice and its use.
    meeting = f"file://{folder}/meet"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=world_size, timeout=timedelta(seconds=300)
    )
    torch.save(function(rank, world_size, *arguments), f"{folder}/{rank}.pt")
    dist.barrier()  # nobody leaves while another one still waits for an answer
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's clean-up. A thread of ProcessGroupGloo lets go of a tensor some time after its
    # collective operation has ended, and takes the GIL for it. Where that happens while the interpreter finalizes,
    # Python ends the thread inside a C++ destructor: "terminate called without an active exception", SIGABRT.
    # `destroy_process_group` does not help: the thread lives as long as the group, to which DDP keeps references.
    # Workers of Ray Train are not concerned: Ray kills them (`ray.kill`) once they have handed over their result.
    os._exit(0)
