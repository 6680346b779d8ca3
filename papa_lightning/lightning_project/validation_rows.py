"""Check of the validation data when training starts, instead of an error after the first epoch."""

import copy
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from papa_lightning.calibration.batches import checked_inputs
from papa_lightning.calibration.observing import named_inputs, watch_calls
from papa_lightning.either_lightning import L, isolate_rng
from papa_lightning.encoders import takes_images
from papa_lightning.errors import CalibrationError, PapaError
from papa_lightning.lightning_project.own_step import run_step, trial
from papa_lightning.lightning_project.restoring import unchanged
from papa_lightning.lightning_project.sequences import to_device


def check_validation(trainer: L.Trainer, module: L.LightningModule, encoder: PreTrainedModel, max_length: int) -> None:
    """Run the validation step on the longest batch of each validation loader, and check the encoder's inputs."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loaders = tree_leaves(trainer.val_dataloaders)
    for place, (loader, limit) in enumerate(zip(loaders, loop.max_batches, strict=False)):
        if isinstance(loader, Iterator) or not limit:
            continue
        with isolate_rng(), unchanged([loader], besides=[trainer], tensors=False):
            several = None if limit == float("inf") else int(limit)
            number, batch = _longest(loader, 1 if takes_images(encoder) else several)
            if batch is not None:
                _check(trainer, module, encoder, max_length, batch, number, *([place] if len(loaders) > 1 else []))


def _longest(loader: Any, limit: int | None) -> tuple[int, Any]:
    """The batch of a loader with the longest rows of tensors or, where none has any, the longest texts."""
    if isinstance(loader, DataLoader):
        loader = copy.copy(loader)
        vars(loader)["_iterator"] = None  # persistent workers belong to the run
    return max(enumerate(islice(loader, limit)), key=lambda numbered: _size(numbered[1]), default=(0, None))


def _size(batch: Any, depth: int = 4) -> tuple[int, int]:
    """The longest second dimension of the tensors in a batch, and the longest text."""
    if isinstance(batch, Tensor):
        return (batch.shape[1] if batch.dim() > 1 else 0, 0)
    if isinstance(batch, str):
        return (0, len(batch))
    held = batch if isinstance(batch, Mapping) else getattr(batch, "__dict__", {})
    parts = batch if isinstance(batch, (list, tuple)) else held.values()
    sizes = [_size(part, depth - 1) for part in parts] if depth else []
    return (max((one for one, _ in sizes), default=0), max((one for _, one in sizes), default=0))


def _check(
    trainer: L.Trainer, module: L.LightningModule, encoder: PreTrainedModel, max_length: int, batch: Any, *place: int
) -> None:
    refused: list[PapaError] = []

    def watch(forward: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        try:
            checked_inputs(encoder, named_inputs(forward, arguments, options), place[0], max_length)
        except PapaError as error:
            refused.append(error)
            raise
        return forward(*arguments, **options)

    hooks = (module.on_validation_start, module.on_validation_epoch_start)
    with trial(trainer, module, hooks), watch_calls(encoder, watch):
        try:
            run_step(trainer, module, to_device(trainer, module, batch), *place, verb="validation")
        except PapaError:
            if not refused:  # a step that cannot run by itself is not our concern: the validation itself will show it
                return
    if refused:
        raise CalibrationError(f"in the validation data, {refused[0]}") from refused[0]
