"""The atlas: numbers and names of all heads of an encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from papa_lightning.atlas.patterns import PATTERNS, name_pattern
from papa_lightning.atlas.statistics import LayerAverage
from papa_lightning.attention import RowMixing, Slots
from papa_lightning.calibration import AttentionAverages, AttentionConstants, eval_mode, finish
from papa_lightning.calibration.batches import run_encoder
from papa_lightning.criteria import HeadActivity
from papa_lightning.encoders import Packing, SupportedEncoder, compute_device, replace_mixing

if TYPE_CHECKING:
    import pandas as pd

#: Columns of the atlas beside the patterns: name -> words and meaning. The last three take a pass over data.
COLUMNS: Mapping[str, tuple[str, str]] = {
    "window": ("window", "distance within which half of the attention lies, in tokens"),
    "distance": ("distance", "mean distance of a key from its query, weighted with the attention, in tokens"),
    "constant_entropy": ("entropy of the constant", "mean entropy of a row of the constant, in nats"),
    "variance": ("variance", "mean squared distance of a row of attention from its constant row"),
    "entropy": ("entropy", "mean entropy of a row of dynamic attention, in nats"),
    "output_norm": ("output norm", "root mean square of the head's output, over the mean of the heads of its layer"),
}


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth value
class HeadAtlas:
    """What the constant of each head of an encoder does.

    Args:
        constants: The averages.
        scores: Scores (L, H) of the patterns, by their name.
        numbers: The other numbers (L, H), by their name in :data:`COLUMNS`.
        measured: How entropy and output norm were measured; empty where they were not.

    Example:
        >>> atlas = make_atlas(AttentionConstants(torch.full((2, 4, 8, 8), 0.125), torch.ones(8, 8)))
        >>> atlas.names[0][0], round(float(atlas.scores["broad"][0, 0]), 3)
        ('broad', 1.0)
    """

    constants: AttentionConstants
    scores: Mapping[str, Tensor]
    numbers: Mapping[str, Tensor]
    measured: Mapping[str, Any]

    @property
    def names(self) -> list[list[str]]:
        """The name of the pattern of each head, by layer."""
        return [
            [
                name_pattern({name: float(score[layer, head]) for name, score in self.scores.items()})
                for head in range(self.constants.num_heads)
            ]
            for layer in range(self.constants.num_layers)
        ]

    def words(self, layer: int, head: int) -> str:
        """The name of a head's pattern, and the tokens that get a fifth of its attention or more with their weights.

        Example:
            >>> previous = torch.eye(8).roll(-1, 1)[None, None]
            >>> make_atlas(AttentionConstants(previous, torch.ones(8, 8))).words(0, 0)
            'previous token (100 %)'
        """
        scores = {name: float(score[layer, head]) for name, score in self.scores.items()}
        name = name_pattern(scores)
        seen = [(PATTERNS[key].words, score) for key, score in scores.items() if PATTERNS[key].single and score >= 0.2]
        shares = {words: f"{100 * score:.0f} %" for words, score in sorted(seen, key=lambda one: -one[1])}
        others = [f"{words} {share}" for words, share in shares.items() if words != name]
        told = [*([shares[name]] if name in shares else []), *others]
        return f"{name} ({', '.join(told)})" if told else name

    def table(self) -> pd.DataFrame:
        """A row for each head: layer, head, pattern, the scores of the patterns, and the other numbers."""
        import pandas as pd

        names, held = self.names, {**self.scores, **self.numbers}
        return pd.DataFrame(
            {"layer": layer, "head": head, "pattern": names[layer][head]}
            | {name: float(values[layer, head]) for name, values in held.items()}
            for layer in range(self.constants.num_layers)
            for head in range(self.constants.num_heads)
        )


def make_atlas(constants: AttentionConstants) -> HeadAtlas:
    """The atlas of constants, without their encoder.

    Args:
        constants: Averages of a calibration. The weights of separators are known where the layout is segment-aligned,
            and then only those of the last one, which has a slot of its own.

    Returns:
        The atlas; its numbers lack those that take a pass over data.
    """
    final = (constants.max_length - 1,) if constants.metadata.get("layout") == "segment" else ()
    layers = [LayerAverage(own, constants.pair_counts, final) for own in constants.values.detach().cpu()]
    found = {name: [pattern.score(layer) for layer in layers] for name, pattern in PATTERNS.items()}
    scores = {name: torch.stack(own) for name, own in found.items() if all(one is not None for one in own)}  # type: ignore[arg-type]
    numbers = {
        "window": torch.stack([layer.window for layer in layers]),
        "distance": torch.stack([layer.distance for layer in layers]),
        "constant_entropy": torch.stack([layer.entropy for layer in layers]),
    }
    if constants.variance is not None:
        numbers["variance"] = constants.variance.double()
    return HeadAtlas(constants, scores, numbers, {})


def measure_atlas(
    encoder: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    max_length: int,
    *,
    constants: AttentionConstants | None = None,
    separators: Iterable[int] = (),
    metadata: Mapping[str, Any] | None = None,
) -> HeadAtlas:
    """The atlas of an encoder, with what one pass over data adds: entropy, output norms and weights of separators.

    Args:
        encoder: Any supported encoder, swapped or not; it is left as it was.
        batches: Mappings with the encoder's inputs, as for :func:`~papa_lightning.calibrate`.
        max_length: T, the longest sequence.
        constants: Constants of this encoder; None averages its attention in the same pass.
        separators: Token ids of separators; none leaves their weights out.
        metadata: Entries of the metadata of constants that are made, as for :func:`~papa_lightning.calibrate`.

    Returns:
        The atlas.

    Raises:
        PapaError: When the constants do not fit the encoder, a batch cannot be read, or a layer has no output
            projection.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=8)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
        >>> atlas = measure_atlas(BertModel(config), [batch], max_length=4, separators=[3])
        >>> atlas.numbers["output_norm"].shape, sorted(atlas.scores)[-2:]
        (torch.Size([1, 2]), ['previous', 'separator'])
    """
    found = SupportedEncoder.find(encoder)
    if constants is not None:
        constants.check(found, max_length)
    sizes = (found.num_layers, found.num_heads, max_length)
    averages = AttentionAverages(*sizes, compute_device(found.model)) if constants is None else None
    sums = _AtlasSums(found, tuple(separators), averages)
    mixings = [RowMixing(partial(sums.mix, layer), reads_slots=True) for layer in range(found.num_layers)]
    with torch.no_grad(), eval_mode(found.model), replace_mixing(found, mixings), sums.watching(found):
        # Not packed: then each run of the encoder is over the batch that was read last.
        for mask in run_encoder(found.model, sums.reading(batches), max_length, Packing(False)):
            sums.add_mask(mask)
    atlas = make_atlas(constants or finish(found, cast(AttentionAverages, averages), metadata or {}))
    scores = {**atlas.scores, **sums.scores}
    measured = {"sequences": sums.sequences, "max_length": max_length, "device": sums.device.type}
    return replace(
        atlas,
        scores={name: scores[name] for name in PATTERNS if name in scores},
        numbers={**atlas.numbers, **sums.numbers},
        measured=measured,
    )


class _AtlasSums(HeadActivity):
    """Activity of the heads, weights of separators, and the averages themselves where there are no constants yet."""

    def __init__(
        self, encoder: SupportedEncoder, separators: tuple[int, ...], averages: AttentionAverages | None
    ) -> None:
        super().__init__(encoder)
        self.device, self.averages, self.sequences = compute_device(encoder.model), averages, 0
        self._separators = torch.tensor(separators, dtype=torch.int64, device=self.device)
        self._on_separators = torch.zeros(encoder.num_layers, encoder.num_heads, device=self.device).double()
        self._batch: Mapping[str, Any] = {}

    def reading(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The batches, of which the last one is the one that runs."""
        for batch in batches:
            self._batch = batch
            yield batch

    def look(self, layer: int, matrices: Tensor, slots: Slots | None) -> None:
        """See :meth:`HeadActivity.look`."""
        if self.averages is not None:
            self.averages.add_rows(layer, 0, matrices, slots)
        if len(self._separators) and "input_ids" in self._batch:
            keys = torch.isin(self._batch["input_ids"].to(self.device), self._separators).to(matrices.dtype)
            weights = (matrices.sum(dim=2) * keys[:, None]).sum(dim=2)
            self._on_separators[layer] += weights.sum(dim=0, dtype=torch.float64)

    def add_mask(self, mask: Tensor) -> None:
        """Count the sequences of a batch by its mask (B, slots)."""
        self.sequences += int(mask.any(dim=1).sum())
        if self.averages is not None:
            self.averages.add_mask(mask)

    @property
    def scores(self) -> dict[str, Tensor]:
        """The weight of separators (L, H) by the name of its pattern, where these are known."""
        return {"separator": (self._on_separators / self._rows).cpu()} if len(self._separators) else {}

    @property
    def numbers(self) -> dict[str, Tensor]:
        """Entropy and output norm (L, H) by their columns."""
        return {"entropy": self.entropy.cpu(), "output_norm": self.relative_output_norm.cpu()}
