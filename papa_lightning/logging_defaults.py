"""Where a run of the command line logs to when its configuration names no logger, and where its configuration lies."""

from __future__ import annotations

from importlib.util import find_spec

from papa_lightning.callbacks.run_folder import run_folder
from papa_lightning.either_lightning import CSVLogger, L, Logger, SaveConfigCallback, TensorBoardLogger
from papa_lightning.files import write_atomically


def default_loggers(folder: str) -> list[Logger]:
    """A CSV file, and TensorBoard where it is installed, side by side in the next ``lightning_logs/version_N``.

    Lightning's own default is one of the two.

    Args:
        folder: What ``lightning_logs`` is in.
    """
    loggers: list[Logger] = [CSVLogger(folder)]
    if find_spec("tensorboard") or find_spec("tensorboardX"):
        loggers.append(TensorBoardLogger(folder, version=loggers[0].version))
    return loggers


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
