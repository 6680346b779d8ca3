"""Inputs of an encoder from the train data of a Trainer, each sequence once, for the calibration pass."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from transformers import PreTrainedModel

from papa_lightning.calibration import AttentionAverages, observe
from papa_lightning.calibration.batches import checked_inputs
from papa_lightning.calibration.collect import progress_bar
from papa_lightning.calibration.observing import named_inputs, watch_calls
from papa_lightning.either_lightning import L, isolate_rng
from papa_lightning.errors import CalibrationError
from papa_lightning.lightning_project.own_step import REMEDY, run_step, trial
from papa_lightning.lightning_project.restoring import unchanged
from papa_lightning.lightning_project.train_batches import TrainBatches

#: Function from a batch on its device to the encoder's inputs in it, a mapping or several.
ReadInputs: TypeAlias = Callable[[Any], Any]


class CalibrationBatches:
    """The inputs of an encoder, each sequence once over all processes: what `read` finds, or else the step passes."""

    def __init__(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        encoder: PreTrainedModel,
        max_length: int,
        batch_size: int | None = None,
        read: ReadInputs | None = None,
    ) -> None:
        self.trainer, self.module, self.encoder = trainer, module, encoder
        self.max_length, self.read = max_length, read
        with data_unchanged(trainer):
            self.batches = TrainBatches(trainer, batch_size)
        self._recorded: list[Mapping[str, Any]] | None = None

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Mappings with the inputs of the encoder, on the device of the module."""
        if self.read is None:
            yield from self.recorded()
            return
        for number, batch in self._on_device(self.batches):
            yield from read_inputs(self.read, batch, number)

    def __len__(self) -> int:
        """Number of batches of this process, if known; where the step runs, of recorded calls once it has run."""
        return len(self.batches) if self._recorded is None else len(self._recorded)

    def in_random_order(self) -> "CalibrationBatches":
        """The same sequences in random order, where the data can be read in any order."""
        other = copy.copy(self)
        other.batches, other._recorded = self.batches.in_random_order(), None
        return other

    def observe(self, progress: bool = False) -> AttentionAverages:
        """Sums of this process over the attention in all calls of the encoder by the step of the module."""
        with self._trial(), observe(self.encoder, self.max_length) as calls:
            for number, batch in self._on_device(progress_bar(self.batches, progress)):
                calls.number = number
                goes_on = run_step(self.trainer, self.module, batch, number)
                calls.check()
                if not goes_on:
                    break
        return calls.sums

    def recorded(self) -> Sequence[Mapping[str, Any]]:
        """Inputs of all calls of the encoder by the step, for several passes over them."""
        if self._recorded is not None:
            return self._recorded
        recorded: list[Mapping[str, Any]] = []
        number = 0

        def watch(forward: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
            inputs, _ = checked_inputs(self.encoder, named_inputs(forward, arguments, options), number, self.max_length)
            recorded.append({name: one.detach().cpu() for name, one in inputs.items()})
            return forward(*arguments, **options)

        with self._trial(), watch_calls(self.encoder, watch):
            for number, batch in self._on_device(self.batches):
                if not run_step(self.trainer, self.module, batch, number):
                    break
        if not recorded:
            raise self.not_reached()
        self._recorded = recorded
        return recorded

    @contextmanager
    def _trial(self) -> Iterator[None]:
        hooks = (self.module.on_train_start, self.module.on_train_epoch_start)
        with data_unchanged(self.trainer), trial(self.trainer, self.module, hooks):
            yield

    def _on_device(self, batches: Any) -> Iterator[tuple[int, Any]]:
        for number, batch in enumerate(batches):
            if batch is not None:
                yield number, to_device(self.trainer, self.module, batch)

    def not_reached(self) -> CalibrationError:
        """The error for a step that has not called the encoder at all."""
        name, kind = type(self.module).__name__, type(self.encoder).__name__
        return CalibrationError(
            f"training_step of {name} ran over the train data, but never called its {kind}: name the encoder that "
            f"it trains with encoder=..., or {REMEDY}."
        )


@contextmanager
def data_unchanged(trainer: L.Trainer) -> Iterator[None]:
    """Restore loaders, samplers and data sets of the training, their generators and counters, and the random state."""
    with isolate_rng(), unchanged([trainer.train_dataloader], besides=[trainer], tensors=False):
        yield


def to_device(trainer: L.Trainer, module: L.LightningModule, batch: Any) -> Any:
    """A batch as the Trainer hands it to a step: in its precision, through the module's hooks, on its device."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def read_inputs(read: ReadInputs, batch: Any, number: int) -> list[Mapping[str, Any]]:
    """The mappings that ``encoder_inputs`` gives for a batch."""
    given = read(batch)
    several = [given] if isinstance(given, Mapping) else given
    if not isinstance(several, (list, tuple)) or not all(isinstance(one, Mapping) for one in several):
        raise CalibrationError(
            f"encoder_inputs gave a {type(given).__name__} for batch {number}, but must give a mapping with the "
            "encoder's inputs (input_ids and attention_mask, or pixel_values), or a list of such mappings."
        )
    return list(several)
