"""Bases of the kinds that need no constants, and kind "dynamic"."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from papa_lightning.attention.dynamic import DynamicAttention
from papa_lightning.attention.mixer import KINDS, KindFacts, Place, TokenMixer
from papa_lightning.errors import PapaError


class WithoutConstants(TokenMixer):
    """Mixer that never waits, and whose heads all keep their query and key."""

    @classmethod
    def needs_constants(cls, options: Mapping[str, Any]) -> bool:
        """See :meth:`TokenMixer.needs_constants`: none, unless a kind overrides it."""
        return False

    def load_constants(self, values: Any) -> None:
        """Refuse constants, unless a kind overrides it."""
        raise PapaError(
            f"kind {self.kind!r} with options {self.options()} in layer {self.layer} takes no constants: leave "
            "them out."
        )

    def dynamic_when_calibrated(self) -> Sequence[int]:
        """See :meth:`TokenMixer.dynamic_when_calibrated`: all heads."""
        return range(self.heads.num_heads)


class ScorelessLayer(WithoutConstants):
    """Mixer of whole layers without dot products of queries and keys, and so without matrices and attention dropout.

    In a layer of limited reach only causality counts: a sliding window of the encoder does not bind it.

    Args:
        place: Position in the encoder, with the size of the heads.
        heads: All heads of the layer.
        causal: Whether the encoder is causal, which is what is kept as attribute; None takes it from the encoder.
    """

    uses_scores = False
    has_matrices = False

    def __init__(self, place: Place, heads: Sequence[int], causal: bool | None = None) -> None:
        super().__init__(place, heads)
        self.causal = place.reach.after == 0
        if causal not in (None, self.causal):
            found = ("bidirectional", "causal")[self.causal]
            raise PapaError(
                f"causal is {causal!r}, but layer {place.layer} of the encoder is {found}, and its "
                "replacement must be, too: leave causal out."
            )
        if place.head_size < 1:
            raise PapaError(f"head_size is {place.head_size}, but kind {self.kind!r} needs the size of the heads.")

    def check_length(self, length: int) -> None:
        """Refuse sequences that are longer than the position bias."""
        if length > self.max_length:
            raise PapaError(
                f"the sequences are {length} tokens long, but the position bias of kind {self.kind!r} is for "
                f"max_length {self.max_length}: cut the sequences, or swap with a larger max_length."
            )

    def forward(
        self, attention: DynamicAttention, value: Tensor, dropout: float = 0.0, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`TokenMixer.forward`; dropout and scores are not used, and there are no matrices."""
        return self.mix(attention.query, attention.key, value, attention.mask), None

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Mixed values (B, T, H, h), from queries, keys and values (B, H, T, h)."""
        raise NotImplementedError


@KINDS.register("dynamic")
class UntouchedLayer(WithoutConstants):
    """Placeholder, never called, in a layer that keeps the attention of the encoder beside layers of other kinds."""

    facts = KindFacts("a layer that is left alone, beside others", "none", "as before", "the encoder")

    def __init__(self, place: Place, heads: Sequence[int]) -> None:
        super().__init__(place, heads)
        self._set_calibrated(True)
