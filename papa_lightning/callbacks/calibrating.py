"""Base of the callbacks that need the averaged attention of an encoder: swap, calibrate once, save."""

import inspect
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from papa_lightning.attention import MatrixHeads, TokenMixer
from papa_lightning.calibration import AttentionAverages, AttentionConstants, check_max_length, finish, gather
from papa_lightning.either_lightning import Callback, L, TrainerFn, is_a, rank_zero_info
from papa_lightning.encoders import (
    Packing,
    compute_device,
    image_length,
    is_calibrated,
    leave_out_of_ddp,
    load_constants,
    swapped_layers,
    takes_images,
)
from papa_lightning.errors import CalibrationError, PapaError
from papa_lightning.lightning_project.encoder import (
    Origin,
    averaged_copies,
    describe_data,
    described,
    discover_encoder,
    make_late_encoder,
    note_origin,
    origin_of,
    origin_text,
    warn_of_other_data,
)
from papa_lightning.lightning_project.filling import constants_in_use, log_filling, presets_of
from papa_lightning.lightning_project.optimizers import forget_groups, keep_apart, set_up_groups
from papa_lightning.lightning_project.run import all_or_none, new_file
from papa_lightning.lightning_project.sequences import CalibrationBatches, data_unchanged
from papa_lightning.lightning_project.validation_rows import check_validation


def check_rate(learning_rate: float | None) -> float | None:
    """A learning rate above 0, or None."""
    if learning_rate is not None and not 0.0 < learning_rate < float("inf"):
        raise PapaError(f"learning_rate is {learning_rate}, but must be above 0, or None to take that of the rest.")
    return learning_rate


#: Strategies that spread the parameters of an encoder over processes.
SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def refuse_sharding(trainer: L.Trainer, parts: str, remedy: str) -> None:
    """Refuse a strategy that shards these parts of an encoder, and name the way to do without."""
    if is_a(trainer.strategy, *SHARDED):
        raise PapaError(f"strategy is {type(trainer.strategy).__name__}, which shards {parts}: {remedy}.")


