"""Criteria and their registry; those of other packages are entry points of the group ``papa_lightning.criteria``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.calibration import AttentionConstants
from papa_lightning.encoders import Packing, attention_reaches, encoder_shape, find_encoder
from papa_lightning.errors import PapaError, did_you_mean
from papa_lightning.ranking import UNITS, HeadRanking, merge_ties
from papa_lightning.registry import Registry
from papa_lightning.text import Table

if TYPE_CHECKING:
    from papa_lightning.tasks.base import EncoderTask


@dataclass(frozen=True)
class RankingInputs:
    """Inputs of criteria; the attribute `needs` of a criterion names those that it cannot do without.

    Args:
        encoder: The encoder, swapped or not, with or without a task head. It is left exactly as it was.
        constants: Constants of this encoder, as its heads would get them.
        batches: Mappings with the encoder's inputs as for :func:`~papa_lightning.calibrate`, with labels where a loss
            is taken; every criterion iterates over them anew.
        loss: Function of a labelled batch that returns its mean loss, computed through `encoder`.
        task: Task that holds `encoder`; a copy of it is trained.
        packing: Settings of packing for criteria that run the encoder themselves, None for the defaults; a task has
            its own.
        embed: Function of a batch that returns the embeddings (B, d) of its sentences, computed through `encoder`; see
            :class:`~papa_lightning.embeddings.Embedder`.
    """

    encoder: nn.Module
    constants: AttentionConstants | None = None
    batches: Iterable[Mapping[str, Any]] | None = None
    loss: Callable[[Mapping[str, Any]], Tensor] | None = None
    task: EncoderTask | None = None
    packing: Packing | None = None
    embed: Callable[[Mapping[str, Any]], Tensor] | None = None


class HeadCriterion(ABC):
    """Base of all criteria: a score for every head, lowest where attention matters least.

    A subclass is registered with ``@CRITERIA.register("name")``, declares `needs`, and implements :meth:`measure`; see
    docs/rankings.md.

    Attributes:
        name: Name in :data:`CRITERIA`, set by the registration.
        details: Forms of the text after the name and a colon, for help texts; "" for the name alone.
        needs: Names of the fields of :class:`RankingInputs` that must not be None.
        passes: Cost in forward passes over the batches; 0 where nothing is run.
        ordered: Whether scores depend on the order of the batches; studies and ``papa rank`` give training
            rows of a task with a probe in random order then, because they may be sorted by label.
        needs_probe: Whether it asks a probe that was trained on labels, so that it says nothing about embeddings.
        measures: Whether scores say something about the encoder, so that reports show them.
        magnitude: Magnitude of quantities whose difference a score is, where it can be much larger than every score.
        formula: The score of a head in the table of docs/rankings.md; empty takes the first line of the docstring.
        source: Publication of the formula.
    """

    name: ClassVar[str]
    details: ClassVar[tuple[str, ...]] = ("",)
    needs: ClassVar[frozenset[str]] = frozenset()
    passes: float = 0.0
    ordered: ClassVar[bool] = False
    needs_probe: ClassVar[bool] = False
    measures: ClassVar[bool] = True
    magnitude: ClassVar[float] = 0.0
    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""

    @classmethod
    def from_detail(cls, detail: str) -> HeadCriterion | None:
        """Make the criterion of the text ``name`` or ``name:detail``; None for a detail that it does not have."""
        return None if detail else cls()

    @classmethod
    def texts(cls) -> list[str]:
        """The texts by which users name the criterion."""
        return [f"{cls.name}:{detail}" if detail else cls.name for detail in cls.details]

    @property
    def spec(self) -> str:
        """The text from which :func:`criterion_from` makes this criterion."""
        return self.name

    def scores(self, inputs: RankingInputs) -> Tensor:
        """Score every head.

        Args:
            inputs: Inputs of the criterion.

        Returns:
            (L, H), float64, on the CPU, lowest for the head that becomes constant first; rounding makes no difference.

        Raises:
            PapaError: When something is missing in `inputs` or does not fit, or a score is not finite.
        """
        missing = [name for name in sorted(self.needs) if getattr(inputs, name) is None]
        if missing:
            raise PapaError(
                f"criterion {self.name!r} needs {', '.join(missing)}, but {missing[0]} is None: pass RankingInputs("
                f"encoder, {', '.join(f'{name}=...' for name in sorted(self.needs))})."
            )
        base = find_encoder(inputs.encoder)
        if inputs.constants is not None and "constants" in self.needs:
            inputs.constants.check(base)
        scores, shape = self.measure(inputs).detach().double().cpu(), encoder_shape(base)
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
        """Largest difference of two of the scores (L, H), float64, that may come from rounding alone."""
        return precision(find_encoder(inputs.encoder)) * max(self.magnitude, float(scores.abs().max()))

    @abstractmethod
    def measure(self, inputs: RankingInputs) -> Tensor:
        """Compute the scores, (L, H); what :attr:`needs` names is in the inputs, and constants fit the encoder."""


#: Classes of criteria by name.
CRITERIA: Registry[type[HeadCriterion]] = Registry(
    "criterion",
    lambda part: isinstance(part, type) and issubclass(part, HeadCriterion),
    group="papa_lightning.criteria",
    attribute="name",
)


def criterion_texts() -> list[str]:
    """The texts of all registered criteria, as users name them.

    Example:
        >>> {"variance", "random:SEED", "layer:bottom_up"} <= set(criterion_texts())
        True
    """
    return [text for criterion in CRITERIA.values() for text in criterion.texts()]


def criteria_help() -> str:
    """The choice of criteria as one phrase, for help texts: "variance, ... or layer:top_down"."""
    *others, last = criterion_texts()
    return f"{', '.join(others)} or {last}"


def criteria_table() -> Table:
    """The table of criteria of the documentation."""
    rows = []
    for criterion in CRITERIA.values():
        formula = criterion.formula or (criterion.__doc__ or "").strip().partition("\n")[0]
        texts = ", ".join(f"`{text}`" for text in criterion.texts())
        rows.append((texts, formula, criterion.source, ", ".join(sorted(criterion.needs)), f"{criterion.passes:g}"))
    return Table(("criterion", "score of a head", "source", "needs", "cost"), rows, left=4)


def criterion_from(spec: str) -> HeadCriterion:
    """Make a criterion from its text.

    Args:
        spec: One of :func:`criterion_texts`, with a number in the place of SEED.

    Raises:
        PapaError: When there is no such criterion.

    Example:
        >>> criterion_from("random:3").seed
        3
        >>> criterion_from("median")
        Traceback (most recent call last):
        ...
        papa_lightning.errors.PapaError: criterion is 'median': choose from variance, divergence, output, \
