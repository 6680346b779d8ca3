"""Base of tasks with a pretrained encoder: its attention, its inputs, packing, checkpoints and the optimizer."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import Self

from papa_lightning.calibration import AttentionConstants
from papa_lightning.callbacks.distillation import Distillation
from papa_lightning.callbacks.learned_constants import LearnedConstants, learning_mixers, train_constants
from papa_lightning.either_lightning import Callback, LightningModule, OptimizerLRScheduler
from papa_lightning.encoders import (
    PackedSequences,
    Packer,
    Packing,
    accepted_inputs,
    check_vocabulary,
    position_limit,
    swap_as_saved,
    swap_attention,
    swapped_layers,
)
from papa_lightning.encoders.loading import load_encoder
from papa_lightning.errors import ConstantsFileError, PapaError, RankingFileError, UnsupportedEncoderError
from papa_lightning.lightning_project.filling import constants_in_use, log_filling
from papa_lightning.ranking import HeadRanking
from papa_lightning.tasks.batch_checks import check_inputs
from papa_lightning.tasks.recipe import Optimization

Task = TypeVar("Task", bound="EncodingTask")


class EncodingTask(LightningModule, ABC):
    """A pretrained encoder with the attention that arguments or callbacks give it; base of tasks.

    A subclass has the hyperparameters `encoder`, `max_length`, `constants`, `heads`, `ranking` and
    `constants_learning_rate`, and calls `set_up_encoder` in its constructor. `packing` is none, because a way of
    computing must not be decided by a checkpoint for the run that loads it.

    Attributes:
        encoder: The encoder.
        packing: Whether an encoder in evaluation mode runs over the real tokens alone, where that is exact.
    """

    encoder: PreTrainedModel
    packing: bool

    @property
    @abstractmethod
    def trains_encoder(self) -> bool:
        """Whether the parameters of the encoder itself learn."""

    @property
    @abstractmethod
    def trains_constants(self) -> bool:
        """Whether the constants of its heads learn."""

    @property
    @abstractmethod
    def recipe(self) -> Optimization:
        """Optimizer and learning rate schedule."""

    @property
    def preset(self) -> str:
        """Mode of a frozen encoder, and whether constants are filled; see `EncoderTask`."""
        return "default"

    def set_up_encoder(self, packing: bool) -> None:
        """Build the encoder from the hyperparameters, which are checked by now."""
        self.packing = Packing(packing).enabled
        self.encoder = self.configure_encoder()
        self._encoder_inputs = accepted_inputs(self.encoder)
        self._vocabulary_checked = False
        self._callbacks: list[Callback] = []

    def check_encoder_arguments(self) -> None:
        """Refuse arguments of the encoder that are out of range."""
        given = self.hparams
        rate = given["constants_learning_rate"]
        for name, valid, wanted in (
            ("max_length", given["max_length"] >= 1, "at least 1"),
            ("constants_learning_rate", rate is None or rate > 0, "above 0"),
        ):
            if not valid:
                raise PapaError(f"{name} is {given[name]!r}: pass a value that is {wanted}.")
        if given["constants"] is None and (given["heads"] != "all" or given["ranking"] is not None):
            raise PapaError(
                f"heads is {given['heads']!r} and ranking is {given['ranking']!r}, but there is no constants file "
                "that they could choose heads for: pass constants, or give both to the callback instead."
            )

    def configure_encoder(self) -> PreTrainedModel:
        """Load the encoder, freeze it if asked, and give its heads constant attention if there are constants."""
        encoder = self.make_encoder()
        positions, max_length = position_limit(encoder), self.hparams["max_length"]
        if positions is not None and max_length > positions:
            raise PapaError(
                f"max_length is {max_length}, but encoder {self.hparams['encoder']!r} has positions for {positions} "
                f"tokens (max_position_embeddings={encoder.config.max_position_embeddings}): pass max_length="
                f"{positions} or less."
            )
        if not self.trains_encoder:
            encoder.requires_grad_(False)
        if self.hparams["constants"] is not None:
            average = AttentionConstants.load(self.hparams["constants"], max_length=max_length)
            constants = constants_in_use(average, None, self.preset)
            log_filling(constants)
            ranking = self.hparams["ranking"]
            swap_attention(
                encoder,
                "constant",
                constants=constants,
                heads=self.hparams["heads"],
                ranking=HeadRanking.load(ranking) if ranking is not None else None,
            )
        return encoder

    def make_encoder(self) -> PreTrainedModel:
        """Load the encoder, before anything is frozen or swapped."""
        return load_encoder(self.hparams["encoder"])

    def choose_parameters(self) -> None:
        """Let the constants learn if they are to; called again when the encoder was swapped."""
        if self.trains_constants:
            train_constants(self.encoder, self.hparams["constants_learning_rate"])

    def train(self: Task, mode: bool = True) -> Task:
        """Switch to train mode, except for an encoder that stays in evaluation mode."""
        super().train(mode)
        if self.stays_in_eval_mode:
            self.encoder.train(False)
        return self

    @property
    def stays_in_eval_mode(self) -> bool:
        """Whether the encoder is in evaluation mode, without dropout, also while something learns."""
        return not self.trains_encoder and self.preset == "default"

    def configure_callbacks(self) -> list[Callback]:
        """Callbacks that the arguments ask for."""
        rate = self.hparams["constants_learning_rate"]
        self._callbacks = [LearnedConstants(rate, encoder="encoder")] if self.trains_constants else []
        return self._callbacks

    def teardown(self, stage: str) -> None:
        """Take the callbacks of this task out of the Trainer, whose next run may be of another module."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [one for one in callbacks if one not in self._callbacks]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build AdamW for all parameters that require a gradient, and a schedule that moves at every step."""
        if self.trains_constants and not learning_mixers(self.encoder):
            raise PapaError(
                f"{self.learning_argument}, but the encoder has no constant heads whose constants could learn: add "
                "the callback ConstantAttention, or pass constants, with heads other than none."
            )
        optimizer = self.recipe.make_optimizer(self)
        if not self.recipe.has_schedule:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps) or steps < 0:  # -1 where a loader has no length, although epochs have a limit
            lacking = (
                "the Trainer has no limit: set max_epochs or max_steps"
                if math.isinf(steps)
                else "the training loader has no length: set max_steps, or take a loader that has one"
            )
            raise PapaError(
                f"schedule {self.recipe.schedule!r} with warmup_share={self.recipe.warmup_share} needs the number of "
                f"training steps, but {lacking}."
            )
        schedule = self.recipe.make_schedule(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    @abstractmethod
    def learning_argument(self) -> str:
        """The argument by which constants learn, and its value, for messages."""

    def on_fit_start(self) -> None:
        """Put an encoder that stays in evaluation mode into train mode, so that Lightning does not warn of it."""
        # It warns just before on_train_start, and still does of modules that are in evaluation mode by mistake.
        if self.stays_in_eval_mode:
            self.encoder.train()

    def on_train_start(self) -> None:
        """Put it into evaluation mode again."""
        if self.stays_in_eval_mode:
            self.encoder.train(False)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Swap the encoder for a checkpoint with constants, so that it loads without the callback that made them."""
        state = checkpoint["state_dict"]
        if any(".papa." in key for key in state) and not swapped_layers(self.encoder):
            swap_as_saved(self.encoder, state, prefix="encoder.")
            self.choose_parameters()

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Load a task from a checkpoint, as in Lightning, but code in it is run with `weights_only` = False only.

        The files of constants and ranking may be gone, because the checkpoint has the constants and their heads.
        """
        given = (checkpoint_path, map_location, hparams_file, strict)
        try:
            return super().load_from_checkpoint(*given, weights_only=weights_only, **kwargs)
        except (ConstantsFileError, RankingFileError):
            if {"constants", "ranking"} & set(kwargs):
                raise
            if not isinstance(checkpoint_path, (str, Path)):
                checkpoint_path.seek(0)
            own: dict[str, Any] = {**kwargs, "constants": None, "heads": "all", "ranking": None}
            found = super().load_from_checkpoint(*given, weights_only=weights_only, **own)
            if not swapped_layers(found.encoder):
                raise
            return found

    def encoder_inputs(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Inputs of the encoder in a calibration pass: those of the batch, before the training step masks any."""
        return batch

    def inputs_of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs of the encoder in a batch, checked.

        Raises:
            PapaError: If the batch lacks an input, or has sequences too long or tokens that the encoder does not know.
        """
        check_inputs(batch, self.hparams["max_length"])
        # Reading values waits for an accelerator; the first batch is enough to find the tokenizer of another encoder.
        if not self._vocabulary_checked or batch["input_ids"].device.type == "cpu":
            check_vocabulary(batch["input_ids"], self.encoder.config.vocab_size)
            self._vocabulary_checked = True
        return {name: batch[name] for name in self._encoder_inputs if name in batch}

    @property
    def packs(self) -> bool:
        """Whether the encoder may run over real tokens alone at this moment."""
        # It would be compiled anew for each shape; torch.compile keeps a module under this name.
        compiled = hasattr(self.encoder, "_orig_mod") or torch.compiler.is_compiling()
        return self.packing and not (self.encoder.training or compiled or self._distils)

    def pack(self, inputs: Mapping[str, Tensor]) -> PackedSequences | None:
        """The real tokens of the encoder's inputs; None where it is to run over these as they are."""
        if not self.packs:
            return None
        with suppress(UnsupportedEncoderError):
            return Packer.of(self.encoder).pack(inputs)
        return None

    def run_encoder(self, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The hidden states, L+1 tensors (B, T, d), of the encoder's inputs, packed or not."""
        with torch.set_grad_enabled(self._encoder_learns):
            output = self.encoder(**inputs, output_hidden_states=True, return_dict=True)
        hidden_states: tuple[Tensor, ...] = output.hidden_states
        return hidden_states

    @property
    def _encoder_learns(self) -> bool:
        """Whether gradients flow into the encoder; looked at anew, because gates or constants may join it later."""
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.encoder.parameters())

    @property
    def _distils(self) -> bool:
        """Whether a teacher runs on the arguments of the encoder, which would not hear where tokens stood."""
        callbacks = [] if self._trainer is None else self.trainer.callbacks  # type: ignore[attr-defined]
        return self._encoder_learns and any(isinstance(one, Distillation) for one in callbacks)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # transformers finds out which outputs a class of models can return when it constructs one. A process that got
        # the task by pickle, as under ddp_spawn, has constructed none, and would get no hidden states.
        with torch.device("meta"):
            type(self.encoder)(copy.deepcopy(self.encoder.config))
