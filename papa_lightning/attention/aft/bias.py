"""Position biases of attention-free mixing that are made of few parameters."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papa_lightning.attention.functional import accumulation_dtype
from papa_lightning.checks import whole
from papa_lightning.errors import PapaError
from papa_lightning.kernels import usable


class FactorizedBias(nn.Module):
    """Position bias ``w = u v^T`` with an inner size of 64 to 256 (Zhai et al. 2021, arXiv 2105.14103).

    2 T n parameters instead of T^2. Both factors begin as normal numbers, so small that w has a standard deviation of
    0.01: the layer starts near AFT-simple. Computed in float32 at least, also under autocast.

    Args:
        max_length: T, the longest sequence.
        inner: n, the size of the factors.
        groups: H, the number of groups of channels with a bias of their own.

    Raises:
        PapaError: When a number is smaller than 1.

    Example:
        >>> bias = FactorizedBias(max_length=16, inner=4)
        >>> bias(length=10).shape, bias.band(length=10, window=3).shape
        (torch.Size([1, 10, 10]), torch.Size([1, 10, 5]))
    """

    #: Standard deviation of w at the start.
    start = 0.01

    def __init__(self, max_length: int, inner: int = 64, groups: int = 1) -> None:
        super().__init__()
        for name, number in (("max_length", max_length), ("inner", inner), ("groups", groups)):
            whole(1)(name, number)
        self.max_length = max_length
        self.u = nn.Parameter(torch.empty(groups, max_length, inner))
        self.v = nn.Parameter(torch.empty(groups, max_length, inner))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both factors anew."""
        deviation = math.sqrt(self.start / math.sqrt(self.u.shape[-1]))
        nn.init.normal_(self.u, std=deviation)
        nn.init.normal_(self.v, std=deviation)

    def forward(self, length: int) -> Tensor:
        """The whole bias for sequences of at most ``max_length`` tokens, (H, length, length)."""
        u, v = self._factors(length)
        with torch.autocast(u.device.type, enabled=False):
            return u @ v.transpose(1, 2)

    def band(self, length: int, window: int, causal: bool = False) -> Tensor:
        """The entries with ``|t - t'| < window`` alone, in O(T window n): no (T, T) tensor exists.

        Args:
            length: At most ``max_length``.
            window: s, at least 1; what reaches beyond the sequence is left out.
            causal: Only those at or before the row.

        Returns:
            (H, length, offsets) from ``-(s - 1)`` to ``s - 1``, or to 0 in causal mode, with s at most ``length``.
            Entries for keys before the first or after the last are 0.
        """
        whole(1)("window", window)
        reach = min(window, length) - 1
        size = math.ceil(length / max(1, length // max(reach, 32)))
        count = math.ceil(length / size)
        u, v = self._factors(length)
        rest = count * size - length
        u = torch.unflatten(F.pad(u, (0, 0, 0, rest)), 1, (count, size))
        v = F.pad(v, (0, 0, reach, rest + reach)).unfold(1, size + 2 * reach, size)
        with torch.autocast(u.device.type, enabled=False):
            blocks = u @ v  # row i of a block against the keys from -reach to size + reach
        # Rows of one entry more than they have: what stood i places further right in row i stands in one column.
        width = size + 2 * reach
        sheared = torch.unflatten(F.pad(blocks.flatten(2), (0, size)), 2, (size, width + 1))
        band = sheared[..., : reach + 1 if causal else 2 * reach + 1]
        return band.flatten(1, 2)[:, :length]

    def _factors(self, length: int) -> tuple[Tensor, Tensor]:
        if length > self.max_length:
            raise PapaError(
                f"the sequences have {length} tokens, but max_length is {self.max_length}: build the layer with a "
                "larger max_length, or cut the sequences."
            )
        dtype = accumulation_dtype(self.u.dtype)
        return self.u[:, :length].to(dtype), self.v[:, :length].to(dtype)


class TableBias(nn.Module):
    """Position bias with a parameter for every pair of positions, (H, T, T); it can have any value."""

    def __init__(self, max_length: int, groups: int = 1) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(groups, max_length, max_length))
        nn.init.normal_(self.table, std=FactorizedBias.start)

    def forward(self, length: int) -> Tensor:
        """See :meth:`FactorizedBias.forward`."""
        return self.table[:, :length, :length]


class BandBias(nn.Module):
    """Position bias with a parameter for every pair within a window, as :func:`FactorizedBias.band` gives them."""

    def __init__(self, max_length: int, window: int, causal: bool = False, groups: int = 1) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(groups, max_length, window if causal else 2 * window - 1))
        nn.init.normal_(self.table, std=FactorizedBias.start)

    def band(self, length: int, window: int, causal: bool = False) -> Tensor:
        """See :meth:`FactorizedBias.band`, with the window and the direction that the bias was built for."""
        if length == self.table.shape[1]:
            return self.table
        hidden = max(0, window - length)  # offsets that reach beyond both ends of a short sequence
        return self.table[:, :length, hidden : None if causal else -hidden or None]


class NormalizedKernel(nn.Module):
    """Kernel of AFT-conv, ``gamma (w - mean w) / std w + beta`` for each head (Zhai et al. 2021, arXiv 2105.14103).

    gamma and beta begin at 0, so the layer starts as AFT-simple, and w does not move until gamma has left 0. std is
    that of the s entries (s^2 for a grid), divided by their number. A kernel of one entry, or with equal ones, is beta.

    Args:
        heads: H.
        window: s.
        dimensions: 1 for a sequence, 2 for a grid.

    Raises:
        PapaError: When a number is smaller than 1.

    Example:
        >>> NormalizedKernel(heads=2, window=3)()
        tensor([[0., 0., 0.],
                [0., 0., 0.]], grad_fn=<...>)
    """

    def __init__(self, heads: int, window: int, dimensions: int = 1) -> None:
        super().__init__()
        for name, number in (("heads", heads), ("window", window), ("dimensions", dimensions)):
            whole(1)(name, number)
        self.weight = nn.Parameter(torch.empty(heads, *[window] * dimensions))
        self.gamma = nn.Parameter(torch.empty(heads, *[1] * dimensions))
        self.beta = nn.Parameter(torch.empty(heads, *[1] * dimensions))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw w anew, and set gamma and beta to 0."""
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.gamma)
        nn.init.zeros_(self.beta)

    def forward(self) -> Tensor:
        """The kernel: (H, s), or (H, s, s) for a grid, in at least float32."""
        if usable(self.weight, self.gamma, self.beta):
            from papa_lightning.kernels.aft.normalizing import (
                normalized,  # imports Triton, which is only where GPUs are
            )

            return normalized(self.weight, self.gamma, self.beta)
        dtype = accumulation_dtype(self.weight.dtype)
        weight, gamma, beta = self.weight.to(dtype), self.gamma.to(dtype), self.beta.to(dtype)
        dims = tuple(range(1, weight.dim()))
        centred = weight - weight.mean(dims, keepdim=True)
        variance = centred.square().mean(dims, keepdim=True)
        varied = variance > 0
        deviation = torch.where(varied, variance, 1.0).sqrt()  # the root of 0 has no gradient
        return gamma * centred / deviation + beta
