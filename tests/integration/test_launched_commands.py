"""`papa fit` in two processes that torchrun or SLURM started: it trains, writes once, and leaves nothing that runs on.

The environment is that of the launcher; the launchers themselves are not tried.
"""

import os
import socket
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fresh_processes import context

from papa_lightning import AttentionConstants
from papa_lightning.cli.main import main

pytestmark = pytest.mark.distributed
LAUNCHERS: dict[str, Any] = {
    "torchrun": lambda rank: {
        **{"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2},
        **{"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"},
    },
    "SLURM": lambda rank: {
        **{"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0, "SLURM_NTASKS": 2, "SLURM_NNODES": 1},
        **{"SLURM_NTASKS_PER_NODE": 2, "SLURM_JOB_ID": 7, "SLURM_JOB_NAME": "papa", "SLURM_NODELIST": "localhost"},
    },
}


def command(launcher: str, rank: int, port: int, words: list[str], folder: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    os.environ.update({name: str(value) for name, value in LAUNCHERS[launcher](rank).items()}, MASTER_PORT=str(port))
    os.chdir(folder)
    sys.argv = ["papa", *words]
    sizes: list[int] = []
    destroy = dist.destroy_process_group

    def disconnect(*group: Any) -> None:
        if not group:  # Lightning has groups of its own within the whole
            sizes.append(dist.get_world_size())
        destroy(*group)

    dist.destroy_process_group = disconnect
    return {"code": main(), "sizes": sizes, "connected": dist.is_initialized()}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_command_in_two_processes(launcher: str, tiny: list[str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["fit", *tiny, "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    with ProcessPoolExecutor(2, context) as pool:
        runs = [pool.submit(command, launcher, rank, port, words, str(tmp_path)) for rank in range(2)]
        ended = [run.result(timeout=120) for run in runs]
    assert ended == [{"code": None, "sizes": [2], "connected": False}] * 2
    (constants,) = tmp_path.rglob("constants.safetensors")
    assert AttentionConstants.load(constants).metadata["sequences"] == 12
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2  # 12 sequences, 4 a batch, 2 processes
