"""Two processes that torchrun would have started."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fresh_processes import context
from torch.multiprocessing.spawn import start_processes


def in_two_processes(run: Callable[[Path], Any], folder: Path) -> list[Any]:
    """Return values of a function of a module in both processes; its argument is the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_process, args=(run, str(folder), port), nprocs=2, start_method=context.get_start_method())
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def _process(rank: int, run: Callable[[Path], Any], folder: str, port: int) -> None:
    torch.set_num_threads(1)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in (ranks | address).items()})
    torch.save(run(Path(folder)), f"{folder}/rank{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()
