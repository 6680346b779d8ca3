"""Attention-free layers on plain tensors, with projections of their own: hidden states in, hidden states out."""

import math

import torch
from torch import Tensor, nn

from papa_lightning.attention.aft.bias import FactorizedBias, NormalizedKernel
from papa_lightning.attention.aft.checks import check_divides, check_window
from papa_lightning.attention.aft.conv import aft_conv, aft_conv2d
from papa_lightning.attention.aft.functional import aft_banded, aft_full, aft_simple
from papa_lightning.checks import whole
from papa_lightning.errors import PapaError


class ProjectedMixing(nn.Module):
    """Queries, keys (d or ``key_size`` channels) and values, mixed and projected: ``W_o mix(W_q x, W_k x, W_v x)``."""

    def __init__(self, hidden_size: int, key_size: int | None = None) -> None:
        super().__init__()
        whole(1)("hidden_size", hidden_size)
        self.hidden_size = hidden_size
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size if key_size is None else key_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix the tokens (B, T, d) of sequences; the mask (B, T) is true for real ones, and other rows are void."""
        if hidden.dim() != 3 or hidden.shape[-1] != self.hidden_size:
            raise PapaError(
                f"hidden has the shape {tuple(hidden.shape)}, but must be (sequences, tokens, {self.hidden_size})."
            )
        mixed: Tensor = self.output(self.mix(self.query(hidden), self.key(hidden), self.value(hidden), mask))
        return mixed

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Mixed values (B, T, d), from queries, keys and values (B, T, ...)."""
        raise NotImplementedError


class AFTFull(ProjectedMixing):
    """AFT-full with a factorised position bias, ``sigmoid(Q_t) * mean of V with weights exp(K_t' + u_t . v_t')``.

    Source: Zhai et al. 2021, arXiv 2105.14103.

    Args:
        hidden_size: d, channels of the hidden states.
        max_length: T, the longest sequence. Shorter ones use the first rows and columns of the bias.
        inner: Inner size of the position bias.
        causal: Whether tokens attend only to themselves and those before them.
        chunk: Number of rows that are computed at a time.

    Raises:
        PapaError: When a number is smaller than 1.

    Example:
        >>> AFTFull(8, max_length=16, inner=4)(torch.randn(2, 10, 8)).shape
        torch.Size([2, 10, 8])
    """

    def __init__(
        self, hidden_size: int, max_length: int, inner: int = 64, causal: bool = False, chunk: int = 128
    ) -> None:
        super().__init__(hidden_size)
        whole(1)("chunk", chunk)
        self.causal, self.chunk = causal, chunk
        self.position_bias = FactorizedBias(max_length, inner)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :func:`~papa_lightning.attention.aft.functional.aft_full`."""
        bias = self.position_bias(query.shape[1])
        return aft_full(query, key, value, bias, mask, self.causal, self.chunk)


class AFTSimple(ProjectedMixing):
    """AFT-simple, ``sigmoid(Q_t) * mean of V with weights exp(K_t')``: no position biases, and sequences of any length.

    Arguments and errors are those of :class:`AFTFull`.

    Example:
        >>> AFTSimple(8, causal=True)(torch.randn(2, 10, 8)).shape
        torch.Size([2, 10, 8])
    """

    def __init__(self, hidden_size: int, causal: bool = False) -> None:
        super().__init__(hidden_size)
        self.causal = causal

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :func:`~papa_lightning.attention.aft.functional.aft_simple`."""
        return aft_simple(query, key, value, mask, self.causal)


class AFTLocal(ProjectedMixing):
    """AFT-local: AFT-full whose factorised position bias is 0 where ``|t - t'| >= window``.

    The window s is at most ``max_length``, which makes it AFT-full. The other arguments are those of :class:`AFTFull`.

    Raises:
        PapaError: When a number is smaller than 1, or the window is larger than ``max_length``.

    Example:
        >>> AFTLocal(8, max_length=16, window=3, inner=4)(torch.randn(2, 10, 8)).shape
        torch.Size([2, 10, 8])
    """

    def __init__(self, hidden_size: int, max_length: int, window: int, inner: int = 64, causal: bool = False) -> None:
        super().__init__(hidden_size)
        self.position_bias = FactorizedBias(max_length, inner)
        check_window(window, max_length, "max_length")
        self.window, self.causal = window, causal

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :func:`~papa_lightning.attention.aft.functional.aft_banded`."""
        length = query.shape[1]
        band = self.position_bias.band(length, self.window, self.causal)
        return aft_banded(query, key, value, band, 1 - min(self.window, length), mask, self.causal)


class AFTConv(ProjectedMixing):
    """AFT-conv over sequences: one key a head, and a kernel ``gamma (w - mean w) / std w + beta`` of position biases.

    Args:
        hidden_size: d, channels of the hidden states.
        heads: H, which share d: each has d / H channels, one key and one kernel.
        max_length: T, the longest sequence that is expected. A kernel does not depend on it, so longer ones work too.
        window: s, the length of a kernel. Not causal: the token itself is at ``(s - 1) // 2``. Causal: it is the last.
        causal: Whether tokens attend only to themselves and those before them.

    Raises:
        PapaError: When a number is smaller than 1, ``heads`` does not divide ``hidden_size``, or the window is larger
            than ``max_length``.

    Example:
        >>> AFTConv(8, heads=2, max_length=16, window=3)(torch.randn(2, 10, 8)).shape
        torch.Size([2, 10, 8])
    """

    def __init__(self, hidden_size: int, heads: int, max_length: int, window: int, causal: bool = False) -> None:
        _check_heads(hidden_size, heads)
        super().__init__(hidden_size, key_size=heads)
        check_window(window, max_length, "max_length")
        self.heads, self.causal = heads, causal
        self.kernel = NormalizedKernel(heads, window)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :func:`~papa_lightning.attention.aft.conv.aft_conv`."""
        queries, values = torch.unflatten(query, -1, (self.heads, -1)), torch.unflatten(value, -1, (self.heads, -1))
        return aft_conv(queries, key, values, self.kernel(), mask, self.causal).flatten(2)


class AFTConv2d(ProjectedMixing):
    """AFT-conv over square images whose cells are the tokens, row by row. There is no causal form.

    ``side`` is the rows, and columns, of the largest image; smaller square ones work too. A kernel is window x window,
    and the window at most ``side``. The other arguments and errors are those of :class:`AFTConv`.

    Example:
        >>> AFTConv2d(8, heads=2, side=4, window=3)(torch.randn(2, 16, 8)).shape
        torch.Size([2, 16, 8])
    """

    def __init__(self, hidden_size: int, heads: int, side: int, window: int) -> None:
        _check_heads(hidden_size, heads)
        super().__init__(hidden_size, key_size=heads)
        check_window(window, side, "side")
        self.heads, self.side = heads, side
        self.kernel = NormalizedKernel(heads, window, dimensions=2)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :func:`~papa_lightning.attention.aft.conv.aft_conv2d`."""
        side = math.isqrt(query.shape[1])
        if side * side != query.shape[1] or side > self.side:
            raise PapaError(
                f"the sequences have {query.shape[1]} tokens, which is no square grid of at most {self.side} x "
                f"{self.side}: pass square images, without tokens beside the grid."
            )
        queries, values = torch.unflatten(query, -1, (self.heads, -1)), torch.unflatten(value, -1, (self.heads, -1))
        return aft_conv2d(queries, key, values, self.kernel(), side, mask).flatten(2)


def _check_heads(hidden_size: int, heads: int) -> None:
    whole(1)("hidden_size", hidden_size)
    whole(1)("heads", heads)
    check_divides("heads", heads, hidden_size)
