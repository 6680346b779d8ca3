"""Default loggers of the command line, and the saved configuration of a run."""

from importlib.util import find_spec
from pathlib import Path

from papa_lightning.either_lightning import CSVLogger, L, Logger, SaveConfigCallback, TensorBoardLogger, rank_zero_only
from papa_lightning.files.writing import write_atomically
from papa_lightning.lightning_project.run import run_folder


def default_loggers(folder: str) -> list[Logger]:
    """A CSV file, and TensorBoard where it is installed, both in the next ``lightning_logs/version_N`` of a folder.

    Lightning's default is only one of the two.
    """
    first = _ReservingCSVLogger(folder)
    installed = find_spec("tensorboard") or find_spec("tensorboardX")
    return [first, _TensorBoardBeside(folder, first)] if installed else [first]


class _ReservingCSVLogger(CSVLogger):
    """CSV logger that reserves the next version number by creating its folder.

    Lightning takes the first free number, so two runs that start at the same time would share one. In a remote store,
    where creating a folder reserves nothing, this logger does the same.
    """

    _reserved: int | None = None

    @property
    def version(self) -> int:
        """Number of the run. Only the first process creates the folder, and the others ask it for the number."""
        if self._reserved is None:
            self._reserved = int(super().version)
            if getattr(rank_zero_only, "rank", 0) == 0 and "://" not in self.save_dir:
                self._reserved = _reserve(Path(self.root_dir), self._reserved)
        return self._reserved


def _reserve(root: Path, number: int) -> int:
    """Create the folder of a number, or of the next one that is free."""
    root.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            (root / f"version_{number}").mkdir()
            return number
        except FileExistsError:
            number += 1


class _TensorBoardBeside(TensorBoardLogger):
    """TensorBoard logger that writes to the folder of another logger."""

    def __init__(self, folder: str, beside: CSVLogger) -> None:
        super().__init__(folder)
        self._beside = beside

    @property
    def version(self) -> int | str:
        """Version of the other logger."""
        version: int | str = self._beside.version
        return version


class SaveRunConfig(SaveConfigCallback):
    """Save the configuration in the folder of the run, also for loggers whose runs share a ``save_dir``.

    Needs ``save_to_log_dir=False``: otherwise Lightning writes it to the ``save_dir`` as well.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the folder, on every process because it is broadcast."""
        self._folder = run_folder(trainer)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the whole configuration on the first process; without a logger, write nothing."""
        if self._folder is not None:
            config = self.parser.dump(self.config, skip_none=False)
            write_atomically(self._folder / self.config_filename, config.encode())
