"""What every criterion has in common: what it is given, and what it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.calibration import AttentionConstants
from papa_lightning.encoders import attention_reaches, encoder_shape, find_encoder
from papa_lightning.errors import PapaError
from papa_lightning.ranking import UNITS, merge_ties

if TYPE_CHECKING:
    from papa_lightning.tasks.base import EncoderTask


@dataclass(frozen=True)
class RankingInputs:
    """What criteria may look at; each says in `needs` which of these it cannot do without.

    Args:
        encoder: The encoder, swapped or not, with or without a task head. It is left exactly as it was.
        constants: Of this encoder.
        batches: Mappings with the encoder's inputs as for :func:`~papa_lightning.calibrate`, labelled where a loss is
            taken; gone over again by every criterion.
        loss: The mean loss of a labelled batch, computed through `encoder`.
        task: The task to train a copy of; it holds `encoder`.
    """

    encoder: nn.Module
    constants: AttentionConstants | None = None
    batches: Iterable[Mapping[str, Any]] | None = None
    loss: Callable[[Mapping[str, Any]], Tensor] | None = None
    task: EncoderTask | None = None


class HeadCriterion(ABC):
    """A way of telling which heads need their attention least.

    A subclass sets `name` and `needs` and writes :meth:`measure`; see docs/rankings.md.

    Attributes:
        name: By which :data:`~papa_lightning.criteria.CRITERIA` knows it.
        needs: Names of the fields of :class:`RankingInputs` that must not be None.
        passes: What it costs, in forward passes over the batches; 0 where it runs nothing.
        magnitude: Of the quantities whose difference a score is, where these can be much larger than every score.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    passes: float = 0.0
    magnitude: ClassVar[float] = 0.0

    @property
    def spec(self) -> str:
        """The text that :func:`~papa_lightning.criteria.criterion_from` makes this criterion of."""
        return self.name

    def scores(self, inputs: RankingInputs) -> Tensor:
        """Score every head.

        Args:
            inputs: What the criterion may look at.

        Returns:
            (L, H), float64, on the CPU; the head with the lowest score becomes constant first. Scores that differ by
            the rounding of their computation only are equal.

        Raises:
            PapaError: When something is missing in `inputs` or does not fit, or a score is not finite.
        """
        self._check(inputs)
        scores = self.measure(inputs).detach().double().cpu()
        shape = encoder_shape(find_encoder(inputs.encoder))
        if tuple(scores.shape) != shape:
            raise PapaError(
                f"criterion {self.name!r} gave scores of shape {tuple(scores.shape)}, but the encoder has {shape[0]} "
                f"layers of {shape[1]} heads: let it give one score a head, of shape {shape}."
            )
        if not bool(scores.isfinite().all()):
            broken = [tuple(head) for head in (~scores.isfinite()).nonzero().tolist()]
            raise PapaError(
                f"criterion {self.name!r} gave scores that are not finite for (layer, head) {broken[0]} and "
                f"{len(broken) - 1} others: check the checkpoint and the loss, and compute in 32-bit precision."
            )
        merged = merge_ties(scores.flatten().tolist(), self.rounding(inputs, scores))
        return torch.tensor(merged, dtype=torch.float64).view(shape)

    def rounding(self, inputs: RankingInputs, scores: Tensor) -> float:
        """The largest difference of two scores that may come from rounding only.

        Args:
            inputs: See :meth:`scores`.
            scores: (L, H), float64.
        """
        return precision(find_encoder(inputs.encoder)) * max(self.magnitude, float(scores.abs().max()))

    @abstractmethod
    def measure(self, inputs: RankingInputs) -> Tensor:
        """Compute the scores; what :attr:`needs` names is there, and constants fit the encoder.

        Args:
            inputs: See :meth:`scores`.

        Returns:
            (L, H).
        """

    def _check(self, inputs: RankingInputs) -> None:
        missing = [name for name in sorted(self.needs) if getattr(inputs, name) is None]
        if missing:
            raise PapaError(
                f"criterion {self.name!r} needs {', '.join(missing)}, but {missing[0]} is None: pass RankingInputs("
                f"encoder, {', '.join(f'{name}=...' for name in sorted(self.needs))})."
            )
        if inputs.constants is not None and "constants" in self.needs:
            inputs.constants.check(find_encoder(inputs.encoder))


def precision(encoder: PreTrainedModel) -> float:
    """What quantities that an encoder computes are exact to, relative to their magnitude.

    Args:
        encoder: The bare encoder; in half precision attention and losses are still added up in float32.
    """
    return UNITS * torch.finfo(torch.promote_types(encoder.dtype, torch.float32)).eps


def per_layer(inputs: RankingInputs) -> list[Tensor]:
    """The constants of each layer, (H, T, T), on the device of the encoder and cut to what its queries can see.

    Args:
        inputs: With constants.
    """
    base = find_encoder(inputs.encoder)
    assert inputs.constants is not None
    dtype = torch.promote_types(base.dtype, torch.float32)
    values = inputs.constants.values.to(base.device, dtype)
    return [reach.cut(own) for reach, own in zip(attention_reaches(base), values, strict=True)]
