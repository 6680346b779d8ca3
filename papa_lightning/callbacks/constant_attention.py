"""The callback that calibrates an encoder and makes its heads constant, in any Lightning project."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from transformers import PreTrainedModel

from papa_lightning.attention import ConstantHeads
from papa_lightning.calibration import (
    AttentionConstants,
    ConstantsMismatchWarning,
    calibrate,
    check_max_length,
    without_path,
)
from papa_lightning.callbacks.batches import CalibrationBatches
from papa_lightning.callbacks.discovery import discover_encoder
from papa_lightning.encoders import (
    HeadSelection,
    encoder_shape,
    image_length,
    is_calibrated,
    load_constants,
    select_heads,
    swap_attention,
    swapped_layers,
    takes_images,
)
from papa_lightning.exceptions import CalibrationError, HeadSelectionError, PapaError
from papa_lightning.ranking import HeadRanking

_SHARDED = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)


class ConstantAttention(L.Callback):
    """Average the attention of an encoder over the train data, then make heads constant for the rest of the run.

    Works on any LightningModule that holds a supported transformers encoder. In ``setup`` the encoder is
    swapped in place and waits, all heads dynamic; when training starts, one pass over the train data averages the
    attention matrices, and the chosen heads become constant. The pass changes no loop counter and no random state.
    The constants travel in the module's own checkpoint: a resumed run does not calibrate again, and validate, test
    and predict take them from ``ckpt_path`` or from a constants file.

    Args:
        max_length: T, the longest sequence. None takes the datamodule's ``max_length``, or else the constants file's;
            for images, the number of tokens that the encoder makes of one.
        heads: "all"; a list of [layer, head] pairs; a map from layer to heads; or a number (int) or share (float) of
            heads, which wants a ranking. An empty list only observes.
        ranking: Path of a :class:`~papa_lightning.HeadRanking` file.
        constants: Path of a constants file to use instead of calibrating.
        encoder: Attribute that holds the encoder, when the module has several.
        batch_size: Sequences a batch of the pass; None takes that of the train loader.
        save_constants: Write the constants to ``constants.safetensors`` in the logger's folder.

    Raises:
        PapaError: For invalid arguments.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[ConstantAttention(max_length=64, heads="all")], logger=False)
    """

    def __init__(
        self,
        max_length: int | None = None,
        heads: HeadSelection = "all",
        ranking: str | None = None,
        constants: str | None = None,
        encoder: str | None = None,
        batch_size: int | None = None,
        save_constants: bool = True,
    ) -> None:
        for name, value in (("max_length", max_length), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise PapaError(f"{name} is {value}, but must be at least 1.")
        if isinstance(heads, (int, float)) and heads not in (0, 1.0) and ranking is None:
            raise HeadSelectionError(
                f"heads is {heads!r}, a number or share of heads, but ranking is None: pass the path of a HeadRanking "
                'file, or heads="all" or a list of [layer, head] pairs.'
            )
        self.max_length, self.heads, self.ranking, self.constants = max_length, heads, ranking, constants
        self.encoder, self.batch_size, self.save_constants = encoder, batch_size, save_constants
        #: Seconds that the calibration pass took, None before it ran.
        self.calibration_seconds: float | None = None
        #: Where the constants were written, or read from.
        self.constants_path: str | None = constants

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Swap the encoder, and load the constants file if there is one. Runs at every stage and does nothing twice."""
        if is_overridden("configure_model", pl_module):
            # The encoder may be made there; Lightning calls it only later, and asks that it can be called twice.
            strategy, precision = trainer.strategy, trainer.precision_plugin
            with strategy.tensor_init_context(), strategy.model_sharded_context(), precision.module_init_context():
                pl_module.configure_model()
        encoder = discover_encoder(pl_module, self.encoder)
        if self.constants is None and isinstance(trainer.strategy, _SHARDED):
            raise CalibrationError(
                f"strategy is {type(trainer.strategy).__name__}, which shards the encoder, so this process cannot "
                "calibrate it: calibrate first (`papa calibrate` on one device), then pass constants=PATH."
            )
        constants = None if self.constants is None else AttentionConstants.load(self.constants)
        ranking = None if self.ranking is None else HeadRanking.load(self.ranking)
        length = self._length(trainer, encoder, constants)
        check_max_length(encoder, length)
        if not _is_swapped_to(encoder, select_heads(self.heads, *encoder_shape(encoder), ranking), length):
            swap_attention(encoder, "constant", heads=self.heads, ranking=ranking, max_length=length)
        if constants is not None and not is_calibrated(encoder):
            warn_of_other_data(constants, describe_data(trainer))
            load_constants(encoder, constants)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calibrate, unless there are constants already."""
        if not is_calibrated(self._swapped_encoder(pl_module)):
            self.calibrate(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse to validate without constants; inside fit they are there by then, or the sanity check runs."""
        self._require_constants(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse to test without constants."""
        self._require_constants(trainer, pl_module)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse to predict without constants."""
        self._require_constants(trainer, pl_module)

    def calibrate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> AttentionConstants:
        """Run the calibration pass on all processes together, and make the chosen heads constant.

        Args:
            trainer: With its train data set up.
            pl_module: Holds the encoder, swapped by :meth:`setup`.

        Returns:
            The constants, equal on every process.

        Raises:
            CalibrationError: When the data or the encoder do not allow it; nothing is changed or saved then.
        """
        encoder = self._swapped_encoder(pl_module)
        length = swapped_layers(encoder)[0].max_length
        start = time.perf_counter()
        with isolate_rng(), trainer.precision_plugin.forward_context():
            constants = calibrate(
                encoder,
                self.calibration_batches(trainer, pl_module),
                length,
                metadata=describe_data(trainer),
                all_reduce=lambda tensor: trainer.strategy.reduce(tensor, reduce_op="sum"),
                progress=trainer.is_global_zero and trainer.progress_bar_callback is not None,
            )
        load_constants(encoder, constants)
        self.calibration_seconds = time.perf_counter() - start
        self._save(trainer, constants)
        rank_zero_info(
            f"Calibrated on {constants.metadata['sequences']} sequences in {self.calibration_seconds:.1f} s: "
            f"{constant_heads(encoder)} of {constants.num_layers * constants.num_heads} heads are constant from now on."
        )
        return constants

    def calibration_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Iterable[Mapping[str, Any]]:
        """What to calibrate on; override it for data of another shape.

        Returns:
            Mappings with input_ids and attention_mask, of this process's share: over all processes each sequence once.
        """
        return CalibrationBatches(trainer, pl_module, self.batch_size)

    @property
    def state_key(self) -> str:
        """Apart from that of a callback for another encoder of the same module."""
        return self._generate_state_key(encoder=self.encoder)

    def state_dict(self) -> dict[str, Any]:
        """Small and primitive; the constants are in the module's own state."""
        return {"calibration_seconds": self.calibration_seconds, "constants_path": self.constants_path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`."""
        self.calibration_seconds = state_dict["calibration_seconds"]
        self.constants_path = self.constants or state_dict["constants_path"]

    def _length(self, trainer: L.Trainer, encoder: PreTrainedModel, constants: AttentionConstants | None) -> int:
        """T: the argument's, else the datamodule's, else the file's; the file must agree. Of images, the encoder's."""
        length = self.max_length
        if length is None:
            length = getattr(trainer.datamodule, "max_length", None)  # type: ignore[attr-defined]
        if constants is not None:
            constants.check_length(length)
            return constants.max_length
        if length is None and takes_images(encoder):
            length = image_length(encoder)
        if not isinstance(length, int):
            raise PapaError(
                "max_length is None, and there is neither a constants file nor a datamodule with max_length to take it "
                "from: pass ConstantAttention(max_length=...), the length of the padded sequences."
            )
        return length

    def _swapped_encoder(self, pl_module: L.LightningModule) -> PreTrainedModel:
        encoder = discover_encoder(pl_module, self.encoder)
        if not swapped_layers(encoder):
            raise CalibrationError(
                f"the encoder of {type(pl_module).__name__} is not the one that setup swapped: a hook replaced it. "
                "Make it in __init__, or let configure_model return early when it is there already."
            )
        return encoder

    def _require_constants(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        encoder = self._swapped_encoder(pl_module)
        waiting = any(layer.constant_heads and not layer.calibrated for layer in swapped_layers(encoder))
        if trainer.state.fn != TrainerFn.FITTING and waiting:
            raise CalibrationError(
                "the encoder waits for constants, and only fit calibrates: pass the ckpt_path of a run with "
                "ConstantAttention, or constants=PATH of a constants file, or fit first."
            )

    def _save(self, trainer: L.Trainer, constants: AttentionConstants) -> None:
        if not self.save_constants or not trainer.loggers:
            return
        folder = trainer.log_dir  # on every process: it is broadcast
        if folder is not None:
            self.constants_path = str(Path(folder) / "constants.safetensors")
            if trainer.is_global_zero:
                constants.save(self.constants_path)


def _is_swapped_to(encoder: PreTrainedModel, heads: list[tuple[int, ...]], length: int) -> bool:
    """Whether an earlier stage, or the module itself, swapped the encoder to just these heads and this length."""
    layers = swapped_layers(encoder)
    return [layer.constant_heads for layer in layers] == heads and all(
        isinstance(layer, ConstantHeads) and layer.max_length == length for layer in layers
    )


def constant_heads(encoder: PreTrainedModel) -> int:
    """Number of heads of a swapped encoder that are constant now."""
    return sum(len(layer.constant_heads) for layer in swapped_layers(encoder) if layer.calibrated)


def warn_of_other_data(constants: AttentionConstants, data: Mapping[str, Any]) -> None:
    """Warn of constants that were made with another tokenizer or layout than the data have.

    Args:
        constants: From a file.
        data: What :func:`describe_data` says.
    """
    keys = ("tokenizer", "layout", "preset")
    known = [key for key in keys if key in constants.metadata and key in data]
    differing = [key for key in known if constants.metadata[key] != data[key]]
    if differing:
        parts = "; ".join(f"{key} {constants.metadata[key]!r}, but the data have {data[key]!r}" for key in differing)
        warnings.warn(
            f"the constants were made with {parts}: the average is of other rows than these. Calibrate on these data, "
            "or make the data the same way.",
            ConstantsMismatchWarning,
            stacklevel=2,
        )


def describe_data(trainer: L.Trainer) -> dict[str, Any]:
    """Tokenizer, layout and data, as far as the Trainer's datamodule tells."""
    datamodule = getattr(trainer, "datamodule", None)
    names = {"tokenizer": "tokenizer_name", "layout": "layout", "preset": "preset", "data": "description"}
    found = {key: getattr(datamodule, name, None) for key, name in names.items()}
    known = {key: value for key, value in found.items() if isinstance(value, str)}
    return known | ({"tokenizer": without_path(known["tokenizer"])} if "tokenizer" in known else {})
