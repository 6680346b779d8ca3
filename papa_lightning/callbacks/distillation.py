"""The callback that trains a swapped encoder to stay near the original one."""

import copy
from collections.abc import Mapping, Sequence
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from papa_lightning.calibration.observing import named_inputs
from papa_lightning.either_lightning import Callback, L
from papa_lightning.encoders import restore_attention
from papa_lightning.encoders.loading import load_encoder
from papa_lightning.errors import PapaError
from papa_lightning.lightning_project.encoder import discover_encoder, make_late_encoder

#: Marks the ``training_step`` of this callback, and holds the one that the instance had before.
_BEFORE = "papa_before"


def hidden_state_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None) -> Tensor:
    r"""Mean squared error of L states (B, T, d), :math:`\frac1L \sum_l \mathrm{mean}\,(S_l - T_l)^2` over real tokens.

    Example:
        >>> states = [torch.tensor([[[1.0], [9.0]]]), torch.tensor([[[3.0], [9.0]]])]
        >>> hidden_state_distance(states, [torch.zeros(1, 2, 1)] * 2, torch.tensor([[1, 0]]))
        tensor(5.)
    """
    real = slice(None) if mask is None else mask.bool()
    levels = [(own.float() - other.float())[real].square().mean() for own, other in zip(student, teacher, strict=True)]
    return torch.stack(levels).mean()


class Teacher:
    """The original encoder, frozen and in evaluation mode; no submodule, so that no checkpoint and no DDP sees it."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        self.encoder = encoder
        self.encoder.requires_grad_(False)
        self.encoder.train(False)
        self._distances: list[Tensor] = []

    def move_to(self, student: PreTrainedModel, device: torch.device) -> None:
        """Move the original to a device, in the dtype of the trained encoder."""
        cast(nn.Module, self.encoder).to(device=device, dtype=student.dtype)

    def compare(self, inputs: Mapping[str, Any], student: Sequence[Tensor]) -> None:
        """Note the distance of L + 1 hidden states of a batch from the original ones, over all but the embeddings."""
        with torch.no_grad():
            teacher = self.encoder(**{**inputs, "output_hidden_states": True, "return_dict": True}).hidden_states
        self._distances.append(hidden_state_distance(student[1:], teacher[1:], inputs.get("attention_mask")))

    def forget(self) -> None:
        """Drop the distances of the batches compared since the last call of :meth:`take`."""
        self._distances = []

    def take(self) -> Tensor:
        """Mean distance of the batches compared since the last call."""
        distances, self._distances = self._distances, []
        if not distances:
            raise PapaError(
                "the training step has not called the encoder, so there is nothing to distil: name the one "
                "that it trains with encoder=..., or leave distillation out."
            )
        return torch.stack(distances).mean()


class Distillation(Callback):
    """Add the distance between the hidden states of an encoder and those of its original to the loss.

    For encoders that another callback swaps: the loss becomes ``loss + weight * distance``, with the mean squared error
    over real tokens and all levels but the embeddings, logged as ``train/distillation``. The original runs beside the
    encoder on its device, and is in no checkpoint. Tasks add the callback if their ``distillation`` is above 0.

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
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise PapaError(
                f"the weight of distillation is {self.weight}, but nothing in the encoder learns: swap its attention "
                "to a kind with parameters, or fine-tune it, or leave distillation out."
            )
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
        wanted = {key: getattr(student.config, key, None) if one is None else one for key, one in self._wanted.items()}
        if not wanted["output_hidden_states"]:
            output = type(output)(**{name: value for name, value in output.items() if name != "hidden_states"})
        return output.to_tuple() if wanted["return_dict"] is False else output

    def _with_distance(self, pl_module: L.LightningModule, output: Any) -> Any:
        if self._teacher is None or not torch.is_grad_enabled():
            return output
        if output is None:  # Lightning skips this batch, so its distance joins no loss
            self._teacher.forget()
            return None
        distance = self._teacher.take()
        pl_module.log("train/distillation", distance)
        if isinstance(output, Mapping):
            return {**output, "loss": output["loss"] + self.weight * distance}
        return output + self.weight * distance
