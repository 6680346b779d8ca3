"""What the data modules share whose data are ready arrays: parts, and their loaders."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from papa_lightning.checks import check_choice, check_processes, whole
from papa_lightning.either_lightning import LightningDataModule
from papa_lightning.errors import DataError

Part = Literal["train", "validation", "test"]
"""A part of the data."""

Role = Literal["train", "validation", "test", "predict"]
"""What a dataloader is for."""

ROLES: Mapping[str | None, tuple[Role, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
    None: ("train", "validation", "test", "predict"),
}
"""What every stage of the Trainer needs."""

Rows = Dataset[dict[str, torch.Tensor]]

_PARTS: dict[str | None, tuple[Part, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("test",),
    None: ("train", "validation", "test"),
}


class PartsDataModule(LightningDataModule, ABC):
    """Base of data modules that say what their parts are; prediction is on the test part.

    Args:
        batch_size: Rows a training batch.
        eval_batch_size: Rows a batch of validation, test and prediction. None: as `batch_size`.
        num_workers: Processes that load batches, per dataloader.

    Raises:
        PapaError: For an argument out of its range.
    """

    def __init__(self, batch_size: int, eval_batch_size: int | None, num_workers: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        whole(1)("batch_size", self.batch_size)
        whole(1)("eval_batch_size", self.eval_batch_size)
        check_processes("num_workers", num_workers, 0)
        self._rows: dict[Part, Rows] = {}

    @abstractmethod
    def part(self, name: Part) -> Rows:
        """The rows of a part, each a mapping of tensors.

        Raises:
            DataError: When there are none.
        """

    def fingerprint(self) -> str:
        """Identify the data by content; see `TaskDataModule.fingerprint`. These come with an installed package."""
        return hashlib.sha256(type(self).__qualname__.encode()).hexdigest()

    def setup(self, stage: str | None = None) -> None:
        """Make the parts of a stage ready; what is ready already stays.

        Args:
            stage: "fit", "validate", "test", "predict", or None for all of them.
        """
        check_choice("stage", stage, tuple(_PARTS))
        self._rows.update({name: self.part(name) for name in _PARTS[stage] if name not in self._rows})

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """The training batches, shuffled."""
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """The validation batches."""
        return self._loader("validation", self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """The test batches."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """The test batches."""
        return self._loader("test", self.eval_batch_size)

    def _loader(self, part: Part, batch_size: int, **options: Any) -> DataLoader[dict[str, torch.Tensor]]:
        if part not in self._rows:
            raise DataError(f"the {part} data are not set up: call setup() of the data module first.")
        device = "cpu" if self.trainer is None else self.trainer.strategy.root_device.type
        return DataLoader(
            self._rows[part],
            batch_size=batch_size,
            num_workers=self.num_workers,
            pin_memory=device in ("cuda", "xpu"),  # elsewhere it costs a copy, or a warning, for nothing
            persistent_workers=self.num_workers > 0,
            **options,
        )
