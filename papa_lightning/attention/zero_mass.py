"""Warning of real tokens that attend to nothing, because calibration saw none of their keys."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from papa_lightning.attention.functional import EPS, constant_mass


class ZeroMassWarning(UserWarning):
    """A real token attends to nothing: calibration saw none of the keys that it may attend to."""


def pruned_heads(constants: Tensor) -> Tensor:
    """(H,), true for constants (H, T, T) that are 0 throughout, on purpose: no average is, before it is cut."""
    return (constants == 0).flatten(1).all(dim=1)


def first_zero_of_diagonal(constants: Tensor) -> int:
    """The first position whose own entry C[h,i,i] is 0 in some head that is not pruned, or T when there is none."""
    return certain_length(constants.diagonal(dim1=1, dim2=2), pruned_heads(constants))


def certain_length(own: Tensor, pruned: Tensor) -> int:
    """The first position without a weight for itself, of (H, T), in some head that is not pruned, of (H,), or T."""
    uncertain = ((own == 0) & ~pruned[:, None]).any(dim=0)
    return int(torch.cat([uncertain, uncertain.new_ones(1)]).int().argmax())


class ZeroMassWatch:
    """Warns once, for all layers that share it, of real query rows without mass, but not in heads that are all 0."""

    def __init__(self) -> None:
        self.warned = False

    def check(
        self, layer: int, heads: Sequence[int], constants: Tensor, mask: Tensor | None, whole: Tensor | None = None
    ) -> None:
        """Check (H, t, t) of heads, cut from ``whole`` (H, T, T) unless it is None, for a batch with a mask (B, t)."""
        if self.warned:
            return
        mass = constant_mass(constants.detach(), mask)
        if (mass < EPS).any():  # only then are the whole constants read
            pruned = pruned_heads((constants if whole is None else whole).detach())
            self.check_mass(layer, heads, mass, mask, pruned)

    def check_mass(self, layer: int, heads: Sequence[int], mass: Tensor, mask: Tensor | None, pruned: Tensor) -> None:
        """Check the row sums (B or 1, H, t) over the real keys, of constants of any form, but for pruned heads (H,)."""
        if self.warned:
            return
        empty = (mass < EPS) & ~pruned[:, None]
        if mask is not None:
            empty = empty & mask.bool()[:, None, :]
        if not empty.any():
            return
        self.warned = True
        rows = empty.any(dim=0).nonzero().tolist()
        affected = sorted({heads[head] for head, _ in rows})
        positions = sorted({position for _, position in rows})
        self.report(
            f"layer {layer}, heads {affected}: real tokens at positions {positions} attend to nothing, because "
            "calibration saw none of the keys they may attend to; their attention output is 0. Fill the constants "
            "(fill_unseen=True of a callback, or constants.filled()), calibrate on sequences that reach these "
            "positions, or cut the input. (Reported once; other layers may be affected too.)"
        )

    def report(self, text: str) -> None:
        """Give the warning."""
        warnings.warn(text, ZeroMassWarning, stacklevel=3)


class ZeroMassRecord(ZeroMassWatch):
    """Keeps the text of the warning, for a run that swaps many times and warns at its end.

    Attributes:
        text: The text, "" as long as there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def report(self, text: str) -> None:
        """Keep the text."""
        self.text = text
