"""Launches of the constant product: block sizes by shape and dtype, strides, and how float32 is multiplied."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from papa_lightning.kernels.constant.blocks import constants_gradient, mix
from papa_lightning.kernels.launch import precision
from papa_lightning.kernels.launches import Launch, aligned

Some = TypeVar("Some", Tensor, Tensor | None)

#: Shared memory of a program with large blocks, in bytes; GPUs with less get smaller ones.
_ROOM = 160 * 1024
#: Length up to which a mask is not searched for its ends: there are no blocks of keys to pass over.
_SHORT = 128
#: Length of the pieces in which it is.
_CHUNK = 512


class Blocks(NamedTuple):
    """Size of the block that a program computes, ``rows`` by ``columns`` with ``keys`` at a time, and how it does."""

    rows: int
    columns: int
    keys: int
    warps: int
    stages: int

    def settings(self) -> dict[str, int]:
        """Arguments of a launch."""
        rows, columns, keys, warps, stages = self
        return {"ROWS": rows, "COLUMNS": columns, "KEYS": keys, "num_warps": warps, "num_stages": stages}


class _Shape(NamedTuple):
    """What block sizes hang on."""

    batch: int
    heads: int
    length: int
    size: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> _Shape:
        """That of values (B, heads, T, h)."""
        batch, heads, length, size = tensor.shape
        return cls(batch, heads, length, size, tensor.dtype, tensor.device)


def launch_product(
    constants: Tensor,
    source: Tensor,
    result: Tensor,
    others: Tensor | None,
    mask: Tensor | None,
    places: Tensor | None,
    mass: Tensor | None,
    seed: Tensor | None,
    dropout: float,
    bits: int,
    before: int,
    after: int,
    transposed: bool,
) -> None:
    """Mix (B, heads, T, h) into (B, T, heads, h), or with the matrices transposed, a gradient back.

    Args:
        constants: (C or 1, S, S); transposed for a gradient.
        source: Values of the constant heads, or a gradient of all heads.
        result: The mixed values of all heads, or the gradient of the constant ones.
        others: Values of the other heads, (B, T, heads, h): read, or written with their gradient.
        mask: (B, T), or None.
        places: (B, T), or None.
        mass: (B or 1, C, T), row sums: written where it is a tensor, or read for a gradient.
        seed: (1,), int64, of what dropout draws, or None.
        dropout: Share of the entries of the normalised matrices that is dropped, where there is a seed.
        bits: A bit for each constant head.
        before: Reach of a row of ``constants``.
        after: Reach of a row of ``constants``.
        transposed: Whether the source is a gradient.
    """
    source, others, mask, places = _close(source), _close(others), _close(mask), _close(places)
    launch = find_launch(
        constants, source, result.shape[2], others, mask, places, mass is not None, None if seed is None else dropout,
        (bits, before, after), transposed,
    )  # fmt: skip
    tensors = (constants, source, result, others, mask, places, mass, seed)
    with torch.cuda.device_of(source):
        launch(aligned(*tensors), *tensors)


def find_launch(
    constants: Tensor,
    source: Tensor,
    heads: int,
    others: Tensor | None,
    mask: Tensor | None,
    places: Tensor | None,
    has_mass: bool,
    dropout: float | None,
    reached: tuple[int, int, int],
    transposed: bool,
) -> Launch:
    """The launch of :func:`launch_product` for tensors of these dtypes, sizes and strides, whose last one is 1.

    Args:
        constants: As there; also longer ones than the source.
        source: As there.
        heads: Number of heads of the result.
        others: As there.
        mask: As there.
        places: As there.
        has_mass: Whether row sums are read or written.
        dropout: Share that is dropped, or None without a seed.
        reached: A bit for each constant head, and the reach of rows.
        transposed: As there.
    """
    length, (_, before, after) = source.shape[2], reached
    rows = length if places is not None else readable(constants, length, 1 if transposed else 2)
    return _product_launch(
        _Shape.of(source), heads, constants.dtype, (len(constants), rows, *constants.stride()),
        source.stride()[:3], None if others is None else others.stride()[:3], None if mask is None else mask.stride(0),
        None if places is None else places.stride(0), has_mass, dropout,
        reached, min(before, after) < constants.shape[1] - 1, transposed, precision(source),
    )  # fmt: skip


def launch_gradient(
    grad: Tensor,
    value: Tensor,
    mixed: Tensor,
    mask: Tensor | None,
    mass: Tensor,
    seed: Tensor | None,
    dropout: float,
    result: Tensor,
    bits: int,
    before: int,
    after: int,
) -> None:
    """Write the gradient of constants, (C, T, T), from that of the result, the values and the result."""
    batch, count, length, size = value.shape
    blocks = gradient_blocks(_Shape.of(value))
    programs = -(-length // blocks.rows) * -(-length // blocks.keys)
    grad, value, mask = _close(grad), _close(value), _close(mask)
    grad_b, grad_t, grad_h = grad.stride()[:3]
    with torch.cuda.device_of(value):
        constants_gradient[programs, count](
            *(grad, value, mixed, mask, mass, seed, dropout, result, bits, count, batch, length, before, after),
            *(grad_b, grad_h, grad_t, *value.stride()[:3], 0 if mask is None else mask.stride(0)),
            HEADS=grad.shape[2],
            SIZE=size,
            LOCAL=min(before, after) < length - 1,
            PRECISION=precision(value),
            **blocks.settings(),
        )


def _close(tensor: Some) -> Some:
    """A tensor whose entries along the last dimension are neighbours, which all but odd ones are."""
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def readable(constants: Tensor, length: int, dim: int) -> int:
    """End of what a kernel may read of constants (C, T, T) along a dimension: the length, or a multiple of 16 beyond.

    What is read beyond the length is multiplied by 0. Without it, only lengths that are multiples of 16 could be read
    in steps of 16 bytes.
    """
    more, step = -(-length // 16) * 16, constants.stride(3 - dim)
    if more == length or constants.stride(dim) != 1 or step < more:
        return length
    last = constants.storage_offset() + (len(constants) - 1) * constants.stride(0) + (length - 1) * step + more
    return more if last * constants.element_size() <= constants.untyped_storage().nbytes() else length


@lru_cache(maxsize=4096)
def _product_launch(
    shape: _Shape,
    heads: int,
    dtype: torch.dtype,
    constants: tuple[int, ...],
    source: tuple[int, ...],
    others: tuple[int, ...] | None,
    mask: int | None,
    places: int | None,
    has_mass: bool,
    dropout: float | None,
    reached: tuple[int, int, int],
    local: bool,
    transposed: bool,
    precision: str,
) -> Launch:
    """The launch for tensors of these dtypes, sizes and strides; kept, because finding it takes longer than it does.

    Args:
        shape: That of the source.
        heads: Number of heads of the result.
        dtype: That of the constants; with ``has_mass`` and what is None it decides what is compiled.
        constants: Number of matrices, end of what may be read of them, and strides.
        source: Strides of the first three dimensions.
        others: Strides of the first three dimensions, or None.
        mask: Stride of the first dimension, or None.
        places: Stride of the first dimension, or None.
        has_mass: Whether row sums are read or written.
        dropout: Share that is dropped, or None without a seed.
        reached: A bit for each constant head, and the reach of rows.
        local: Whether that is a limit.
        transposed: Whether the source is a gradient.
        precision: How float32 is multiplied.
    """
    merged = mask is None and places is None and dropout is None
    blocks = product_blocks(shape, merged, places is not None or dropout is not None)
    columns = -(-(shape.batch * -(-shape.size // 16) * 16 if merged else shape.size) // blocks.columns)
    programs = -(-shape.length // blocks.rows) * columns * (1 if merged else shape.batch)
    total = shape.heads if transposed else heads
    matrices, end, own_c, own_i, own_j = constants
    (bits, before, after), (others_b, others_t, others_h) = reached, others or (0, 0, 0)
    numbers = {
        "drop": dropout or 0.0,
        "bits": bits,
        "count": heads if transposed else shape.heads,
        "batch": shape.batch,
        "length": shape.length,
        "end": end,
        "before": before,
        "after": after,
        "constants_c": 0 if matrices == 1 else own_c,
        "constants_i": own_i,
        "constants_j": own_j,
        **dict(zip(("source_b", "source_h", "source_t"), source, strict=True)),
        **{"others_b": others_b, "others_h": others_h, "others_t": others_t},
        **{"mask_b": mask or 0, "places_b": places or 0, "HEADS": total, "SIZE": shape.size},
        **{"TRANSPOSED": transposed, "LOCAL": local, "PRECISION": precision},
        "CHUNK": _CHUNK if mask is not None and shape.length > _SHORT else 0,
        **{"ROWS": blocks.rows, "COLUMNS": blocks.columns, "KEYS": blocks.keys},
    }
    return Launch(mix, (programs, total), numbers, {"num_warps": blocks.warps, "num_stages": blocks.stages})


@cache
def _is_roomy(device: torch.device) -> bool:
    """Whether a program may have the shared memory of large blocks."""
    if device.type != "cuda":
        return False
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)) >= _ROOM


def product_blocks(shape: _Shape, merged: bool, busy: bool) -> Blocks:
    """Blocks of the product.

    Args:
        shape: That of the source.
        merged: Whether a block has columns of several sequences.
        busy: Whether entries of the constants are looked up or dropped one by one, which takes registers.
    """
    columns = _power(shape.batch * shape.size if merged else shape.size, 256)
    rows, keys = _power(shape.length, 128), _power(shape.length, 64)
    if shape.dtype == torch.float32:
        return Blocks(min(rows, 64), min(columns, 64), min(keys, 32), 4, 2)
    if not _is_roomy(shape.device):
        return Blocks(rows, min(columns, 64), min(keys, 32), 8 if busy else 4, 2)
    if merged and columns == 256 and shape.length >= 256:
        return Blocks(rows, columns, keys, 8, 3)
    return Blocks(rows, min(columns, 128), keys, 8 if columns >= 128 or busy else 4, 3)


def gradient_blocks(shape: _Shape) -> Blocks:
    """Blocks of the gradient of constants: of queries, features and keys."""
    side = _power(shape.length, 64)
    if shape.dtype == torch.float32:
        return Blocks(side, _power(shape.size, 32), side, 4, 1)
    return Blocks(side, _power(shape.size, 64), side, 4, 2)


def _power(number: int, most: int) -> int:
    """The next power of two, between 16 and ``most``."""
    return min(most, max(16, 1 << (number - 1).bit_length()))
