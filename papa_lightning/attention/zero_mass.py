"""The one thing that can silently go wrong with constants: a real token that attends to nothing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from papa_lightning.attention.functional import EPS, constant_mass


class ZeroMassWarning(UserWarning):
    """A real token attends to nothing: calibration saw none of the keys that it may attend to."""


def first_zero_of_diagonal(constants: Tensor) -> int:
    """The first position whose own entry C[h,i,i] is 0 in some head, or T when there is none.

    Up to this length no real row can lose its mass, because a real token is always a key of itself.

    Args:
        constants: (H, T, T).

    Example:
        >>> first_zero_of_diagonal(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]))
        1
    """
    zero = (constants.diagonal(dim1=1, dim2=2) == 0).any(dim=0)
    return int(torch.cat([zero, zero.new_ones(1)]).int().argmax())


class ZeroMassWatch:
    """Warns once, for all layers that share it, when a real query row of a constant head has zero mass."""

    def __init__(self) -> None:
        self.warned = False

    def check(self, layer: int, heads: Sequence[int], constants: Tensor, mask: Tensor | None) -> None:
        """Look at one batch.

        Args:
            layer: Number of the layer, for the message.
            heads: Numbers of the constant heads, for the message.
            constants: (H, t, t) of these heads.
            mask: (B, t), true for a real token, or None.
        """
        if self.warned:
            return
        empty = constant_mass(constants.detach(), mask) < EPS
        if mask is not None:
            empty = empty & mask.bool()[:, None, :]
        if not empty.any():
            return
        self.warned = True
        rows = empty.any(dim=0).nonzero().tolist()
        affected = sorted({heads[head] for head, _ in rows})
        positions = sorted({position for _, position in rows})
        warnings.warn(
            f"layer {layer}, heads {affected}: real tokens at positions {positions} attend to nothing, because "
            "calibration saw none of the keys they may attend to; their attention output is 0. Calibrate on sequences "
            "that reach these positions, or cut the input. (Reported once; other layers may be affected too.)",
            ZeroMassWarning,
            stacklevel=2,
        )
