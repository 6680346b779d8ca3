"""How far the tokens of a layer can look: everywhere, backwards only, or as far as a window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reach:
    """The keys that a query may attend to by the build of its layer, whatever the input.

    Calibrated constants are 0 beyond it by themselves; those that were made by hand, or trained, are cut to it.

    Args:
        before: How many positions back a query can look; None for all.
        after: How many positions ahead; None for all, 0 in a causal layer.

    Example:
        >>> Reach(before=1, after=0).allowed(3)
        tensor([[ True, False, False],
                [ True,  True, False],
                [False,  True,  True]])
    """

    before: int | None = None
    after: int | None = None

    @property
    def unlimited(self) -> bool:
        """True when every query can look everywhere."""
        return self.before is None and self.after is None

    def cut(self, matrices: Tensor) -> Tensor:
        """Matrices (..., T, T), rows are queries, with 0 (or False) beyond the reach."""
        if self.after is not None:
            matrices = matrices.tril(self.after)
        if self.before is not None:
            matrices = matrices.triu(-self.before)
        return matrices

    def allowed(self, length: int, device: torch.device | str | None = None) -> Tensor:
        """(T, T) boolean, true where a query may look."""
        return self.cut(torch.ones(length, length, dtype=torch.bool, device=device))
