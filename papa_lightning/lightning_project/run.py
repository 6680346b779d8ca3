"""The run of a Trainer: folder of its files, and agreement among its processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from papa_lightning.either_lightning import L, is_a
from papa_lightning.errors import CalibrationError, PapaError
from papa_lightning.files.writing import check_output


def run_folder(trainer: L.Trainer) -> Path | None:
    """Folder for the files of this run, that of the first logger; to be called on every process.

    ``trainer.log_dir`` is not used: for loggers other than TensorBoardLogger and CSVLogger it is the folder of all
    their runs, where one run would overwrite the files of another; ModelCheckpoint too takes name and version then.

    Args:
        trainer: A Trainer inside a run.

    Returns:
        The folder, which may not exist yet; None without a logger, and in a trial run, which leaves nothing behind.
    """
    if not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    logger: Any = trainer.loggers[0]
    if is_a(logger, "TensorBoardLogger", "CSVLogger"):
        folder = Path(logger.log_dir)
    else:
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version
    return Path(trainer.strategy.broadcast(str(folder)))


def new_file(folder: Path, name: str, encoder: str | None) -> str:
    """Path of a file that does not exist yet and can be written.

    Args:
        folder: Folder of the run; made when missing.
        name: Name of the file, e.g. "constants.safetensors".
        encoder: Attribute of the encoder, if the callback names one.

    Returns:
        ``constants.safetensors``, ``constants.bert.safetensors`` for an encoder that was named, and the next of
        ``constants-1.safetensors``, ``constants-2.safetensors`` where an earlier run left such a file.

    Raises:
        PapaError: When the folder cannot be written to.
    """
    given = Path(name)
    stem = given.stem if encoder is None else f"{given.stem}.{encoder}"
    path, number = folder / f"{stem}{given.suffix}", 0
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{given.suffix}"
    check_output(f"the {given.stem} file of this run", path)
    return str(path)


T = TypeVar("T")


def all_or_none(trainer: L.Trainer, task: Callable[[], T]) -> T:
    """Run the share of this process, and raise an error on every process if one failed.

    Args:
        trainer: A Trainer whose strategy is set up. Every process must call this function.
        task: The share, without collectives.

    Raises:
        CalibrationError: When it failed on another process, which says why.
    """
    if trainer.world_size == 1:
        return task()
    error: Exception | None = None
    try:
        done = task()
    except Exception as raised:  # raised below, when the others know
        error = raised
    failed = torch.tensor(float(error is not None), device=trainer.strategy.root_device)
    failures = trainer.strategy.reduce(failed, reduce_op="sum")
    if error is not None:
        raise error
    if failures:
        raise CalibrationError("the calibration failed on another process, whose error says why: see its output.")
    return done


def on_first(trainer: L.Trainer, task: Callable[[], T]) -> T:
    """Run a function on the first process, and return its result or raise its PapaError on all.

    Args:
        trainer: A Trainer whose strategy is set up. Every process must call this function.
        task: The function.
    """
    outcome: tuple[T | None, str | None] = (None, None)
    if trainer.is_global_zero:
        try:
            outcome = (task(), None)
        except PapaError as error:
            outcome = (None, str(error))
    done, refused = trainer.strategy.broadcast(outcome)
    if refused is not None:
        raise CalibrationError(refused)
    return done  # type: ignore[return-value]
