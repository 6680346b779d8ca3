"""Distillation: the distance of a swapped encoder's hidden states from the original ones, as a part of the loss."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.errors import PapaError


def hidden_state_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None) -> Tensor:
    r"""Mean squared error of hidden states, :math:`\frac1L \sum_l \mathrm{mean}\,(S_l - T_l)^2` over real tokens.

    Args:
        student: L tensors (B, T, d), one a level.
        teacher: The same of the original encoder.
        mask: (B, T), true for a real token, or None.

    Example:
        >>> states = [torch.tensor([[[1.0], [9.0]]]), torch.tensor([[[3.0], [9.0]]])]
        >>> hidden_state_distance(states, [torch.zeros(1, 2, 1)] * 2, torch.tensor([[1, 0]]))
        tensor(5.)
    """
    real = slice(None) if mask is None else mask.bool()
    levels = [(own.float() - other.float())[real].square().mean() for own, other in zip(student, teacher, strict=True)]
    return torch.stack(levels).mean()


def check_learns(encoder: PreTrainedModel, found: str, remedy: str) -> None:
    """Refuse an encoder in which nothing learns; `found` is the argument that asks for distillation, with its value."""
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        raise PapaError(
            f"{found}, but nothing in the encoder learns: swap its attention to a kind with parameters, or fine-tune "
            f"it, or {remedy}."
        )


class Teacher:
    """The original encoder, frozen and in evaluation mode, beside a module that trains the swapped one.

    A second copy of the weights, because fine-tuning changes those of the first. No submodule of the trained module, so
    it is in no checkpoint and DDP does not see it.
    """

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

    def take(self) -> Tensor:
        """Mean distance of the batches compared since the last call."""
        distances, self._distances = self._distances, []
        if not distances:
            raise PapaError(
                "the training step has not called the encoder, so there is nothing to distil: name the one "
                "that it trains with encoder=..., or leave distillation out."
            )
        return torch.stack(distances).mean()
