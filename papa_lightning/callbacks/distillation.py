"""The callback that trains a swapped encoder to stay near the original one."""

import copy
from collections.abc import Mapping
from functools import wraps
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from papa_lightning.calibration.observing import named_inputs
from papa_lightning.either_lightning import Callback, L
from papa_lightning.encoders import restore_attention
from papa_lightning.encoders.loading import load_encoder
from papa_lightning.errors import PapaError
from papa_lightning.lightning_project.encoder import discover_encoder, make_late_encoder
from papa_lightning.tasks.distillation import Teacher, check_learns

#: Marks the ``training_step`` of this callback, and holds the one that the instance had before.
_BEFORE = "papa_before"


class Distillation(Callback):
    """Add the distance between the hidden states of an encoder and those of its original to the loss.

    For encoders whose attention another callback swaps: the loss becomes ``loss + weight * distance``, where the
    distance, logged as ``train/distillation``, is the mean squared error of
    :func:`~papa_lightning.tasks.distillation.hidden_state_distance` over real tokens and all levels but the embeddings.
    The original is held in memory too, on the device of the module, but in no checkpoint, and runs beside the encoder
    in training. The tasks of papa_lightning do the same with their argument ``distillation``.

    Args:
        weight: Weight of the distance in the loss.
        teacher: Name on the hub, or folder, of the original. None copies the encoder of the module when the fit starts,
            before anything is swapped or a checkpoint is loaded.
        encoder: Attribute that holds the encoder, when the module has several.

    Raises:
        PapaError: For a weight that is not above 0. When the fit starts: for manual optimization, and for an encoder in
            which nothing learns.

    Example:
        >>> from lightning import Trainer
        >>> from papa_lightning import SwappedAttention
        >>> swapped = SwappedAttention("aft_simple", max_length=64)
        >>> trainer = Trainer(callbacks=[swapped, Distillation(weight=1.0)], logger=False)
    """

    def __init__(self, weight: float = 1.0, teacher: str | None = None, encoder: str | None = None) -> None:
        if not 0.0 < weight < float("inf"):
            raise PapaError(f"weight is {weight}, but must be above 0: leave the callback out for no distillation.")
        self.weight, self.teacher, self.encoder = weight, teacher, encoder
        self._teacher: Teacher | None = None
        self._hooks: list[RemovableHandle] = []
        self._wanted: dict[str, Any] = {}
        self._in_step = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Copy or load the original encoder."""
        if stage != "fit":
            return
        make_late_encoder(trainer, pl_module)
        if self.teacher is None:
            original = restore_attention(copy.deepcopy(discover_encoder(pl_module, self.encoder)))
        else:
            original = load_encoder(self.teacher)
        self._teacher = Teacher(original)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watch the encoder, and let the training step of this module add the distance to its loss."""
        student, teacher = discover_encoder(pl_module, self.encoder), self._teacher
        assert teacher is not None, "setup makes the teacher"
        check_learns(student, f"the weight of Distillation is {self.weight}", "leave the callback out")
        if not pl_module.automatic_optimization:
            raise PapaError(
                f"automatic_optimization of {type(pl_module).__name__} is False, so Distillation cannot add to the "
                "loss: leave it out, or let Lightning optimize."
            )
        teacher.move_to(student, pl_module.device)
        self._hooks = [
            student.register_forward_pre_hook(self._ask_for_levels, with_kwargs=True),
            student.register_forward_hook(self._compare, with_kwargs=True),
        ]
        original = pl_module.training_step

        @wraps(original)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            self._in_step = True
            try:
                output = original(*args, **kwargs)
            finally:
                self._in_step = False
            return self._with_distance(pl_module, output)

        training_step.__dict__[_BEFORE] = vars(pl_module).get("training_step")
        vars(pl_module)["training_step"] = training_step

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the original encoder, and leave the module as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._teacher = [], None
        ours = getattr(vars(pl_module).get("training_step"), "__dict__", {})
        if _BEFORE in ours:
            del vars(pl_module)["training_step"]
            if ours[_BEFORE] is not None:
                vars(pl_module)["training_step"] = ours[_BEFORE]

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Do the same after an error, when the Trainer calls no teardown."""
        self.teardown(trainer, pl_module, "fit")

    @property
    def _compares(self) -> bool:
        return self._in_step and torch.is_grad_enabled()  # the calibration pass runs the step without gradients

    def _ask_for_levels(
        self, student: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self._compares:
            return None
        wanted = named_inputs(student.forward, args, kwargs)
        self._wanted = {name: wanted.get(name) for name in ("output_hidden_states", "return_dict")}
        return (), {**wanted, "output_hidden_states": True, "return_dict": True}

    def _compare(self, student: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Note the distance; the caller gets the output that it asked for."""
        if not self._compares or self._teacher is None:
            return None
        inputs = {name: value for name, value in kwargs.items() if name not in self._wanted}
        self._teacher.compare(inputs, output.hidden_states)
        wanted = {
            name: getattr(student.config, name, None) if value is None else value
            for name, value in self._wanted.items()
        }
        if not wanted["output_hidden_states"]:
            output = type(output)(**{name: value for name, value in output.items() if name != "hidden_states"})
        return output.to_tuple() if wanted["return_dict"] is False else output

    def _with_distance(self, pl_module: L.LightningModule, output: Any) -> Any:
        if output is None or self._teacher is None or not torch.is_grad_enabled():
            return output
        distance = self._teacher.take()
        pl_module.log("train/distillation", distance)
        if isinstance(output, Mapping):
            return {**output, "loss": output["loss"] + self.weight * distance}
        return output + self.weight * distance
