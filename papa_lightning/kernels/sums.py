"""Mixing of values by softmax attention that also adds the attention to sums, without any (B, H, T, T) tensor.

The first kernel mixes the values a block of keys at a time, and keeps the logarithm of each row's sum. With it, the
second makes the probabilities again tile by tile; a program adds those of its sequences up in registers, in float32
and in their order, and then adds the tile to the float64 sums. Where there are too few tiles to keep a GPU busy, the
sequences of a batch are shared out among several programs a tile, and their float32 sums are added in order.

Scores are float32 and are not rounded to the dtype of the query, as in PyTorch's fused attention. Products of float32
numbers are taken as there too: by three TF32 products each, which are as exact as float32; by one only where
``torch.backends.cuda.matmul.allow_tf32`` or ``torch.set_float32_matmul_precision`` allows that.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2E = tl.constexpr(1.4426950408889634)
#: Score of a key that is not seen: low, but not infinite, so that a row without any key is uniform and no NaN.
_LOWEST = tl.constexpr(-1e30)
#: Kinds of bias.
_ADDED, _ALLOWED = tl.constexpr(1), tl.constexpr(2)

#: Most sequences whose probabilities are added in float32; the rounding is a few units of its last place then.
_SEQUENCES = 64
#: Most bytes of sums in float32, and in float64 of those added up, beside the sums.
_WORKSPACE = 48 * 2**20
#: Shared memory of one block on small GPUs.
_SHARED = 96 * 2**10


class Blocks(NamedTuple):
    """Size of a tile in queries and keys, and how a GPU runs it."""

    queries: int
    keys: int
    warps: int
    stages: int


@triton.jit
def _scores(q, k, scale, bias, inside, KIND: tl.constexpr, PRECISION: tl.constexpr):
    """Scores of a tile to the base 2; ``inside`` marks the entries of the bias that exist."""
    x = tl.dot(q, k, input_precision=PRECISION) * scale
    if KIND == _ADDED:
        x += tl.load(bias, mask=inside, other=0.0).to(tl.float32) * _LOG2E
        x = tl.where(x < _LOWEST, _LOWEST, x)  # not a maximum, which would hide NaN
    if KIND == _ALLOWED:
        x = tl.where(tl.load(bias, mask=inside, other=0) != 0, x, _LOWEST)
    return x


@triton.jit
def _mix_rows(
    query, key, value, mask, bias, mixed, lse, scale, heads, length,
    query_b, query_h, query_t, key_b, key_h, key_t, value_b, value_h, value_t, mask_b, mask_t,
    bias_b, bias_h, bias_i, bias_j,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, VALUE_SIZE: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    MASKED: tl.constexpr, EVEN: tl.constexpr, KIND: tl.constexpr, MIX: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(length, QUERIES)
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = sequence // heads, sequence % heads
    i = (tl.program_id(0) % tiles) * QUERIES + tl.arange(0, QUERIES)
    d, e = tl.arange(0, WIDTH), tl.arange(0, VALUE_WIDTH)
    there = i < length
    query += b * query_b + h * query_h
    q = tl.load(query + i[:, None] * query_t + d[None, :], mask=there[:, None] & (d[None, :] < SIZE), other=0.0)
    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, VALUE_WIDTH), tl.float32)
    key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    for start in range(0, length, KEYS):
        j = start + tl.arange(0, KEYS)
        here = j < length
        k = tl.load(key + j[None, :] * key_t + d[:, None], mask=here[None, :] & (d[:, None] < SIZE), other=0.0)
        pairs = bias + b * bias_b + h * bias_h + i[:, None] * bias_i + j[None, :] * bias_j
        x = _scores(q, k, scale, pairs, there[:, None] & here[None, :], KIND, PRECISION)
        if MASKED:
            real = tl.load(mask + b * mask_b + j * mask_t, mask=here, other=0) != 0
            x = tl.where(real[None, :], x, tl.where(here, _LOWEST, float("-inf"))[None, :])
        elif not EVEN:
            x = tl.where(here[None, :], x, float("-inf"))
        new = tl.maximum(highest, tl.max(x, 1))
        p, shrink = tl.exp2(x - new[:, None]), tl.exp2(highest - new)
        total, highest = total * shrink + tl.sum(p, 1), new
        if MIX:
            v = tl.load(value + j[:, None] * value_t + e[None, :], mask=here[:, None] & (e[None, :] < VALUE_SIZE), other=0.0)
            sums = tl.dot(p.to(v.dtype), v, sums * shrink[:, None], input_precision=PRECISION)
    # A row without any key is uniform, as its values are mixed here, but is not counted.
    norms = tl.where(highest <= _LOWEST, float("inf"), highest + tl.log2(total))
    tl.store(lse + sequence * length + i, norms, mask=there)
    if MIX:
        at = ((b * length + i[:, None]) * heads + h) * VALUE_SIZE + e[None, :]
        rows = sums / total[:, None]
        tl.store(mixed + at, rows.to(mixed.dtype.element_ty), mask=there[:, None] & (e[None, :] < VALUE_SIZE))


@triton.jit(do_not_specialize=["first", "last", "each"])
def _add_sums(
    query, key, mask, bias, tokens, lse, sums, parts, squares, scale, heads, length, slots, first, last, each,
    query_b, query_h, query_t, key_b, key_h, key_t, mask_b, mask_t, bias_b, bias_h, bias_i, bias_j,
    tokens_b, sums_h, sums_i,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr, EVEN: tl.constexpr, KIND: tl.constexpr,
    PLACED: tl.constexpr, APART: tl.constexpr, PRECISION: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    rows, columns = tl.cdiv(slots, QUERIES), tl.cdiv(slots, KEYS)
    tile, rest = tl.program_id(0) % (rows * columns), tl.program_id(0) // (rows * columns)
    h, part = (rest % heads).to(tl.int64), (rest // heads).to(tl.int64)
    i = (tile // columns) * QUERIES + tl.arange(0, QUERIES)
    j = (tile % columns) * KEYS + tl.arange(0, KEYS)
    d, there, here = tl.arange(0, WIDTH), i < slots, j < slots
    inside = there[:, None] & here[None, :]
    total, squared = tl.zeros((QUERIES, KEYS), tl.float32), tl.zeros((QUERIES,), tl.float32)
    begin = first + part * each
    for b in tl.range(begin, tl.minimum(begin + each, last), num_stages=STAGES):
        query_at, key_at = i, j
        if PLACED:
            query_at = tl.load(tokens + b * tokens_b + i, mask=there, other=0)
            key_at = tl.load(tokens + b * tokens_b + j, mask=here, other=0)
        norms = tl.load(lse + (b * heads + h) * length + query_at, mask=there, other=float("inf"))
        if MASKED:
            real = tl.load(mask + b * mask_b + i * mask_t, mask=there, other=0) != 0
            seen = tl.load(mask + b * mask_b + j * mask_t, mask=here, other=0) != 0
        q = tl.load(query + b * query_b + h * query_h + query_at[:, None] * query_t + d[None, :],
                    mask=there[:, None] & (d[None, :] < SIZE), other=0.0)  # fmt: skip
        k = tl.load(key + b * key_b + h * key_h + key_at[None, :] * key_t + d[:, None],
                    mask=here[None, :] & (d[:, None] < SIZE), other=0.0)  # fmt: skip
        pairs = bias + b * bias_b + h * bias_h + query_at[:, None] * bias_i + key_at[None, :] * bias_j
        p = tl.exp2(_scores(q, k, scale, pairs, inside, KIND, PRECISION) - norms[:, None])
        if MASKED:
            p = tl.where(real[:, None] & seen[None, :], p, 0.0)  # over NaN too
        elif not EVEN:
            p = tl.where(here[None, :], p, 0.0)
        total += p
        squared += tl.sum(p * p, 1)
    tl.store(squares + h * (tl.num_programs(0) // heads) + part * rows * columns + tile, tl.sum(squared, 0))
    if APART:
        tl.store(parts + ((part * heads + h) * slots + i[:, None]) * slots + j[None, :], total, mask=inside)
    else:
        at = sums + h * sums_h + i[:, None] * sums_i + j[None, :]
        tl.store(at, tl.load(at, mask=inside, other=0.0) + total.to(tl.float64), mask=inside)


class _Scores:
    """The scores of a batch, as both kernels read them."""

    def __init__(self, query: Tensor, key: Tensor, bias: Tensor | None, scaling: float) -> None:
        self.query, self.key, self.precision = query, key, _precision(query)
        self.scale = scaling * _LOG2E.value
        self.size, self.width = query.shape[3], _width(query.shape[3])
        self.strides = (*query.stride()[:3], *key.stride()[:3])
        self.bias, self.kind, self.bias_strides = query, 0, (0, 0, 0, 0)
        if bias is not None:
            self.kind = (_ALLOWED if bias.dtype == torch.bool else _ADDED).value
            bias = bias.expand(*query.shape[:3], key.shape[2])
            self.bias, self.bias_strides = _bytes(bias), bias.stride()

    def mix(self, value: Tensor, mask: Tensor | None, mixed: Tensor, lse: Tensor, mix: bool = True) -> None:
        """Write mixed values (B, T, H, h), and the logarithms (B, H, T) to the base 2 of the sums of rows."""
        batch, heads, length, _ = self.query.shape
        blocks = mixing_blocks(length, self.width, self.query.element_size())
        _mix_rows[(triton.cdiv(length, blocks.queries) * batch * heads,)](
            self.query, self.key, value, self.query if mask is None else _bytes(mask), self.bias, mixed, lse,
            self.scale, heads, length, *self.strides, *value.stride()[:3], *_strides(mask), *self.bias_strides,
            SIZE=self.size, WIDTH=self.width, VALUE_SIZE=value.shape[3], VALUE_WIDTH=_width(value.shape[3]),
            MASKED=mask is not None, EVEN=length % blocks.keys == 0, KIND=self.kind, MIX=mix,
            PRECISION=self.precision, QUERIES=blocks.queries, KEYS=blocks.keys,
            num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip

    def add(
        self, mask: Tensor | None, tokens: Tensor | None, lse: Tensor, sums: Tensor, squares: Tensor
    ) -> None:
        """Add the probabilities to sums, and their squares to sums of squares."""
        (batch, heads, length, _), slots = self.query.shape, sums.shape[1]
        blocks = adding_blocks(slots, self.width, self.query.element_size())
        tiles = heads * triton.cdiv(slots, blocks.queries) * triton.cdiv(slots, blocks.keys)
        parts, each = _shares(batch, tiles, sums)
        work = lse.new_empty((parts, heads, slots, slots) if parts > 1 else 1)
        norms = lse.new_empty(heads, parts * tiles // heads)
        for first in range(0, batch, parts * each):
            count = min(parts, triton.cdiv(batch - first, each))
            _add_sums[(tiles * count,)](
                self.query, self.key, self.query if mask is None else _bytes(mask), self.bias,
                self.query if tokens is None else tokens, lse, sums, work, norms, self.scale, heads, length, slots,
                first, batch, each, *self.strides, *_strides(mask), *self.bias_strides,
                0 if tokens is None else tokens.stride(0), *sums.stride()[:2],
                SIZE=self.size, WIDTH=self.width, MASKED=mask is not None, EVEN=slots % blocks.keys == 0,
                KIND=self.kind, PLACED=tokens is not None, APART=parts > 1, PRECISION=self.precision,
                QUERIES=blocks.queries, KEYS=blocks.keys, STAGES=blocks.stages,
                num_warps=blocks.warps, num_stages=blocks.stages,
            )  # fmt: skip
            if parts > 1:
                sums += work[:count].sum(dim=0, dtype=torch.float64)
            squares += norms.flatten()[: tiles * count].view(heads, -1).sum(dim=1, dtype=torch.float64)


def mixing_blocks(length: int, width: int, size: int) -> Blocks:
    """Tiles of the mixing kernel by length, padded size of a head and bytes of a number."""
    bytes_of_row = width * size
    rows, stages = (128, 3) if bytes_of_row <= 128 else (64, 2)
    keys = 64 if bytes_of_row <= 256 else 32 if bytes_of_row <= 512 else 16
    rows = min(rows, max(16, triton.next_power_of_2(length)))
    return Blocks(rows, min(keys, max(16, triton.next_power_of_2(length))), 8 if rows == 128 else 4, stages)


def adding_blocks(slots: int, width: int, size: int) -> Blocks:
    """Tiles of the adding kernel by number of slots, padded size of a head and bytes of a number."""
    bytes_of_row = width * size
    side = 128 if bytes_of_row <= 128 else 64 if bytes_of_row <= 512 else 32
    side = min(side, max(16, triton.next_power_of_2(slots)))
    return Blocks(side, side, 8 if side == 128 else 4, 2)


def _shares(batch: int, tiles: int, sums: Tensor) -> tuple[int, int]:
    """Number of programs that share the sequences of a tile, and the sequences of each."""
    entries = sums.numel()
    wanted = triton.cdiv(_processors(sums.device), tiles)
    fitting = (_WORKSPACE - 8 * entries) // (4 * entries)
    parts = max(1, min(batch, wanted, fitting))
    each = min(_SEQUENCES, triton.cdiv(batch, parts))
    return triton.cdiv(batch, each) if each * parts >= batch else parts, each


def _processors(device: torch.device) -> int:
    """Number of multiprocessors of a device."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _precision(query: Tensor) -> str:
    """How products are taken: of float32 as exactly as float32, unless torch's settings allow TF32."""
    if query.dtype != torch.float32 or torch.get_float32_matmul_precision() != "highest":
        return "tf32"  # for half precision it says nothing
    return "ieee" if torch.version.hip is not None else "tf32x3"


