"""Keeping a swapped encoder near the original one: the distance of their hidden states as a part of the loss."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel


def hidden_state_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None) -> Tensor:
    r"""Mean squared error of hidden states, :math:`\frac1L \sum_l \mathrm{mean}\,(S_l - T_l)^2` over real tokens.

    Args:
        student: L tensors (B, T, d), one a level.
        teacher: The same of the encoder to stay near.
        mask: (B, T), true for a real token, or None.

    Returns:
        A scalar, in float32 at least.

    Example:
        >>> states = [torch.tensor([[[1.0], [9.0]]]), torch.tensor([[[3.0], [9.0]]])]
        >>> hidden_state_distance(states, [torch.zeros(1, 2, 1)] * 2, torch.tensor([[1, 0]]))
        tensor(5.)
    """
    real = slice(None) if mask is None else mask.bool()
    levels = [(own.float() - other.float())[real].square().mean() for own, other in zip(student, teacher, strict=True)]
    return torch.stack(levels).mean()


class Teacher:
    """The original encoder, frozen and in evaluation mode, beside a task that trains a swapped one.

    A second copy of the weights, because fine-tuning moves those of the first: its memory is that of one more encoder
    without gradients and without optimizer states. Not a submodule, so it is in no checkpoint and DDP does not see it.

    Args:
        encoder: The original, for the teacher alone.
    """

    def __init__(self, encoder: PreTrainedModel) -> None:
        self.encoder = encoder
        self.encoder.requires_grad_(False)
        self.encoder.train(False)
        self._distance: Tensor | None = None

    def compare(self, inputs: Mapping[str, Tensor], student: Sequence[Tensor]) -> None:
        """Note how far the hidden states of a batch are from the original ones, all levels but the embeddings.

        Args:
            inputs: Of the encoder.
            student: The L + 1 hidden states of the swapped encoder.
        """
        with torch.no_grad():
            teacher = self.encoder(**inputs, output_hidden_states=True, return_dict=True).hidden_states
        self._distance = hidden_state_distance(student[1:], teacher[1:], inputs.get("attention_mask"))

    def take(self) -> Tensor:
        """The distance of the batch of the last :meth:`compare`, once."""
        distance, self._distance = self._distance, None
        assert distance is not None, "no batch was compared"
        return distance
