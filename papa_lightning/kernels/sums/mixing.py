"""Mixing of values by softmax attention that also adds the attention to sums, without any (B, H, T, T) tensor.

A first kernel mixes the values a block of keys at a time, and keeps the logarithm of each row's sum. With it, a second
makes the probabilities again tile by tile; a program adds those of its sequences up in registers, in float32 and in
their order, and then adds the tile to the float64 sums. Short sequences, all keys of which are one block, take one
kernel for both. Where there are too few tiles to keep a GPU busy, the sequences of a large batch are shared out among
several programs a tile, and a third kernel adds their sums in order.

Scores are float32 and are not rounded to the dtype of the query, as in PyTorch's fused attention. Products of float32
numbers are taken as there too: by three TF32 products each, which are as exact as float32; by one only where
``torch.set_float32_matmul_precision`` or ``torch.backends.cuda.matmul.allow_tf32`` allows that.
"""

from __future__ import annotations

from math import e, log2
from typing import TypeAlias

import torch
from torch import Tensor

from papa_lightning.kernels.launches import by_sequence
from papa_lightning.kernels.sums.blocks import add_parts, add_tiles, mix_and_add, mix_rows
from papa_lightning.kernels.sums.launches import ENTRIES, Plan, exact_precision, most_tiles, plan_batch

__all__ = ["mix_and_add_attention", "most_tiles"]


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
        mask: (B, T), or (1, T) for all sequences, true for a real token, or None.
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
    slots = None if filled is None else filled.shape[1]
    plan = plan_batch(query.shape, value.shape[3], slots, query.dtype, bias is not None, query.device)
    mixed = torch.empty(plan.mixed, dtype=value.dtype, device=value.device)
    if not plan.launches:
        return mixed
    work = torch.empty(plan.work, dtype=torch.float32, device=value.device) if plan.work > 0 else None
    query, key, value = _readable(query), _readable(key), _readable(value)
    mask = by_sequence(mask, query.shape[0])
    if bias is not None:
        bias = bias.expand(*query.shape[:3], key.shape[2])
    scores = (query, key, bias, scaling * log2(e))
    target = (sums, squares, layer)
    with torch.cuda.device_of(query):
        if plan.short:
            _launch_both(plan, scores, value, mask, mixed, work, target)
        else:
            _launch_mixing(plan, scores, value, mask, mixed, work)
            _launch_adding(plan, scores, mask if filled is None else filled, tokens, work, target)
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


_Scores: TypeAlias = "tuple[Tensor, Tensor, Tensor | None, float]"  # query, key, bias and factor to the base 2
_Target: TypeAlias = tuple[Tensor, Tensor, int]  # sums, squares and the layer


def _launch_both(
    plan: Plan, scores: _Scores, value: Tensor, mask: Tensor | None, mixed: Tensor, work: Tensor | None, target: _Target
) -> None:
    (query, key, bias, scale), (sums, squares, layer) = scores, target
    batch, heads, length, _ = query.shape
    for first, programs in plan.launches:
        mix_and_add[programs,](
            *(query, key, value, mask, bias, mixed, work, sums, squares, scale, heads, length, sums.shape[3]),
            *(squares.shape[2], plan.norms_at, plan.parts_at, layer, first, batch, plan.each),
            *(*query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *_strides(mask), *_bias_strides(bias)),
            precision=exact_precision(query),
            **plan.adding,
        )
        _launch_parts(plan, programs, work, target)


def _launch_mixing(
    plan: Plan, scores: _Scores, value: Tensor, mask: Tensor | None, mixed: Tensor, work: Tensor | None
) -> None:
    query, key, bias, scale = scores
    mix_rows[plan.programs,](
        *(query, key, value, mask, bias, mixed, work, scale, query.shape[1], query.shape[2]),
        *(*query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *_strides(mask), *_bias_strides(bias)),
        precision=exact_precision(query),
        **plan.mixing,
    )


def _launch_adding(
    plan: Plan, scores: _Scores, mask: Tensor | None, tokens: Tensor | None, work: Tensor | None, target: _Target
) -> None:
    (query, key, bias, scale), (sums, squares, layer) = scores, target
    batch, heads, length, _ = query.shape
    for first, programs in plan.launches:
        add_tiles[programs,](
            *(query, key, mask, bias, tokens, work, sums, squares, scale, heads, length, plan.slots, sums.shape[3]),
            *(squares.shape[2], plan.norms_at, plan.parts_at, layer, first, batch, plan.each),
            *(*query.stride()[:3], *key.stride()[:3], *_strides(mask), *_bias_strides(bias)),
            0 if tokens is None else tokens.stride(0),
            precision=exact_precision(query),
            **plan.adding,
        )
        _launch_parts(plan, programs, work, target)


def _launch_parts(plan: Plan, programs: int, work: Tensor | None, target: _Target) -> None:
    """Add the sums of parts, after a launch of so many programs."""
    (sums, squares, layer), heads = target, target[0].shape[1]
    if plan.parts > 1:
        add_parts[-(-(plan.slots**2) // ENTRIES), heads](
            *(work, sums, squares, plan.slots, sums.shape[3], squares.shape[2], plan.norms_at, plan.parts_at, layer),
            *(programs // (heads * plan.tiles), plan.tiles),
            block=ENTRIES,
        )


def _readable(tensor: Tensor) -> Tensor:
    """A tensor (B, H, T, h) whose features are neighbours."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


def _strides(mask: Tensor | None) -> tuple[int, ...]:
    """The strides of a mask (B, T); zeros for None, of which nothing is read."""
    return (0, 0) if mask is None else mask.stride()


def _bias_strides(bias: Tensor | None) -> tuple[int, ...]:
    """The strides of a bias (B, H, T, T); zeros for None."""
    return (0, 0, 0, 0) if bias is None else bias.stride()
