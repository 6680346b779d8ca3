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
from typing import Any, NamedTuple, TypeAlias

import torch
import triton
from torch import Tensor

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

        sums[layer,h,i,j] += sum_b A[b,h,i,j] m_i m_j,   squares[layer,h] += sum_bij A[b,h,i,j]^2 m_i m_j

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
        squares: (L, H), float64, contiguous; added to in place.

    Returns:
        (B, T, H, h). Rows without any key are uniform, and count nothing.
    """
    operator = torch.ops.papa_lightning.mix_and_add_attention.default
    mixed: Tensor = operator(query, key, value, mask, bias, scaling, tokens, filled, layer, sums, squares)
    return mixed


torch.library.define(
    "papa_lightning::mix_and_add_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? bias, float scaling, Tensor? tokens, "
    "Tensor? filled, int layer, Tensor(a!) sums, Tensor(b!) squares) -> Tensor",
)


@torch.library.register_fake("papa_lightning::mix_and_add_attention")
def _mixed_like(query: Tensor, key: Tensor, value: Tensor, *further: object) -> Tensor:
    batch, heads, length, size = value.shape
    mixed: Tensor = value.new_empty(batch, length, heads, size)
    return mixed


@torch.library.impl("papa_lightning::mix_and_add_attention", ("cuda", "cpu"))
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
    mixed: Tensor = _mixed_like(query, key, value)
    if mixed.numel() == 0:
        return mixed
    query, key, value = (one if one.stride(3) == 1 else one.contiguous() for one in (query, key, value))
    if bias is not None:
        bias = bias.expand(*query.shape[:3], key.shape[2])
    slots = query.shape[2] if filled is None else filled.shape[1]
    plan = _plan(*query.shape, slots, query.element_size(), bias is not None, query.device)
    work = torch.empty(plan.size, dtype=torch.float32, device=query.device)
    options = {"size": query.shape[3], "width": _width(query.shape[3]), "precision": _precision(query)}
    scores = (query, key, bias, scaling * LOG2E.value)
    with torch.cuda.device_of(query):
        _mix(scores, value, mask, mixed, work, options)
        _add(scores, mask if filled is None else filled, tokens, work, (layer, sums, squares), plan, options)
    return mixed


_Scores: TypeAlias = "tuple[Tensor, Tensor, Tensor | None, float]"  # query, key, bias and factor


def _mix(
    scores: _Scores, value: Tensor, mask: Tensor | None, mixed: Tensor, work: Tensor, options: dict[str, Any]
) -> None:
    """Launch the kernel that mixes."""
    (query, key, bias, scale), value_size = scores, value.shape[3]
    batch, heads, length, _ = query.shape
    blocks = mixing_blocks(length, options["width"] * query.element_size(), bias is not None)
    mix_rows[(triton.cdiv(length, blocks.queries) * batch * heads,)](
        query, key, value, mask, bias, mixed, work, scale, heads, length,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *_strides(mask, 2), *_strides(bias, 4),
        value_size=value_size, value_width=_width(value_size), even=length % blocks.keys == 0, queries=blocks.queries,
        keys=blocks.keys, num_warps=blocks.warps, num_stages=blocks.stages, **options,
    )  # fmt: skip


def _add(
    scores: _Scores,
    mask: Tensor | None,
    tokens: Tensor | None,
    work: Tensor,
    target: tuple[int, Tensor, Tensor],
    plan: _Plan,
    options: dict[str, Any],
) -> None:
    """Launch the kernels that add, for as many sequences at a time as the plan has room for."""
    (query, key, bias, scale), (layer, sums, squares), blocks = scores, target, plan.blocks
    (batch, heads, length, _), (slots, max_length) = query.shape, (plan.slots, sums.shape[3])
    strides = (*query.stride()[:3], *key.stride()[:3], *_strides(mask, 2), *_strides(bias, 4), *_strides(tokens, 1))
    for first in range(0, batch, plan.parts * plan.each):
        parts = min(plan.parts, triton.cdiv(batch - first, plan.each))
        add_tiles[(plan.tiles * heads * parts,)](
            query, key, mask, bias, tokens, work, sums, scale, heads, length, slots, max_length,
            plan.norms_at, plan.parts_at, layer, first, batch, plan.each, *strides,
            even=slots % blocks.keys == 0, shared=plan.parts > 1, queries=blocks.queries, keys=blocks.keys,
            stages=blocks.stages, num_warps=blocks.warps, num_stages=blocks.stages, **options,
        )  # fmt: skip
        add_parts[(triton.cdiv(slots**2, _ENTRIES) if plan.parts > 1 else 1, heads)](
            work, sums, squares, slots, max_length, plan.norms_at, plan.parts_at, layer, parts, plan.tiles,
            shared=plan.parts > 1, block=_ENTRIES,
        )  # fmt: skip


class _Plan(NamedTuple):
    """How the sequences of a batch are shared out, and where in the workspace sums are written.

    Args:
        slots: S.
        blocks: The tiles of the adding kernel.
        tiles: Number of tiles of a head.
        parts: Number of programs that share the sequences of a tile.
        each: Number of sequences of each of them.
        norms_at: Place of the sums of squares, behind the logarithms of the sums of rows.
        parts_at: Place of the sums of parts.
        size: Number of entries.
    """

    slots: int
    blocks: Blocks
    tiles: int
    parts: int
    each: int
    norms_at: int
    parts_at: int
    size: int


@lru_cache(maxsize=256)
def _plan(
    batch: int, heads: int, length: int, size: int, slots: int, item: int, biased: bool, device: torch.device
) -> _Plan:
    blocks = adding_blocks(slots, _width(size) * item, biased)
    tiles, entries = triton.cdiv(slots, blocks.queries) * triton.cdiv(slots, blocks.keys), heads * slots**2
    wanted = triton.cdiv(_processors(device), heads * tiles)
    parts = max(1, min(batch, wanted, _WORKSPACE // (4 * entries)))
    each = min(_SEQUENCES, triton.cdiv(batch, parts))
    norms_at = _aligned(batch * heads * length)
    parts_at = norms_at + _aligned(heads * tiles * parts)
    return _Plan(slots, blocks, tiles, parts, each, norms_at, parts_at, parts_at + (parts > 1) * parts * entries)


def mixing_blocks(length: int, row: int, biased: bool) -> Blocks:
    """Tiles of the mixing kernel by length and bytes of a row of queries, and whether a bias is read."""
    if row <= 128 and not biased:
        queries, keys, stages = 128, 64, 3
    else:
        queries, keys, stages = (64, 64 if row <= 256 else 32, 2) if row <= 512 else (32, 16, 1)
        keys = max(16, keys // 2) if biased and row > 128 else keys
    whole = _width(length)
    return Blocks(min(queries, whole), min(keys, whole), 8 if min(queries, whole) == 128 else 4, stages)


def adding_blocks(slots: int, row: int, biased: bool) -> Blocks:
    """Tiles of the adding kernel by number of slots and bytes of a row of queries, and whether a bias is read."""
    side, stages = (128 if row <= 128 and not biased else 64 if row <= 256 else 32), 2 if row <= 512 else 1
    side = min(side, _width(slots))
    return Blocks(side, side, 8 if side == 128 else 4, stages)


def _processors(device: torch.device) -> int:
    """Number of multiprocessors of a device."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _precision(query: Tensor) -> str:
    """How products are taken: of float32 as exactly as float32, unless torch's settings allow TF32."""
    if query.dtype != torch.float32 or torch.get_float32_matmul_precision() != "highest":
        return "tf32"  # for half precision it says nothing
    return "ieee" if torch.version.hip is not None else "tf32x3"


def _strides(tensor: Tensor | None, number: int) -> tuple[int, ...]:
    """The first strides of a tensor; 0 without one."""
    return (0,) * number if tensor is None else tensor.stride()[:number]


def _aligned(number: int) -> int:
    """The next multiple of 64 entries."""
    return -(-number // 64) * 64


@cache
def _width(size: int) -> int:
    """The size of a block that holds a number of entries: a power of 2, of 16 or more."""
    return max(16, int(triton.next_power_of_2(size)))
