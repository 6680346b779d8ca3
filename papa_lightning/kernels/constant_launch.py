"""Launches of the constant product: block sizes by shape and dtype, strides, and how float32 is multiplied."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from papa_lightning.kernels.constant_blocks import constants_gradient, mix

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
        bits: A bit for each constant head.
        before: Reach of a row of ``constants``.
        after: Reach of a row of ``constants``.
        transposed: Whether the source is a gradient.
    """
    shape = _Shape.of(source)
    local = min(before, after) < constants.shape[1] - 1
    merged = mask is None and places is None
    programs, settings = _plan(shape, result.shape[2], merged, mask is not None, others is None, local, transposed)
    row_end, key_end = (shape.length, shape.length) if places is not None else readable(constants, shape.length)
    with torch.cuda.device_of(source):
        mix[programs, max(shape.heads, result.shape[2])](
            *(constants, source, result, others, mask, places, mass, bits, shape.batch, shape.length, row_end, key_end),
            *(before, after, 0 if constants.shape[0] == 1 else constants.stride(0), *constants.stride()[1:]),
            *(*source.stride(), *_by_head(others), *_by_token(mask), *_by_token(places)),
            0 if mass is None or mass.shape[0] == 1 else mass.stride(0),
            PRECISION=precision(source),
            **settings,
        )


def launch_gradient(
    grad: Tensor,
    value: Tensor,
    mixed: Tensor,
    mask: Tensor | None,
    mass: Tensor,
    result: Tensor,
    bits: int,
    before: int,
    after: int,
) -> None:
    """Write the gradient of constants, (C, T, T), from that of the result, the values and the result."""
    batch, count, length, size = value.shape
    num_heads, blocks = grad.shape[2], gradient_blocks(_Shape.of(value))
    programs = -(-length // blocks.rows) * -(-length // blocks.keys)
    with torch.cuda.device_of(value):
        constants_gradient[programs, count](
            *(grad, value, mixed, mask, mass, result, bits, batch, length, before, after),
            *(*_by_head(grad), *value.stride(), *_by_token(mask), 0 if mass.shape[0] == 1 else mass.stride(0)),
            HEADS=num_heads,
            SIZE=size,
            ALL=count == num_heads,
            LOCAL=min(before, after) < length - 1,
            PRECISION=precision(value),
            **blocks.settings(),
        )


def _by_head(tensor: Tensor | None) -> tuple[int, int, int, int]:
    """Strides of (B, T, heads, h) as of (B, heads, T, h); zeros for None, of which nothing is read."""
    if tensor is None:
        return 0, 0, 0, 0
    batch, token, head, feature = tensor.stride()
    return batch, head, token, feature


def _by_token(tensor: Tensor | None) -> tuple[int, ...]:
    """Strides of (B, T); zeros for None."""
    return (0, 0) if tensor is None else tensor.stride()


def readable(constants: Tensor, length: int) -> tuple[int, int]:
    """Rows and columns of constants that a kernel may read: those, or up to a multiple of 16 in a longer buffer.

    What is read beyond the length is multiplied by 0. Without it, only lengths that are multiples of 16 could be read
    in steps of 16 bytes.
    """
    more = -(-length // 16) * 16
    matrices, _, _ = constants.shape
    first, *steps = constants.stride()
    if more == length or min(steps) != 1 or max(steps) < more:
        return length, length
    last = constants.storage_offset() + (matrices - 1) * first + (length - 1) * max(steps) + more
    if last * constants.element_size() > constants.untyped_storage().nbytes():
        return length, length
    return (length, more) if steps[1] == 1 else (more, length)


def precision(value: Tensor) -> str:
    """How products of float32 are taken: as torch may take its own."""
    if value.dtype != torch.float32:
        return "ieee"  # says nothing there
    # torch before 2.9 has the second setting only; later ones refuse to read it once the first was written.
    allowed = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    allowed = allowed == "tf32" if allowed is not None else torch.backends.cuda.matmul.allow_tf32
    return "tf32" if allowed else "ieee"


@lru_cache(maxsize=1024)
def _plan(
    shape: _Shape, heads: int, merged: bool, padded: bool, alone: bool, local: bool, transposed: bool
) -> tuple[int, dict[str, int]]:
    """Number of programs a head, and what they are compiled with; kept, because it takes longer than a launch."""
    blocks = product_blocks(shape, merged)
    width = -(-shape.size // 16) * 16  # columns of a sequence, so that whole ones of 32 bytes are read
    columns = -(-(shape.batch * width if merged else shape.size) // blocks.columns)
    programs = -(-shape.length // blocks.rows) * (columns if merged else shape.batch * columns)
    return programs, {
        "HEADS": heads,
        "SIZE": shape.size,
        "WIDTH": width,
        "ALL": alone,
        "TRANSPOSED": transposed,
        "MERGED": merged,
        "LOCAL": local,
        "CHUNK": _CHUNK if padded and shape.length > _SHORT else 0,
        **blocks.settings(),
    }


@cache
def _is_roomy(device: torch.device) -> bool:
    """Whether a program may have the shared memory of large blocks."""
    if device.type != "cuda":
        return False
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)) >= _ROOM


def product_blocks(shape: _Shape, merged: bool) -> Blocks:
    """Blocks of the product; ``merged`` if their columns are of several sequences."""
    columns = _power(shape.batch * shape.size if merged else shape.size, 256)
    rows, keys = _power(shape.length, 128), _power(shape.length, 64)
    if shape.dtype == torch.float32:
        return Blocks(min(rows, 64), min(columns, 64), min(keys, 32), 4, 2)
    if not _is_roomy(shape.device):
        return Blocks(rows, min(columns, 64), min(keys, 32), 4, 2)
    if merged and columns == 256 and shape.length >= 256:
        return Blocks(rows, columns, keys, 8, 3)
    return Blocks(rows, min(columns, 128), keys, 8 if columns >= 128 else 4, 3)


def gradient_blocks(shape: _Shape) -> Blocks:
    """Blocks of the gradient of constants: of queries, features and keys."""
    side = _power(shape.length, 64)
    if shape.dtype == torch.float32:
        return Blocks(side, _power(shape.size, 32), side, 4, 1)
    return Blocks(side, _power(shape.size, 64), side, 4, 2)


def _power(number: int, most: int) -> int:
    """The next power of two, between 16 and ``most``."""
    return min(most, max(16, 1 << (number - 1).bit_length()))
