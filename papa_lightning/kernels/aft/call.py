"""Arguments of the operator of attention-free mixing, and what of them its kernels are planned by."""

from typing import NamedTuple

import torch
from torch import Tensor

from papa_lightning.kernels.launch import takes_tf32
from papa_lightning.kernels.launches import by_sequence


class Call(NamedTuple):
    """Arguments of the operator; see :func:`papa_lightning.kernels.aft.mixing.attention_free_mixing`."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    query_scale: Tensor | None
    query_shift: Tensor | None
    key_scale: Tensor | None
    weight: Tensor | None
    first: int | None
    groups: int
    causal: bool
    summed: bool
    gate: float


class Sizes(NamedTuple):
    """Everything that the kernels of a call depend on, but the places of its tensors; ``exact``: float32, not TF32."""

    batch: int
    length: int
    total: int
    keys: int
    strides: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    device: torch.device
    mask: int | None
    scale: torch.dtype | None
    bias: tuple[torch.Size, tuple[int, ...], torch.dtype] | None
    first: int | None
    groups: int
    causal: bool
    summed: bool
    gate: float
    exact: bool


def dense_rows(tensor: Tensor) -> Tensor:
    """A tensor whose channels lie side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def joined(tensor: Tensor) -> Tensor:
    """(B, T, d) with channels side by side, of that or of (B, H, T, h)."""
    return dense_rows(tensor if tensor.dim() == 3 else tensor.transpose(1, 2).flatten(2))


def channels(tensor: Tensor) -> int:
    """d, of (B, T, d) or (B, H, T, h)."""
    shape = tensor.shape
    return shape[2] if len(shape) == 3 else shape[1] * shape[3]


def _readable(tensor: Tensor) -> Tensor:
    """The tensor itself where its strides are those of (B, T, d), else a copy with such strides, in the same shape."""
    stride = tensor.stride()
    if stride[-1] == 1 and (len(stride) == 3 or stride[1] == tensor.shape[3]):
        return tensor
    rows = joined(tensor)  # in its own shape again, which gradients have too
    return rows if len(stride) == 3 else rows.unflatten(2, (tensor.shape[1], -1)).transpose(1, 2)


def prepared(call: Call) -> Call:
    """The call with tensors as the kernels read them."""
    mask = by_sequence(call.mask, call.value.shape[0])
    mask = None if mask is None else dense_rows(mask.bool()).view(torch.uint8)
    return Call(_readable(call.query), _readable(call.key), _readable(call.value), mask, *call[4:])


def sizes(call: Call) -> Sizes:
    """Those of a call that is prepared."""
    query, key, value, mask, scale, _, _, weight, first, groups, causal, summed, gate = call
    (query_b, *_, query_t, _), (key_b, *_, key_t, _), (value_b, *_, value_t, _) = (
        query.stride(), key.stride(), value.stride()
    )  # fmt: skip
    return Sizes(
        value.shape[0], value.shape[-2], channels(value), channels(key),
        (query_b, query_t, key_b, key_t, value_b, value_t), (query.dtype, key.dtype, value.dtype), value.device,
        None if mask is None else mask.stride(0), None if scale is None else scale.dtype,
        None if weight is None else (weight.shape, weight.stride(), weight.dtype),
        first, groups, causal, summed, gate, torch.float32 in (key.dtype, value.dtype) and not takes_tf32(),
    )  # fmt: skip


def new_output(value: Tensor) -> Tensor:
    """A new tensor (B, T, d), or (B, T, H, h) for values (B, H, T, h)."""
    if value.dim() == 3:
        return torch.empty_like(value, memory_format=torch.contiguous_format)
    batch, heads, length, size = value.shape
    return value.new_empty((batch, length, heads, size))


def new_rows(like: Tensor) -> Tensor:
    """A new tensor of the shape of another one, (B, T, d) or (B, H, T, h), in the order of contiguous (B, T, d)."""
    if like.dim() == 3:
        return torch.empty_like(like, memory_format=torch.contiguous_format)
    _, heads, length, size = like.shape
    return like.new_empty_strided(like.shape, (length * heads * size, size, heads * size, 1))
