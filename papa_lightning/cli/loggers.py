"""Where a run of the command line logs to when its configuration names no logger, and where its configuration lies."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import count
from pathlib import Path

from papa_lightning.either_lightning import (
    CSVLogger,
    L,
    Logger,
    SaveConfigCallback,
    TensorBoardLogger,
    rank_zero_only,
)
from papa_lightning.files.writing import write_atomically
from papa_lightning.lightning_project.run import run_folder


def default_loggers(folder: str) -> list[Logger]:
    """A CSV file, and TensorBoard where it is installed, side by side in the next ``lightning_logs/version_N``.

    Lightning's own default is one of the two.

    Args:
        folder: What ``lightning_logs`` is in.
    """
    first = _ReservingCSVLogger(folder)
    loggers: list[Logger] = [first]
    if find_spec("tensorboard") or find_spec("tensorboardX"):
        loggers.append(_TensorBoardBeside(folder, first))
    return loggers


class _ReservingCSVLogger(CSVLogger):
    """Takes the next number by making its folder, when a run asks for it.

    Lightning looks which numbers are there, and two runs that look at the same time would share one. In a store with an
    address, where making a folder tells nothing, it looks too.
    """

    _reserved: int | None = None

    @property
    def version(self) -> int:
        """Number of the run. Only the first process makes the folder; all others ask that one where it is."""
        if self._reserved is None:
            self._reserved = int(super().version)
            if getattr(rank_zero_only, "rank", 0) == 0 and "://" not in self.save_dir:
                self._reserved = _reserve(Path(self.root_dir), self._reserved)
        return self._reserved


def _reserve(root: Path, least: int) -> int:
    root.mkdir(parents=True, exist_ok=True)
    for number in count(least):
        try:
            (root / f"version_{number}").mkdir()
        except FileExistsError:
            continue
        return number
    raise AssertionError("numbers do not end")


class _TensorBoardBeside(TensorBoardLogger):
    """Writes to the folder of another logger.

    Args:
        folder: What ``lightning_logs`` is in.
        beside: The other one.
    """

    def __init__(self, folder: str, beside: CSVLogger) -> None:
        super().__init__(folder)
        self._beside = beside

    @property
    def version(self) -> int | str:
        """That of the other one."""
        version: int | str = self._beside.version
        return version


class SaveRunConfig(SaveConfigCallback):
    """Save the configuration in the folder of the run, also for loggers whose runs share a ``save_dir``.

    To be made with ``save_to_log_dir=False``: Lightning would write it to the ``save_dir`` as well.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ask for the folder on every process: it is broadcast."""
        self._folder = run_folder(trainer)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the whole configuration, on the first process; nowhere without a logger."""
        if self._folder is not None:
            config = self.parser.dump(self.config, skip_none=False)
            write_atomically(self._folder / self.config_filename, config.encode())