def _bytes(flags: Tensor) -> Tensor:
    """A boolean tensor as bytes, which kernels read; others as they are."""
    return flags.view(torch.uint8) if flags.dtype == torch.bool else flags


def _strides(mask: Tensor | None) -> tuple[int, ...]:
    """The strides of a mask (B, T)."""
    return (0, 0) if mask is None else mask.stride()


def _width(size: int) -> int:
    """Size of a head in a kernel: a power of 2."""
    return max(16, triton.next_power_of_2(size))


@torch.library.custom_op("papa_lightning::mix_and_add_attention", mutates_args=("sums", "squares"))
def mix_and_add_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scaling: float,
    tokens: Tensor | None,
    filled: Tensor | None,
    sums: Tensor,
    squares: Tensor,
) -> Tensor:
    """Mix values by attention ``A = softmax(scaling Q K^T + bias)`` over the real keys, and add it to running sums.

        sums[h,i,j] += sum_b A[b,h,i,j] m_i m_j,   squares[h] += sum_bij A[b,h,i,j]^2 m_i m_j

    Args:
        query: (B, H, T, h); float16, bfloat16 or float32.
        key: (B, H, T, h).
        value: (B, H, T, h).
        mask: (B, T), true for a real token, or None.
        bias: Bias of the scores, broadcastable to (B, H, T, T), or None: floating point is added, and boolean is true
            where a query may look. It is read where it is, without a copy.
        scaling: Factor of the scores.
        tokens: (B, S), the token in each slot, where sums are by slots, contiguous in a row; else None, and S is T.
        filled: (B, S), true where a slot has a real token, for sums by slots; else None.
        sums: (H, S, S), float64, a view with any strides but 1 for keys; added to in place.
        squares: (H,), float64; added to in place.

    Returns:
        (B, T, H, h). Rows without any key are uniform, and count nothing.
    """
    query, key, value = (one if one.stride(-1) == 1 else one.contiguous() for one in (query, key, value))
    mixed = value.new_empty(value.shape[0], value.shape[2], value.shape[1], value.shape[3])
    if mixed.numel() == 0:
        return mixed
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    scores = _Scores(query, key, bias, scaling)
    scores.mix(value, mask, mixed, lse)
    scores.add(mask if tokens is None else filled, tokens, lse, sums, squares)
    return mixed


@mix_and_add_attention.register_fake
def _mixed_like(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scaling: float,
    tokens: Tensor | None,
    filled: Tensor | None,
    sums: Tensor,
    squares: Tensor,
) -> Tensor:
    return value.new_empty(value.shape[0], value.shape[2], value.shape[1], value.shape[3])
