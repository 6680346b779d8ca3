"""The run of a Trainer: folder of its files, and agreement among its processes."""

from collections.abc import Callable
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

import torch

from papa_lightning.either_lightning import L, is_a
from papa_lightning.errors import CalibrationError, PapaError
from papa_lightning.files.writing import check_output


def run_folder(trainer: L.Trainer) -> Path | None:
    """Folder of this run's first logger, which may not exist yet; None without one and in a trial. On every process."""
    if not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    # trainer.log_dir is, for loggers other than these two, the folder of all their runs, which would overwrite each
    # other's files; ModelCheckpoint too takes name and version then.
    logger: Any = trainer.loggers[0]
    if is_a(logger, "TensorBoardLogger", "CSVLogger"):
        folder = Path(logger.log_dir)
    else:
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version
    return Path(trainer.strategy.broadcast(str(folder)))


T = TypeVar("T")


def all_or_none(trainer: L.Trainer, task: Callable[[], T]) -> T:
    """Run the share of this process, without collectives; raise an error on every process if one of them failed."""
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
    """Run a function on the first process, and return its result or raise its PapaError on all."""
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


def new_file(trainer: L.Trainer, name: str, encoder: str | None) -> str | None:
    """Path of a new file NAME, NAME.ENCODER or NAME-1 and so on in :func:`run_folder`, the same on all processes."""
    folder, given = run_folder(trainer), Path(name)
    if folder is None:
        return None
    stem = given.stem if encoder is None else f"{given.stem}.{encoder}"

    def find() -> str:
        names = chain([stem], (f"{stem}-{number}" for number in count(1)))
        path = next(path for one in names if not (path := folder / f"{one}{given.suffix}").exists())
        check_output(f"the {given.stem} file of this run", path)
        return str(path)

    return on_first(trainer, find)