output_norm, entropy, first_token, embedding, embedding:SEQUENCES, taylor, gate, greedy, greedy:SEQUENCES, random, \
random:SEED, layer:bottom_up, layer:top_down.
    """
    name, colon, detail = str(spec).partition(":")
    made = CRITERIA[name].from_detail(detail) if name in CRITERIA and bool(colon) == bool(detail) else None
    if made is None:
        end = did_you_mean(spec, criterion_texts()) or "."
        raise PapaError(f"criterion is {spec!r}: choose from {', '.join(criterion_texts())}{end}")
    return made


def rank_heads(criterion: str | HeadCriterion, inputs: RankingInputs) -> HeadRanking:
    """Rank the heads of an encoder: the lowest score becomes constant first, ties by layer and head.

    Args:
        criterion: A criterion, or its text as for :func:`criterion_from`.
        inputs: Inputs of the criterion.

    Returns:
        The ranking, with the scores and the text of the criterion.

    Raises:
        PapaError: When there is no such criterion, or an input that it needs is missing or does not fit.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=2, hidden_size=8, intermediate_size=8)
        >>> ranking = rank_heads("layer:top_down", RankingInputs(BertModel(config)))
        >>> ranking.heads, ranking.criterion
        ([(1, 0), (1, 1), (0, 0), (0, 1)], 'layer:top_down')
    """
    chosen = criterion if isinstance(criterion, HeadCriterion) else criterion_from(criterion)
    spec = criterion if isinstance(criterion, str) else chosen.spec
    return HeadRanking.from_scores(chosen.scores(inputs).tolist(), criterion=spec, rounding=0.0)


def precision(encoder: PreTrainedModel) -> float:
    """Relative precision of what a bare encoder computes; attention and losses are added up in float32 at least."""
    return UNITS * torch.finfo(torch.promote_types(encoder.dtype, torch.float32)).eps


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors on a device."""
    return {name: entry.to(device) if isinstance(entry, Tensor) else entry for name, entry in batch.items()}


def per_layer(inputs: RankingInputs) -> list[Tensor]:
    """The constants of each layer, (H, T, T), on the device of the encoder and cut to what its queries can see."""
    base = find_encoder(inputs.encoder)
    assert inputs.constants is not None
    values = inputs.constants.values.to(base.device, torch.promote_types(base.dtype, torch.float32))
    return [reach.cut(own) for reach, own in zip(attention_reaches(base), values, strict=True)]
