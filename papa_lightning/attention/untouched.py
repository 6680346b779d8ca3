"""Kind "dynamic": a layer that a swap leaves as it is."""

from __future__ import annotations

from collections.abc import Sequence

from papa_lightning.attention.mixer import Place
from papa_lightning.attention.without_constants import WithoutConstants


class UntouchedLayer(WithoutConstants):
    """Stands in a layer that keeps the attention of the encoder, beside layers of other kinds.

    It has no parameters and is never called: all heads are dynamic for good.

    Args:
        place: See :class:`~papa_lightning.attention.mixer.TokenMixer`.
        heads: None.
    """

    kind = "dynamic"

    def __init__(self, place: Place, heads: Sequence[int]) -> None:
        super().__init__(place, heads)
        self._set_calibrated(True)
