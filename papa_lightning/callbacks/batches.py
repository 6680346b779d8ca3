"""The train data of a Trainer, once and in order: what a calibration pass goes over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from papa_lightning.either_lightning import L
from papa_lightning.exceptions import CalibrationError


class CalibrationBatches:
    """Each sequence of the train data once, in order, shared out among the processes without repeats.

    The train loader itself will not do: it shuffles, and under DDP its sampler repeats samples so that all
    processes get equally many, which makes an average wrong.

    Args:
        trainer: A Trainer whose train data loader is set up.
        module: Its LightningModule; batches pass through its transfer hooks, as in training.
        batch_size: Sequences a batch; None takes that of the train loader.

    Raises:
        CalibrationError: When the train data cannot be gone over this way.
    """

    def __init__(self, trainer: L.Trainer, module: L.LightningModule, batch_size: int | None = None) -> None:
        self.trainer, self.module = trainer, module
        self.loader = _sequential_shard(trainer, batch_size)
        self.limit = _batch_limit(trainer.limit_train_batches, self.loader)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Batches on the device of the module, as mappings with the inputs of the encoder."""
        for batch in islice(self.loader, self.limit):
            batch = self.trainer.precision_plugin.convert_input(batch)
            batch = self.module._on_before_batch_transfer(batch, dataloader_idx=0)
            yield encoder_inputs(self.trainer.strategy.batch_to_device(batch, dataloader_idx=0))

    def __len__(self) -> int:
        """Number of batches of this process.

        Raises:
            TypeError: When the data does not know its length.
        """
        if self.limit is None:
            raise TypeError("the train data does not know its length")
        return self.limit


_MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values")


def encoder_inputs(batch: Any) -> Mapping[str, Any]:
    """The mapping with the encoder's inputs in a batch of any usual form.

    Args:
        batch: A mapping, or a tuple or list that holds one (e.g. (inputs, labels)).

    Raises:
        CalibrationError: When there is no mapping with input_ids or pixel_values.

    Example:
        >>> encoder_inputs(({"input_ids": [1]}, 0))
        {'input_ids': [1]}
    """
    candidates = batch if isinstance(batch, (tuple, list)) else [batch]
    for candidate in candidates:
        if isinstance(candidate, Mapping) and any(name in candidate for name in _MAIN_INPUTS):
            return candidate
    found = f"keys {list(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    raise CalibrationError(
        f"a batch of the train data holds no mapping with input_ids or pixel_values (found {found}): let it hold one, "
        "or override ConstantAttention.calibration_batches to give mappings with the inputs of the encoder."
    )


def _sequential_shard(trainer: L.Trainer, batch_size: int | None) -> Any:
    loader = trainer.train_dataloader
    remedy = "override ConstantAttention.calibration_batches, or make a constants file first and pass constants=PATH"
    if not isinstance(loader, DataLoader):
        if trainer.world_size == 1 and not isinstance(loader, (dict, list, tuple)):
            return loader
        raise CalibrationError(
            f"the train data is a {type(loader).__name__}, but calibration needs one torch DataLoader to go over each "
            f"sequence once: {remedy}."
        )
    if isinstance(loader.dataset, IterableDataset):
        if trainer.world_size == 1:
            return loader
        raise CalibrationError(
            f"the train data set ({type(loader.dataset).__name__}) is iterable only, so {trainer.world_size} processes "
            f"cannot share it without repeats: {remedy}."
        )
    size = batch_size or loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    if size is None:
        raise CalibrationError("the train data loader has no batch_size: pass ConstantAttention(batch_size=...).")
    return DataLoader(
        loader.dataset,
        batch_size=size,
        sampler=range(trainer.global_rank, len(loader.dataset), trainer.world_size),  # type: ignore[arg-type]
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


def _batch_limit(limit: int | float | None, loader: Any) -> int | None:
    """Batches of this process under the Trainer's ``limit_train_batches``; None when nobody knows."""
    try:
        available = len(loader)
    except TypeError:
        return limit if isinstance(limit, int) else None
    if limit is None:
        return available
    return min(available, limit) if isinstance(limit, int) else int(available * limit)
