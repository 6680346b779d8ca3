"""Mixing of values by softmax attention that also adds the attention to sums, without any (B, H, T, T) tensor.

The first kernel mixes the values a block of keys at a time, and keeps the logarithm of each row's sum. With it, the
second makes the probabilities again tile by tile; a program adds those of its sequences up in registers, in float32
and in their order, and then adds the tile to the float64 sums. Where there are too few tiles to keep a GPU busy, the
sequences of a batch are shared out among several programs a tile, and the third adds their sums in order.

Scores are float32 and are not rounded to the dtype of the query, as in PyTorch's fused attention. Products of float32
numbers are taken as there too: by three TF32 products each, which are as exact as float32; by one only where
``torch.set_float32_matmul_precision`` or ``torch.backends.cuda.matmul.allow_tf32`` allows that.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from papa_lightning.kernels.constant_launch import precision
from papa_lightning.kernels.sums_blocks import LOG2E, add_parts, add_tiles, mix_rows

#: Most sequences whose probabilities are added in float32: the rounding is a few units of its last place.
_SEQUENCES = 64
#: Most bytes of the sums of parts of a batch.
_WORKSPACE = 48 * 2**20
#: Entries of the sums that a program adds parts to.
_ENTRIES = 1024


class Blocks(NamedTuple):
    """Size of a tile in queries and keys, and how a GPU runs it."""

    queries: int
    keys: int
    warps: int
    stages: int

    def settings(self) -> dict[str, int]:
        """Arguments of a launch."""
        queries, keys, warps, stages = self
        return {"queries": queries, "keys": keys, "num_warps": warps, "num_stages": stages}


def mix_and_add_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scaling: float,
    tokens: Tensor | None,
    filled: Tensor | None,
    layer: int,
    sums: Tensor,
    squares: Tensor,
) -> Tensor:
    """Mix values by attention ``A = softmax(scaling Q K^T + bias)`` over the real keys, and add it to running sums.

        sums[layer,h,i,j] += sum_b A[b,h,i,j] m_i m_j,   squares[layer,h,*] += sum_bij A[b,h,i,j]^2 m_i m_j

    Args:
        query: (B, H, T, h); float16, bfloat16 or float32.
        key: (B, H, T, h).
        value: (B, H, T, h).
        mask: (B, T), true for a real token, or None.
        bias: Bias of the scores, broadcastable to (B, H, T, T), or None: floating point is added, and boolean is true
            where a query may look. It is read where it is, without a copy.
        scaling: Factor of the scores, above 0.
        tokens: (B, S), the token in each slot, where sums are by slots; else None, and S is T.
        filled: (B, S), true where a slot has a real token, where sums are by slots; else None.
        layer: Number of the layer.
        sums: (L, H, N, N), float64, contiguous, with N of S or more; added to in place.
        squares: (L, H, P), float64, contiguous, with P of :func:`most_tiles` or more; added to in place, each tile to
            an entry of its own, so that no other launch has to add them up.

    Returns:
        (B, T, H, h). Rows without any key are uniform, and count nothing.
    """
    run = torch.ops.papa_lightning.mix_and_add_attention.default if torch.compiler.is_compiling() else _mix_and_add
    mixed: Tensor = run(query, key, value, mask, bias, scaling, tokens, filled, layer, sums, squares)
    return mixed


def _mix_and_add(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scaling: float,
    tokens: Tensor | None,
    filled: Tensor | None,
    layer: int,
    sums: Tensor,
    squares: Tensor,
) -> Tensor:
    shape, seen = query.shape, mask if filled is None else filled
    slots = shape[2] if filled is None else filled.shape[1]
    plan = _plan(shape, value.shape[3], slots, query.dtype, bias is not None, query.device)
    mixed = torch.empty(plan.mixed, dtype=value.dtype, device=value.device)
    if plan.programs == 0:
        return mixed
    work = torch.empty(plan.work, dtype=torch.float32, device=value.device)
    query, key, value = _readable(query), _readable(key), _readable(value)
    if bias is not None:
        bias = bias.expand(*shape[:3], shape[2])
    scale, precision = scaling * LOG2E.value, _precision(query)
    strides, bias_strides = (*query.stride()[:3], *key.stride()[:3]), (0, 0, 0, 0) if bias is None else bias.stride()
    with torch.cuda.device_of(query):
        mix_rows[plan.programs,](
            *(query, key, value, mask, bias, mixed, work, scale, shape[1], shape[2], *strides),
            *(*value.stride()[:3], *_strides(mask), *bias_strides),
            precision=precision,
            **plan.mixing,
        )
        strides = (*strides, *_strides(seen), *bias_strides, 0 if tokens is None else tokens.stride(0))
        arguments = (query, key, seen, bias, tokens, work, sums, squares, scale, shape[1], shape[2])
        for first, programs in plan.launches:
            add_tiles[programs,](
                *(*arguments, slots, sums.shape[3], squares.shape[2], plan.norms_at, plan.parts_at, layer, first),
                *(shape[0], plan.each, *strides),
                precision=precision,
                **plan.adding,
            )
            if plan.parts > 1:
                _add_parts(plan, programs, work, sums, squares, slots, layer)
    return mixed


torch.library.define(
    "papa_lightning::mix_and_add_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? bias, float scaling, Tensor? tokens, "
    "Tensor? filled, int layer, Tensor(a!) sums, Tensor(b!) squares) -> Tensor",
)
torch.library.impl("papa_lightning::mix_and_add_attention", ("cuda", "cpu"), _mix_and_add)


@torch.library.register_fake("papa_lightning::mix_and_add_attention")
def _mixed_like(query: Tensor, key: Tensor, value: Tensor, *further: object) -> Tensor:
    batch, heads, length, size = value.shape
    mixed: Tensor = value.new_empty(batch, length, heads, size)
    return mixed


def _add_parts(plan: _Plan, programs: int, work: Tensor, sums: Tensor, squares: Tensor, slots: int, layer: int) -> None:
    """Add the sums of parts of a batch, of one launch of so many programs."""
    heads = sums.shape[1]
    add_parts[-(-(slots**2) // _ENTRIES), heads](
        *(work, sums, squares, slots, sums.shape[3], squares.shape[2], plan.norms_at, plan.parts_at, layer),
        *(programs // (heads * plan.tiles), plan.tiles),
        block=_ENTRIES,
    )


class _Plan(NamedTuple):
    """How a batch of one shape is computed; made once, because it takes longer than a launch.

    Args:
        mixed: Shape of the mixed values.
        programs: Number of programs that mix; 0 where there is nothing to do.
        mixing: What they are compiled with.
        adding: What the programs that add are compiled with.
        tiles: Number of tiles of a head.
        parts: Number of programs that share the sequences of a tile.
        each: Number of sequences of each of them.
        launches: First sequence and number of programs of each launch.
        norms_at: Place of the sums of squares of parts in the workspace, behind the logarithms of the sums of rows.
        parts_at: Place of the sums of parts.
        work: Number of entries of the workspace.
    """

    mixed: tuple[int, ...]
    programs: int
    mixing: dict[str, Any]
    adding: dict[str, Any]
    tiles: int
    parts: int
    each: int
    launches: tuple[tuple[int, int], ...]
    norms_at: int
    parts_at: int
    work: int


@lru_cache(maxsize=1024)
def _plan(
    shape: tuple[int, int, int, int],
    value_size: int,
    slots: int,
    dtype: torch.dtype,
    biased: bool,
    device: torch.device,
) -> _Plan:
    batch, heads, length, size = shape
    width, entries = _power(size), heads * slots**2
    rows, tile = (find(length, width * dtype.itemsize, biased) for find in (mixing_blocks, adding_blocks))
    tiles, programs = _tiles(slots, tile), -(-length // rows.queries) * batch * heads * (value_size > 0)
    wanted = -(-_processors(device) // (heads * tiles)) if batch > _SEQUENCES else 1
    parts = max(1, min(batch, wanted, _WORKSPACE // (4 * max(1, entries))))
    each = min(_SEQUENCES, -(-batch // parts))
    launches = [
        (first, heads * tiles * min(parts, -(-(batch - first) // each)))
        for first in range(0, batch, max(1, parts * each))
    ]
    norms_at = _aligned(batch * heads * length)
    parts_at = norms_at + _aligned(heads * tiles * parts)
    common = {"size": size, "width": width}
    mixing = {"value_size": value_size, "value_width": _power(value_size), "even": length % rows.keys == 0}
    adding = {"even": slots % tile.keys == 0, "shared": parts > 1, "stages": tile.stages}
    return _Plan(
        mixed=(batch, length, heads, value_size),
        programs=programs,
        mixing=common | mixing | rows.settings(),
        adding=common | adding | tile.settings(),
        tiles=tiles,
        parts=parts,
        each=each,
        launches=tuple(launches),
        norms_at=norms_at,
        parts_at=parts_at,
        work=parts_at + (parts > 1) * parts * entries,
    )


@cache
def most_tiles(slots: int, size: int, dtype: torch.dtype) -> int:
    """The largest number of tiles of a head in batches of up to so many slots, for heads of a size and dtype."""
    row, lengths = _power(size) * dtype.itemsize, {min(slots, length) for length in (slots, *_LENGTHS)}
    return max(_tiles(length, adding_blocks(length, row, biased)) for length in lengths for biased in (False, True))


def _tiles(slots: int, blocks: Blocks) -> int:
    """Number of tiles of a head."""
    return -(-slots // blocks.queries) * -(-slots // blocks.keys)


def mixing_blocks(length: int, row: int, biased: bool) -> Blocks:
    """Tiles of the mixing kernel by length and bytes of a row of queries, and whether a bias is read."""
    if row <= 128 and not biased:
        queries, keys, stages = 128, 64, 3
    else:
        queries, keys, stages = (64, 64 if row <= 256 else 32, 2) if row <= 512 else (32, 16, 1)
        keys = max(16, keys // 2) if biased and row > 128 else keys
    whole = _power(length)
    return Blocks(min(queries, whole), min(keys, whole), 8 if min(queries, whole) == 128 else 4, stages)


#: Lengths up to which small tiles, and middle ones, keep a GPU busy.
_LENGTHS = (128, 511)


def adding_blocks(slots: int, row: int, biased: bool) -> Blocks:
    """Tiles of the adding kernel by number of slots and bytes of a row of queries, and whether a bias is read."""
    whole, (small, middle) = _power(slots), _LENGTHS
    if slots <= small or row > 256:
        side = min(32, whole)
        return Blocks(side, side, 4, 3 if row <= 256 else 2 if row <= 512 else 1)
    if row > 128 or biased or slots <= middle:
        return Blocks(64, 64 if row <= 128 or not biased else 32, 4, 3 if row <= 128 and not biased else 2)
    return Blocks(128, 64, 4, 3)


def _processors(device: torch.device) -> int:
    """Number of multiprocessors of a device."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _precision(query: Tensor) -> str:
    """How products are taken: of float32 as exactly as float32, unless torch's settings allow TF32."""
    found = precision(query)
    exact = query.dtype == torch.float32 and found == "ieee" and torch.version.hip is None
    return "tf32x3" if exact else found


def _readable(tensor: Tensor) -> Tensor:
    """A tensor (B, H, T, h) whose features are neighbours."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


def _strides(mask: Tensor | None) -> tuple[int, ...]:
    """The strides of a mask (B, T); zeros for None, of which nothing is read."""
    return (0, 0) if mask is None else mask.stride()


def _aligned(number: int) -> int:
    """The next multiple of 64 entries."""
    return -(-number // 64) * 64


def _power(size: int) -> int:
    """The size of a block that holds a number of entries: a power of 2, of 16 or more."""
    return max(16, 1 << (size - 1).bit_length()) if size > 0 else 16