class CalibratingCallback(Callback, ABC):
    """Base of callbacks that give an encoder constants once; see :class:`~papa_lightning.ConstantAttention`."""

    #: Whether a fit replaces constants of another callback from an earlier fit; False where they only start a kind.
    calibrates_anew = True

    def __init__(
        self,
        max_length: int | None = None,
        constants: str | None = None,
        encoder: str | None = None,
        batch_size: int | None = None,
        save_constants: bool = True,
        learning_rate: float | None = None,
        fill_unseen: bool | None = None,
        packing: bool = True,
    ) -> None:
        for name, value in (("max_length", max_length), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise PapaError(f"{name} is {value}, but must be at least 1.")
        self.learning_rate = check_rate(learning_rate)
        self.max_length, self.constants, self.encoder = max_length, constants, encoder
        self.batch_size, self.save_constants, self.fill_unseen = batch_size, save_constants, fill_unseen
        self.packing = Packing(packing).enabled
        #: Seconds that the calibration pass took, None before it ran.
        self.calibration_seconds: float | None = None
        #: Path of the constants file, written or read.
        self.constants_path: str | None = constants
        self._groups_of_checkpoint: list[list[int]] | None = None
        self._name = ""
        self._restored = False

    @abstractmethod
    def swap(self, encoder: PreTrainedModel, max_length: int) -> None:
        """Swap a bare encoder, waiting for constants of T = `max_length`, unless it is swapped to that already."""

    @abstractmethod
    def outcome(self, encoder: PreTrainedModel) -> str:
        """State of the encoder once it has its constants, as a sentence for the log."""

    def own_parameters(self, layer: TokenMixer) -> Iterable[str]:
        """Names of a swapped layer's parameters that are to learn at ``learning_rate``, without weight decay."""
        return ()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Swap the encoder, and load the constants file if there is one; idempotent, called at every stage."""
        self._groups_of_checkpoint, self._restored = None, False
        make_late_encoder(trainer, pl_module)
        encoder = discover_encoder(pl_module, self.encoder)
        self._refuse_rivals(trainer, pl_module, encoder)
        if self.constants is None and is_a(trainer.strategy, *SHARDED):
            raise CalibrationError(
                f"strategy is {type(trainer.strategy).__name__}, which shards the encoder, so this process cannot "
                "calibrate it: calibrate first (`papa calibrate` on one device), then pass constants=PATH."
            )
        constants = None if self.constants is None else AttentionConstants.load(self.constants)
        length = self.length(trainer, encoder, constants)
        check_max_length(encoder, length)
        if constants is not None and not is_calibrated(encoder):
            warn_of_other_data(constants, describe_data(trainer))
        waiting = []
        for own in self._encoders(trainer, pl_module):
            self.swap(own, length)
            if self._gives_way(trainer, own, stage):
                waiting.append(own)
        if constants is not None and waiting:
            self._give(waiting, self.in_use(trainer, pl_module, constants), f"those of the file {self.constants}")
        leave_out_of_ddp(pl_module)
        if stage == "fit":
            keep_apart(encoder, self.own_parameters, self.learning_rate)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note whether a checkpoint has constants, and else the parameter groups of its optimizers."""
        self._restored = any(".papa." in key for key in checkpoint.get("state_dict", ()))
        if not self._restored and {"state_dict", "optimizer_states"} <= checkpoint.keys():
            self._groups_of_checkpoint = _group_sizes(state["param_groups"] for state in checkpoint["optimizer_states"])

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set up the parameter group, and refuse optimizers of a checkpoint that has other groups."""
        set_up_groups(trainer, pl_module)
        groups = _group_sizes(optimizer.param_groups for optimizer in trainer.optimizers)
        if self._groups_of_checkpoint not in (None, groups):
            raise PapaError(
                f"ckpt_path is a checkpoint of a run without {type(self).__name__}, and its optimizers hold other "
                f"parameters ({self._groups_of_checkpoint} by group, but {groups} now: constants or gates joined, or "
                "queries and keys that no head uses left). Load its weights into the module instead, "
                'module.load_state_dict(torch.load(path, weights_only=True)["state_dict"]), and fit without ckpt_path.'
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calibrate, unless the encoder has constants already."""
        encoder = self._swapped_encoder(pl_module)
        length = swapped_layers(encoder)[0].max_length
        constant = any(layer.constant_heads for layer in swapped_layers(encoder))
        if constant and not is_a(trainer.strategy, *SHARDED):  # whose processes compute every step together
            all_or_none(trainer, lambda: check_validation(trainer, pl_module, encoder, length))
        if self._restored and is_calibrated(encoder):
            self._note(encoder, "those of the checkpoint that this run goes on from")
        if not is_calibrated(encoder):
            self.calibrate(trainer, pl_module)
        elif self.calibrates_anew and self._of_another(trainer, encoder):
            rank_zero_info(f"The encoder has constants already, {origin_text(encoder)}: this callback makes its own.")
            self.calibrate(trainer, pl_module)
        elif any(layer.needs_constants(layer.options()) for layer in swapped_layers(encoder)):
            rank_zero_info(f"The constants in use are {origin_text(encoder)}; this fit does not calibrate.")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget the parameter group that :meth:`setup` asked for."""
        forget_groups(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Do the same after an error, when the Trainer calls no teardown."""
        forget_groups(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse to evaluate without constants; in fit they exist by now, except in the sanity check."""
        encoder = self._swapped_encoder(pl_module)
        waiting = any(layer.constant_heads and not layer.calibrated for layer in swapped_layers(encoder))
        if trainer.state.fn != TrainerFn.FITTING and waiting:
            raise CalibrationError(
                "the encoder waits for constants, and only fit calibrates: pass the ckpt_path of a run with "
                f"{type(self).__name__}, or constants=PATH of a constants file, or fit first."
            )

    on_test_start = on_predict_start = on_validation_start

    def calibrate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> AttentionConstants:
        """Run the calibration pass on all processes and give the swapped encoder its constants, equal on all of them.

        Returns:
            The average as it is, which is also what the file has.

        Raises:
            CalibrationError: If the data or the encoder do not allow it; then nothing is changed or saved.
        """
        encoder = self._swapped_encoder(pl_module)
        length = swapped_layers(encoder)[0].max_length
        start = time.perf_counter()
        # Before the pass, so that a folder that cannot be written to does not cost its time.
        path = new_file(trainer, "constants.safetensors", self.encoder) if self.save_constants else None
        batches = self.calibration_batches(trainer, pl_module)
        constants = calibrate_in(trainer, encoder, batches, length, self.packing_in(pl_module))
        used = self.in_use(trainer, pl_module, constants)
        self._give(self._encoders(trainer, pl_module), used, described(constants, trainer))
        self.calibration_seconds = time.perf_counter() - start
        if path is not None:
            self.constants_path = path
            if trainer.is_global_zero:
                constants.save(path)
        seconds, sequences = self.calibration_seconds, constants.metadata["sequences"]
        for logger in trainer.loggers:
            facts = {"calibration/seconds": seconds, "calibration/sequences": float(sequences)}
            logger.log_metrics(facts, step=trainer.global_step)
        rank_zero_info(f"Calibrated on {sequences} sequences in {seconds:.1f} s: {self.outcome(encoder)}")
        return constants

    def packing_in(self, pl_module: L.LightningModule) -> Packing:
        """The settings of packing, which a task of this package can turn off as well."""
        return Packing(self.packing and getattr(pl_module, "packing", None) is not False)

    def in_use(
        self, trainer: L.Trainer, pl_module: L.LightningModule, constants: AttentionConstants
    ) -> AttentionConstants:
        """The constants that heads get of an average, see `fill_unseen`; the log says how many pairs were filled."""
        used = constants_in_use(constants, self.fill_unseen, *presets_of(trainer, pl_module))
        log_filling(used)
        return used

    def calibration_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Iterable[Mapping[str, Any]]:
        """The encoder's inputs for the pass, each sequence once over all processes; to be overridden for other data."""
        encoder, read = discover_encoder(pl_module, self.encoder), self.encoder_inputs
        layers = swapped_layers(encoder)
        length = layers[0].max_length if layers else self.length(trainer, encoder, None)
        if getattr(read, "__func__", None) is CalibratingCallback.encoder_inputs:
            own = getattr(pl_module, "encoder_inputs", None)
            read = own if inspect.ismethod(own) else None  # type: ignore[assignment]
        return CalibrationBatches(trainer, pl_module, encoder, length, self.batch_size, read)

    def encoder_inputs(self, batch: Any) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        """The encoder's inputs in a batch on its device, a mapping or several; to be overridden where no step can run.

        Mappings have input_ids and attention_mask, or pixel_values. By default a method of this name of the module is
        used, if it has one; else the pass runs ``training_step`` and averages over all calls of the encoder.
        """
        raise NotImplementedError

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint, different for each encoder of a module."""
        return self._generate_state_key(encoder=self.encoder)

    def state_dict(self) -> dict[str, Any]:
        """Seconds of the pass and path of the file; the constants are in the state of the module."""
        return {"calibration_seconds": self.calibration_seconds, "constants_path": self.constants_path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`."""
        self.calibration_seconds = state_dict["calibration_seconds"]
        self.constants_path = self.constants or state_dict["constants_path"]

    def length(self, trainer: L.Trainer, encoder: PreTrainedModel, constants: AttentionConstants | None) -> int:
        """T of the argument, else of the datamodule, the file (which must agree), or for images the encoder."""
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
                f"from: pass {type(self).__name__}(max_length=...), the length of the padded sequences."
            )
        return length

    def _refuse_rivals(self, trainer: L.Trainer, pl_module: L.LightningModule, encoder: PreTrainedModel) -> None:
        """Refuse two callbacks that swap one encoder differently, of which the last would undo the first."""
        callbacks = (one for one in trainer.callbacks if isinstance(one, CalibratingCallback))  # type: ignore[attr-defined]
        for other in callbacks:
            if type(other).swap is not type(self).swap and discover_encoder(pl_module, other.encoder) is encoder:
                raise PapaError(
                    f"callbacks of this Trainer are a {type(self).__name__} and a {type(other).__name__} for the same "
                    f"{type(encoder).__name__}, which cannot be swapped to both: fit with one after the other, or name "
                    "two encoders with encoder=..."
                )

    def _encoders(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[PreTrainedModel]:
        """The module's encoder, and those of its averaged copies, which pair parameters with it by order."""
        modules = (pl_module, *averaged_copies(trainer, pl_module))
        return [discover_encoder(module, self.encoder) for module in modules]

    def _swapped_encoder(self, pl_module: L.LightningModule) -> PreTrainedModel:
        encoder = discover_encoder(pl_module, self.encoder)
        if not swapped_layers(encoder):
            raise CalibrationError(
                f"the encoder of {type(pl_module).__name__} is not the one that setup swapped: a hook replaced it. "
                "Make it in __init__, or let configure_model return early when it is there already."
            )
        return encoder

    def _give(self, encoders: Iterable[PreTrainedModel], constants: AttentionConstants, origin: str) -> None:
        for encoder in encoders:
            load_constants(encoder, constants)
            self._note(encoder, origin)

    def _note(self, encoder: PreTrainedModel, text: str) -> None:
        self._name = self._name or uuid.uuid4().hex
        note_origin(encoder, Origin(self._name, text))

    def _gives_way(self, trainer: L.Trainer, encoder: PreTrainedModel, stage: str) -> bool:
        """Whether an encoder takes the constants of a file, instead of what it has; evaluation undoes no training."""
        if not is_calibrated(encoder):
            return True
        constants = [layer.constants for layer in swapped_layers(encoder) if isinstance(layer, MatrixHeads)]
        trained = not self.calibrates_anew or any(isinstance(one, nn.Parameter) for one in constants)
        if stage != "fit" and trained:
            return False
        from_module = self.calibrates_anew and origin_of(encoder) is None
        return from_module or self._of_another(trainer, encoder)

    def _of_another(self, trainer: L.Trainer, encoder: PreTrainedModel) -> bool:
        """Whether the constants of an encoder come from a callback that is not in this run."""
        origin = None if self._restored else origin_of(encoder)
        callbacks = (one for one in trainer.callbacks if isinstance(one, CalibratingCallback))  # type: ignore[attr-defined]
        return origin is not None and origin.callback not in {self._name, *(one._name for one in callbacks)}


def _group_sizes(optimizers: Iterable[Iterable[Mapping[str, Any]]]) -> list[list[int]]:
    """Number of parameters in each group of each optimizer."""
    return [[len(group["params"]) for group in groups] for groups in optimizers]


def calibrate_in(
    trainer: L.Trainer,
    encoder: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    max_length: int,
    packing: Packing,
) -> AttentionConstants:
    """Calibrate an encoder in a Trainer's run and precision, without side effects; all processes get equal constants.

    Args:
        trainer: A Trainer whose strategy is set up.
        encoder: The bare encoder.
        batches: Mappings with the encoder's inputs, the share of this process.
        max_length: T, the longest sequence.
        packing: Settings of packing; where the step of the module runs, it calls the encoder as it is.
    """
    check_max_length(encoder, max_length)
    progress = trainer.is_global_zero and trainer.progress_bar_callback is not None
    by_step = batches if isinstance(batches, CalibrationBatches) and batches.read is None else None

    def share() -> AttentionAverages:
        if by_step is not None:
            return by_step.observe(progress)
        with data_unchanged(trainer), trainer.precision_plugin.forward_context():
            # A generator may run the module's step before its first batch, which must not be observed.
            first = next(batches, None) if isinstance(batches, Iterator) else None
            begun = batches if first is None else chain([first], batches)
            return gather(encoder, begun, max_length, progress=progress, packing=packing)

    averages = all_or_none(trainer, share)
    averages.reduce(lambda tensor: trainer.strategy.reduce(tensor, reduce_op="sum"))
    if by_step is not None and not averages.pair_counts.any():
        raise by_step.not_reached()
    noted = Packing(packing.enabled and by_step is None, packing.tokens_per_batch).noted(compute_device(encoder))
    return finish(encoder, averages, {**describe_data(trainer), **noted})
