"""Running averages of attention matrices: sums over batches and processes, divided once at the end."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from papa_lightning.attention import DynamicAttention, Slots
from papa_lightning.attention.functional import (
    add_pairs,
    apply_attention,
    average_attention,
    clear_padding,
    pair_counts,
    pair_index,
)
from papa_lightning.errors import CalibrationError
from papa_lightning.kernels import usable

#: Number of attention probabilities that exist at a time: few enough for the caches of a CPU (8 MB in float32), and
#: enough to keep another device busy (256 MB).
_ON_CPU, _ON_DEVICES = 2**21, 2**26


class RunningSums(ABC):
    """Float64 sums over batches; parts of several processes are added and divided once, whatever their sizes."""

    #: Names of the attributes that are sums.
    added: ClassVar[tuple[str, ...]] = ("pair_counts", "num_sequences")
    #: Name of the sums (L, H, ...) in which NaN and infinity show.
    checked: ClassVar[str]
    #: Whether it adds up attention of tokens in the order of the batch, by their slots.
    reads_slots: ClassVar[bool] = False

    def __init__(self, max_length: int, device: torch.device | str | None = None) -> None:
        device = torch.device("cpu" if device is None else device)
        self.device = torch.device("cpu") if device.type == "mps" else device  # it has no float64
        self.max_length = max_length
        self.pair_counts = self.zeros(max_length, max_length)  # sequences in which both positions are real
        self.num_sequences = self.zeros()  # with at least one real token

    def mix(self, layer: int, attention: DynamicAttention, value: Tensor) -> Tensor:
        """Add a layer's attention of a batch, and mix values (B, H, t, h) to (B, t, H, h) with it, in pieces."""
        value = value.contiguous()  # once, and not for each piece
        attention = replace(attention, key=attention.key.contiguous())
        mixed = value.new_empty(value.transpose(1, 2).shape)
        for first, rows in attention.chunks(_ON_CPU if value.device.type == "cpu" else _ON_DEVICES):
            mixed[:, first : first + rows.shape[2]] = apply_attention(rows, value)
            if attention.mask is not None:
                clear_padding(rows, attention.mask, first)
            self.add_rows(layer, first, rows, attention.slots)
        return mixed

    @abstractmethod
    def add_rows(self, layer: int, first: int, rows: Tensor, slots: Slots | None = None) -> None:
        """Add the rows (B, H, rows, t) from ``first`` on of a layer's attention of a batch, 0 at padding."""

    def check_finite(self) -> None:
        """Refuse NaN and infinity; the CalibrationError names the first layer with such a sum, and its heads."""
        sums: Tensor = getattr(self, self.checked)
        ends = [torch.stack(own.flatten(1).aminmax(dim=1)) for own in sums]  # no tensor of their size
        finite = torch.stack(ends).isfinite().all(dim=1).tolist()  # read at once, because reading makes a device wait
        for layer, own_heads in enumerate(finite):
            if not all(own_heads):
                heads = [head for head, own in enumerate(own_heads) if not own]
                raise CalibrationError(
                    f"the attention of layer {layer}, heads {heads}, is NaN or infinite: the encoder's weights or its "
                    "precision are at fault. Check the checkpoint, and calibrate in 32-bit precision."
                )

    def zeros(self, *shape: int) -> Tensor:
        """A new sum of this shape."""
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def add_mask(self, mask: Tensor) -> None:
        """Count the pairs of one batch by its mask (B, t), true for a real token."""
        # To a GPU without waiting for the batch, whose forward still runs there.
        mask, length = mask.to(self.device, non_blocking=self.device.type == "cuda"), mask.shape[1]
        self.pair_counts[:length, :length] += pair_counts(mask)
        self.num_sequences += mask.bool().any(dim=1).sum()

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Add up the sums of all processes by a function that sums a tensor; all must call it, also without data."""
        for name in self.added:
            setattr(self, name, all_reduce(getattr(self, name)))

    def check_sequences(self) -> None:
        """Refuse sums over nothing with a CalibrationError."""
        if self.num_sequences == 0:
            raise CalibrationError(
                "calibration saw no sequence with a real token: the batches are empty. Pass at least one batch of "
                "input_ids with an attention_mask that has ones."
            )


class AttentionAverages(RunningSums):
    """Sums of attention matrices and pair counts over a stream of batches, in float64.

        sums[l,h,i,j] = sum over sequences of A[l,h,i,j] m_i m_j
        counts[i,j]   = sum over sequences of m_i m_j
        squares[l,h]  = sum over sequences, i and j of A[l,h,i,j]^2 m_i m_j

    (The first two: Hassid et al. 2022, arXiv 2211.03495.)

    Args:
        num_layers: Number of layers L.
        num_heads: Number of heads H.
        max_length: T, the longest sequence.
        device: Device of the sums; main memory where that has no float64.

    Attributes:
        sums: (L, H, T, T), float64.
        pair_counts: (T, T), float64.
        squares: (L, H), float64.
        num_sequences: 0-dim float64, the sequences with at least one real token.

    Example:
        >>> averages = AttentionAverages(1, 1, 2)
        >>> mask = torch.tensor([[True, False]])
        >>> averages.add_mask(mask)
        >>> averages.add_attention(0, torch.ones(1, 1, 2, 2), mask)
        >>> averages.compute()
        tensor([[[[1., 0.],
                  [0., 0.]]]], dtype=torch.float64)
    """

    added = ("sums", "pair_counts", "squares", "num_sequences")
    checked = "sums"
    reads_slots = True

    def __init__(
        self, num_layers: int, num_heads: int, max_length: int, device: torch.device | str | None = None
    ) -> None:
        super().__init__(max_length, device)
        self.sums = self.zeros(num_layers, num_heads, max_length, max_length)
        self._squares = self.zeros(num_layers, num_heads)
        self._squares_of_tiles: Tensor | None = None

    @property
    def squares(self) -> Tensor:
        """Sums of squares (L, H), with those that kernels left by tile."""
        if self._squares_of_tiles is not None:
            self._squares += self._squares_of_tiles.sum(dim=2)
            self._squares_of_tiles = None
        return self._squares

    @squares.setter
    def squares(self, squares: Tensor) -> None:
        self._squares, self._squares_of_tiles = squares, None

    def mix(self, layer: int, attention: DynamicAttention, value: Tensor) -> Tensor:
        """See :meth:`RunningSums.mix`; on a GPU by a kernel that makes no matrices."""
        if self.sums.device != value.device or not usable(attention.query, attention.key, value):
            return super().mix(layer, attention, value)
        from papa_lightning.kernels.sums.mixing import mix_and_add_attention, most_tiles

        slots, query = attention.slots, attention.query
        tiles = most_tiles(self.max_length, query.shape[3], query.dtype)
        if self._squares_of_tiles is None or self._squares_of_tiles.shape[2] < tiles:
            self._squares_of_tiles = self.zeros(*self.squares.shape, tiles)
        return mix_and_add_attention(
            query,
            attention.key,
            value,
            attention.mask,
            attention.bias,
            attention.scaling,
            None if slots is None else slots.tokens,
            None if slots is None else slots.mask,
            layer,
            self.sums,
            self._squares_of_tiles,
        )

    def add_attention(self, layer: int, attention: Tensor, mask: Tensor | None) -> None:
        """Add a layer's matrices (B, H, t, t), which are overwritten; the mask (B, t) is true for a real token."""
        if mask is not None:
            clear_padding(attention, mask)
        self.add_rows(layer, 0, attention)

    def add_rows(self, layer: int, first: int, rows: Tensor, slots: Slots | None = None) -> None:
        """See :meth:`RunningSums.add_rows`."""
        last, length = first + rows.shape[2], rows.shape[3]
        if slots is None:
            self.sums[layer, :, first:last, :length] += rows.sum(dim=0).to(self.sums.device, torch.float64)
        else:
            pairs = pair_index(slots.places, self.max_length, first, last).flatten(1).to(self.sums.device)
            add_pairs(self.sums[layer].view(rows.shape[1], -1), pairs, rows.flatten(2))
        # Norms of rows need no second tensor of the size of the matrices, and are exact enough in float32; over whole
        # matrices they would not be.
        norms = torch.linalg.vector_norm(rows, dim=-1).to(self.squares.device, torch.float64)
        self.squares[layer] += norms.square().sum(dim=(0, 2))

    def compute(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The constants (L, H, T, T) in a dtype: ``sums / counts``, and 0 where counts is 0.

        Raises:
            CalibrationError: When no sequence was added, or a sum is not finite.
        """
        self.check_sequences()
        self.check_finite()
        values = torch.empty(self.sums.shape, dtype=dtype, device=self.sums.device)
        for mean, sums in zip(values.flatten(0, 1), self.sums.flatten(0, 1), strict=True):
            mean.copy_(average_attention(sums, self.pair_counts))  # by head: all of it would be a second copy
        return values

    def variance(self) -> Tensor:
        """Mean squared distance of the rows of attention from the constant rows of their head: (L, H), float64.

            variance[l,h] = 1/N sum over sequences and i of m_i sum_j m_j (A[l,h,i,j] - C[l,h,i,j])^2
                          = (squares[l,h] - sum_ij sums[l,h,i,j]^2 / counts[i,j]) / N

        with N the number of real query rows; 0 for a head whose attention does not depend on the input. Constant rows
        are taken before they are divided by their sum over the keys of a batch.

        Raises:
            CalibrationError: When no sequence was added.

        Example:
            >>> averages = AttentionAverages(1, 1, 2)
            >>> mask = torch.ones(2, 2)
            >>> averages.add_mask(mask)
            >>> averages.add_attention(0, torch.stack([torch.eye(2), torch.eye(2).flip(0)])[:, None], mask)
            >>> averages.variance()
            tensor([[0.5000]], dtype=torch.float64)
        """
        self.check_sequences()
        by_head = [average_attention(sums, self.pair_counts).mul_(sums).sum() for sums in self.sums.flatten(0, 1)]
        explained = torch.stack(by_head).view_as(self.squares)  # by head, as in compute
        return ((self.squares - explained) / self.pair_counts.diagonal().sum()).clamp_min(0.0)
