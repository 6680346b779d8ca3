"""Roles of data, their dataloaders, and the base of data modules whose data are tensors."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from papa_lightning.checks import check_choice, check_processes, whole
from papa_lightning.either_lightning import LightningDataModule
from papa_lightning.errors import DataError

if TYPE_CHECKING:
    from papa_lightning.datamodules.base import TaskDataModule

Part = Literal["train", "validation", "test"]
"""Part of the data."""

Role = Literal["train", "validation", "test", "predict"]
"""Purpose of a dataloader."""

ROLES: Mapping[str | None, tuple[Role, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
    None: ("train", "validation", "test", "predict"),
}
"""Roles of every stage of the Trainer."""

Rows = Dataset[dict[str, torch.Tensor]]


def batch_loader(module: TaskDataModule | PartsDataModule, rows: Any, shuffle: bool, **options: Any) -> DataLoader[Any]:
    """A dataloader with the settings of a data module."""
    device = "cpu" if module.trainer is None else module.trainer.strategy.root_device.type
    return DataLoader(
        rows,
        batch_size=module.batch_size if shuffle else module.eval_batch_size,
        shuffle=shuffle,
        num_workers=module.num_workers,
        pin_memory=device in ("cuda", "xpu"),  # useless elsewhere, where it copies or warns
        persistent_workers=module.num_workers > 0,
        **options,
    )


class PartsDataModule(LightningDataModule, ABC):
    """Base of data modules whose rows are tensors; prediction is on the test part.

    Args:
        batch_size: Rows of a training batch.
        eval_batch_size: Rows of a batch of validation, test and prediction. None: `batch_size`.
        num_workers: Number of processes that load batches, per dataloader.

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
        """Rows of a part, each a mapping of tensors; a DataError if there are none."""

    def fingerprint(self) -> str:
        """Identity of the data by content, see `TaskDataModule.fingerprint`; here, of data in an installed package."""
        return hashlib.sha256(type(self).__qualname__.encode()).hexdigest()

    def setup(self, stage: str | None = None) -> None:
        """Load the parts of a stage ("fit", "validate", "test", "predict", or None for all) that are not loaded yet."""
        check_choice("stage", stage, tuple(ROLES))
        for role in ROLES[stage]:
            part: Part = "test" if role == "predict" else role
            if part not in self._rows:
                self._rows[part] = self.part(part)

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """The training batches, shuffled."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """The validation batches."""
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """The test batches."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """The test batches."""
        return self._loader("test")

    def _loader(self, part: Part) -> DataLoader[dict[str, torch.Tensor]]:
        if part not in self._rows:
            raise DataError(f"the {part} data are not set up: call setup() of the data module first.")
        return batch_loader(self, self._rows[part], shuffle=part == "train")
