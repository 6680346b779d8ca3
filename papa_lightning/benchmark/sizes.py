"""The sizes of an encoder and of its input."""

from __future__ import annotations

import re
from dataclasses import dataclass

from papa_lightning.errors import PapaError


@dataclass(frozen=True)
class Size:
    """One encoder with one input.

    Args:
        hidden: d.
        layers: L.
        heads: H.
        batch: B, sequences.
        length: T, tokens.
    """

    hidden: int
    layers: int
    heads: int
    batch: int
    length: int


def read_input(text: str) -> tuple[int, int]:
    """Read batch and length.

    Args:
        text: "BxT".

    Raises:
        PapaError: For anything else.

    Example:
        >>> read_input("16x128")
        (16, 128)
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(text).replace(" ", ""))
    if found is None:
        raise PapaError(f"inputs has {text!r}, but an input is sequences x tokens, such as 16x128.")
    return int(found[1]), int(found[2])
