"""Handwritten digits of scikit-learn."""

from typing import Any

import numpy as np
import torch
from torch.utils.data import StackDataset, Subset

from papa_lightning.checks import whole
from papa_lightning.datamodules.parts import Part, PartsDataModule, Rows
from papa_lightning.errors import DataError

_SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}


class DigitsDataModule(PartsDataModule):
    """1,797 handwritten digits of 8x8 pixels: 1,257 to train, 270 to validate and 270 to test, stratified by class.

    They come with scikit-learn (``pip install "papa-lightning[images]"``), so nothing is fetched. Source: Alpaydin and
    Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998 (its test part).

    Batches have `pixel_values` (B, 1, 8, 8), float32 from -1 to 1, `labels` (B,), and `example_id` (B,).

    Args:
        batch_size: Images in a training batch.
        eval_batch_size: Images in a batch of validation, test and prediction. None: as `batch_size`.
        num_workers: Processes that load batches, per dataloader.
        split_seed: Seed of the shuffle before the split.

    Raises:
        PapaError: For an argument out of its range, or without scikit-learn.

    Example:
        >>> data = DigitsDataModule(batch_size=5)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["pixel_values"].shape, batch["labels"].shape, data.num_labels
        (torch.Size([5, 1, 8, 8]), torch.Size([5]), 10)
    """

    num_labels = 10
    """Number of classes."""
    label_names = tuple("0123456789")
    """Names of the classes, by number."""
    metrics = ("accuracy",)
    """Names of the metrics."""
    description = "8x8 digits of scikit-learn, train"
    """The training data in a few words, for metadata."""

    def __init__(
        self, batch_size: int = 32, eval_batch_size: int | None = None, num_workers: int = 0, split_seed: int = 0
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers)
        self.split_seed: int = whole(0)("split_seed", split_seed)
        self.save_hyperparameters(logger=False)

    def part(self, name: Part) -> Rows:
        """The images of a part; see `PartsDataModule.part`."""
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise DataError(
                "DigitsDataModule needs scikit-learn, which is not installed: pip install 'papa-lightning[images]'."
            ) from error
        digits = load_digits()
        rest, numbers = np.arange(len(digits.target)), dict[str, list[int]]()
        for part in ("test", "validation"):
            size = round(_SHARES[part] * len(digits.target))
            classes = digits.target[rest]
            rest, taken = train_test_split(rest, test_size=size, random_state=self.split_seed, stratify=classes)
            numbers[part] = sorted(taken.tolist())
        numbers["train"] = sorted(rest.tolist())
        images: Any = torch.from_numpy(digits.images / 8 - 1).float()[:, None]  # pixels are from 0 to 16
        labels: Any = torch.from_numpy(digits.target).long()
        places: Any = torch.arange(len(labels))
        return Subset(StackDataset(pixel_values=images, labels=labels, example_id=places), numbers[name])
