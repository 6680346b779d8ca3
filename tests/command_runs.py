"""`papa` in a process of its own that can be killed, without paying for its imports each time."""

import os
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from fresh_processes import context


def start(words: list[str], folder: Path) -> BaseProcess:
    """Run `papa` in a folder; what it prints goes to ``printed.txt`` there."""
    folder.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_run, args=(words, str(folder)))
    process.start()
    return process


def kill(words: list[str], folder: Path, seconds: float) -> None:
    """Run `papa` in a new folder and kill it after some seconds, or earlier if it does not last so long.

    How fast a machine is from one run to the next cannot be foreseen: a run that ended before its moment is thrown
    away, and the next one is killed after half of the time.
    """
    while not _killed_after(seconds, words, folder):
        shutil.rmtree(folder)
        seconds /= 2


def _killed_after(seconds: float, words: list[str], folder: Path) -> bool:
    process = start(words, folder)
    began = folder / "began"
    while not began.exists() and process.is_alive():
        time.sleep(0.002)
    process.join(seconds)
    process.kill()
    process.join()
    began.unlink()
    return process.exitcode == -signal.SIGKILL


def finished(words: list[str], folder: Path) -> tuple[float, str]:
    """Run `papa` to its end: seconds, and what it printed."""
    process = start(words, folder)
    while not (folder / "began").exists() and process.is_alive():
        time.sleep(0.002)
    begin = time.perf_counter()
    process.join(300)
    seconds = time.perf_counter() - begin
    printed = (folder / "printed.txt").read_text()
    assert process.exitcode == 0, printed
    (folder / "began").unlink()
    return seconds, printed


def _run(words: list[str], folder: str) -> None:
    import sys

    import torch

    from papa_lightning.cli.main import main

    torch.set_num_threads(1)
    os.chdir(folder)
    output = os.open("printed.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["papa"]
    # The cache of data is the folder's own, so that what is killed may be just writing it.
    import datasets

    datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
    Path("began").touch()
    main(words)
