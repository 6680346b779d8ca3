"""What the kinds have in common that need no constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from papa_lightning.attention.mixer import TokenMixer
from papa_lightning.errors import PapaError


class WithoutConstants(TokenMixer):
    """A mixer that never waits and whose heads all keep their query and key; see the base for the arguments."""

    @classmethod
    def needs_constants(cls, options: Mapping[str, Any]) -> bool:
        """Not unless a kind says so."""
        return False

    def load_constants(self, values: Any) -> None:
        """Refused, unless a kind takes them.

        Raises:
            PapaError: Always.
        """
        raise PapaError(
            f"kind {self.kind!r} with options {self.options()} in layer {self.layer} takes no constants: leave "
            "them out."
        )

    def dynamic_when_calibrated(self) -> Sequence[int]:
        """All heads: their queries and keys are used."""
        return range(self.heads.num_heads)
