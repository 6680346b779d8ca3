"""Kind "dynamic": a layer that a swap leaves as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from papa_lightning.attention.base import Place, TokenMixer
from papa_lightning.exceptions import PapaError


class UntouchedLayer(TokenMixer):
    """Stands in a layer that keeps the attention of the encoder, beside layers of other kinds.

    It has no parameters and is never called: all heads are dynamic for good.

    Args:
        place: See :class:`~papa_lightning.attention.base.TokenMixer`.
        heads: None.
    """

    kind = "dynamic"

    def __init__(self, place: Place, heads: Sequence[int]) -> None:
        super().__init__(place, heads)
        self._set_calibrated(True)

    @classmethod
    def needs_constants(cls, options: Mapping[str, Any]) -> bool:
        """No."""
        return False

    def load_constants(self, values: Any) -> None:
        """Refused.

        Raises:
            PapaError: Always.
        """
        raise PapaError(f'layer {self.layer} is of kind "dynamic", which takes no constants.')

    def dynamic_when_calibrated(self) -> Sequence[int]:
        """All heads."""
        return range(self.heads.num_heads)
