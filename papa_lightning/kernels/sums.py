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
import triton.language as tl
from torch import Tensor

_LOG2E = tl.constexpr(1.4426950408889634)
#: Score of a key that is not seen: low, but not infinite, so that a row without any key is uniform and no NaN.
_LOWEST = tl.constexpr(-1e30)

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


@triton.jit
def _scores(q, k, scale, bias, inside, precision: tl.constexpr):
    """Scores of a tile, to be multiplied by ``scale``; ``inside`` marks the entries of the bias that exist."""
    x = tl.dot(q, k, input_precision=precision)
    if bias is not None:
        if bias.dtype.element_ty == tl.int1:
            x = tl.where(tl.load(bias, mask=inside, other=0) != 0, x, _LOWEST)
        else:
            x += tl.load(bias, mask=inside, other=0.0).to(tl.float32) * (_LOG2E / scale)
            x = tl.where(x < _LOWEST, _LOWEST, x)  # not a maximum, which would hide NaN
    return x


@triton.jit
def _mix_rows(
    query, key, value, mask, bias, mixed, work, scale, heads, length,
    query_b, query_h, query_t, key_b, key_h, key_t, value_b, value_h, value_t, mask_b, mask_t,
    bias_b, bias_h, bias_i, bias_j,
    size: tl.constexpr, width: tl.constexpr, value_size: tl.constexpr, value_width: tl.constexpr,
    even: tl.constexpr, precision: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    """Write the mixed values, and the logarithms (B, H, T) to the base 2 of the sums of rows, of a tile of queries."""
    tiles = tl.cdiv(length, queries)
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = sequence // heads, sequence % heads
    i = (tl.program_id(0) % tiles) * queries + tl.arange(0, queries)
    d, e, there = tl.arange(0, width), tl.arange(0, value_width), i < length
    query += b * query_b + h * query_h
    key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    q = tl.load(query + i[:, None] * query_t + d[None, :], mask=there[:, None] & (d[None, :] < size), other=0.0)
    highest = tl.full((queries,), float("-inf"), tl.float32)
    total = tl.zeros((queries,), tl.float32)
    sums = tl.zeros((queries, value_width), tl.float32)
    for start in range(0, length, keys):
        j = start + tl.arange(0, keys)
        here = j < length
        k = tl.load(key + j[None, :] * key_t + d[:, None], mask=here[None, :] & (d[:, None] < size), other=0.0)
        pairs = bias
        if bias is not None:
            pairs = bias + b * bias_b + h * bias_h + i[:, None] * bias_i + j[None, :] * bias_j
        x = _scores(q, k, scale, pairs, there[:, None] & here[None, :], precision)
        if mask is not None:
            real = tl.load(mask + b * mask_b + j * mask_t, mask=here, other=0) != 0
            x = tl.where(real[None, :], x, tl.where(here, _LOWEST, float("-inf"))[None, :])
        elif not even:
            x = tl.where(here[None, :], x, float("-inf"))
        new = tl.maximum(highest, tl.max(x, 1) * scale)
        p, shrink = tl.exp2(x * scale - new[:, None]), tl.exp2(highest - new)
        total, highest = total * shrink + tl.sum(p, 1), new
        held = here[:, None] & (e < value_size)[None, :]
        v = tl.load(value + j[:, None] * value_t + e[None, :], mask=held, other=0.0)
        sums = tl.dot(p.to(v.dtype), v, sums * shrink[:, None], input_precision=precision)
    at = ((b * length + i[:, None]) * heads + h) * value_size + e[None, :]
    rows = (sums / total[:, None]).to(mixed.dtype.element_ty)
    tl.store(mixed + at, rows, mask=there[:, None] & (e[None, :] < value_size))
    # A row without any key is uniform, as its values are mixed here, but is not counted.
    norms = tl.where(highest <= _LOWEST * scale, float("inf"), highest + tl.log2(total))
    tl.store(work + sequence * length + i, norms, mask=there)


@triton.jit(do_not_specialize=["layer", "first", "last", "each"])
def _add_tiles(
    query, key, mask, bias, tokens, work, sums, scale, heads, length, slots, max_length, norms_at, parts_at,
    layer, first, last, each, query_b, query_h, query_t, key_b, key_h, key_t, mask_b, mask_t,
    bias_b, bias_h, bias_i, bias_j, tokens_b,
    size: tl.constexpr, width: tl.constexpr, even: tl.constexpr, shared: tl.constexpr,
    precision: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """Add the probabilities of some sequences in a tile of slots, and write the sum of their squares."""
    columns = tl.cdiv(slots, keys)
    tiles = tl.cdiv(slots, queries) * columns
    tile, rest = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    h, part = (rest % heads).to(tl.int64), (rest // heads).to(tl.int64)
    i, j = (tile // columns) * queries + tl.arange(0, queries), (tile % columns) * keys + tl.arange(0, keys)
    d, there, here = tl.arange(0, width), i < slots, j < slots
    inside = there[:, None] & here[None, :]
    total, squares = tl.zeros((queries, keys), tl.float32), tl.zeros((queries,), tl.float32)
    begin = first + part * each
    for b in tl.range(begin, tl.minimum(begin + each, last), num_stages=stages):
        query_at, key_at = i, j
        if tokens is not None:
            query_at = tl.load(tokens + b * tokens_b + i, mask=there, other=0)
            key_at = tl.load(tokens + b * tokens_b + j, mask=here, other=0)
        norms = tl.load(work + (b * heads + h) * length + query_at, mask=there, other=0.0)
        q = tl.load(query + b * query_b + h * query_h + query_at[:, None] * query_t + d[None, :],
                    mask=there[:, None] & (d[None, :] < size), other=0.0)  # fmt: skip
        k = tl.load(key + b * key_b + h * key_h + key_at[None, :] * key_t + d[:, None],
                    mask=here[None, :] & (d[:, None] < size), other=0.0)  # fmt: skip
        pairs = bias
        if bias is not None:
            pairs = bias + b * bias_b + h * bias_h + query_at[:, None] * bias_i + key_at[None, :] * bias_j
        p = tl.exp2(_scores(q, k, scale, pairs, inside, precision) * scale - norms[:, None])
        if mask is not None:
            real = tl.load(mask + b * mask_b + i * mask_t, mask=there, other=0) != 0
            seen = tl.load(mask + b * mask_b + j * mask_t, mask=here, other=0) != 0
            p = tl.where(real[:, None] & seen[None, :], p, 0.0)  # over NaN too
        elif not even:
            p = tl.where(here[None, :], p, 0.0)
        total += p
        squares += tl.sum(p * p, 1)
    squared = tl.sum(tl.where(there, squares, 0.0), 0)
    tl.store(work + norms_at + h * (tl.num_programs(0) // heads) + part * tiles + tile, squared)
    if shared:
        at = work + parts_at + ((part * heads + h) * slots + i[:, None]) * slots + j[None, :]
        tl.store(at, total, mask=inside)
    else:
        at = sums + ((layer * heads + h) * max_length + i[:, None]) * max_length + j[None, :]
        tl.store(at, tl.load(at, mask=inside, other=0.0) + total.to(tl.float64), mask=inside)


@triton.jit(do_not_specialize=["layer", "parts", "tiles"])
def _add_parts(
    work, sums, squares, slots, max_length, norms_at, parts_at, layer, parts, tiles,
    shared: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Add the sums of parts of a batch to a block of a head's sums, and those of squares, in order."""
    heads = tl.num_programs(1)
    h, order = tl.program_id(1).to(tl.int64), tl.arange(0, block)
    if tl.program_id(0) == 0:
        squared = tl.zeros((block,), tl.float64)
        for start in range(0, parts * tiles, block):
            inside = start + order < parts * tiles
            squared += tl.load(work + norms_at + h * parts * tiles + start + order, mask=inside, other=0.0)
        at = squares + layer * heads + h
        tl.store(at, tl.load(at) + tl.sum(squared, 0))
    if shared:
        entry = tl.program_id(0) * block + order
        inside, added = entry < slots * slots, tl.zeros((block,), tl.float64)
        for part in range(0, parts):
            added += tl.load(work + parts_at + (part * heads + h) * slots * slots + entry, mask=inside, other=0.0)
        at = sums + ((layer * heads + h) * max_length + entry // slots) * max_length + entry % slots
        tl.store(at, tl.load(at, mask=inside, other=0.0) + added, mask=inside)


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
    scores = (query, key, bias, scaling * _LOG2E.value)
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
    _mix_rows[(triton.cdiv(length, blocks.queries) * batch * heads,)](
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
        _add_tiles[(plan.tiles * heads * parts,)](
            query, key, mask, bias, tokens, work, sums, scale, heads, length, slots, max_length,
            plan.norms_at, plan.parts_at, layer, first, batch, plan.each, *strides,
            even=slots % blocks.keys == 0, shared=plan.parts > 1, queries=blocks.queries, keys=blocks.keys,
            stages=blocks.stages, num_warps=blocks.warps, num_stages=blocks.stages, **options,
        )  # fmt: skip
        _add_parts[(triton.cdiv(slots**2, _ENTRIES) if plan.parts > 1 else 1, heads)](
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
