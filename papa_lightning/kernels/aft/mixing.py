"""Attention-free mixing as one operator: gated means with weights ``exp(k + w)``, forward and backward.

Sums and exponentials are float32. Matrix products take operands in bfloat16 if keys and values are bfloat16, and in
TF32 for float16; for float32 they are float32, unless ``torch.backends.cuda.matmul`` allows TF32. Inputs and
the output are all that is kept for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor

from papa_lightning.kernels.aft.call import Call, channels, joined
from papa_lightning.kernels.aft.launches import launch_gradients, launch_mixing

#: Channels of the widest group whose keys a program sums.
_WIDEST = 128

_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? query_scale, Tensor? query_shift, "
    "Tensor? key_scale, Tensor? weight, int? first, int groups, bool causal, bool summed, float gate"
)


@torch.library.custom_op("papa_lightning::aft", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor")
def _aft(*args: Any) -> Tensor:
    return launch_mixing(Call(*args))


@torch.library.custom_op(
    "papa_lightning::aft_gradients",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor out, {_ARGUMENTS}) -> Tensor[]",
)
def _aft_gradients(grad: Tensor, out: Tensor, *args: Any) -> list[Tensor]:
    return list(launch_gradients(Call(*args), grad, out))


@_aft.register_fake
def _(*args: Any) -> Tensor:
    return torch.empty_like(args[2], memory_format=torch.contiguous_format)


@_aft_gradients.register_fake
def _(grad: Tensor, out: Tensor, *args: Any) -> list[Tensor]:
    call = Call(*args)
    nothing = call.value.new_empty(0)
    scales, weight = (3, call.value.shape[2]), call.weight
    return [
        *(torch.empty_like(one, memory_format=torch.contiguous_format) for one in call[:3]),
        nothing if call.key_scale is None else call.value.new_empty(scales, dtype=torch.float32),
        nothing.clone() if weight is None else weight.new_empty(weight.shape, dtype=torch.float32),
    ]


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what gradients need."""
    ctx.save_for_backward(*inputs[:8], output)
    ctx.others = inputs[8:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs of the operator."""
    *tensors, out = ctx.saved_tensors
    call = Call(*tensors, *ctx.others)
    if type(grad) is Tensor and not torch.compiler.is_compiling():
        found = launch_gradients(call, grad, out)
    else:
        found = _aft_gradients(grad, out, *call)
    query, key, value, by_scale, weight = found
    scales: tuple[Tensor | None, ...] = (None, None, None)
    if call.key_scale is not None:
        scales = by_scale.to(call.key_scale.dtype).view(3, *call.key_scale.shape).unbind(0)
    bias = None if call.weight is None else weight.to(call.weight.dtype)
    return query, key, value, None, *scales, bias, None, None, None, None, None


_aft.register_autograd(_backward, setup_context=_set_up)


class _Mixing(torch.autograd.Function):
    """The operator without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """Mix, and keep what gradients need."""
        output = launch_mixing(Call(*inputs))
        _set_up(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)


def attention_free_mixing(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    groups: int = 1,
    weight: Tensor | None = None,
    first: int | None = None,
    affine: tuple[Tensor, Tensor, Tensor] | None = None,
    summed: bool = False,
    gate: float = 1.0,
) -> Tensor:
    """Attention-free mixing ``g sigmoid(a q_t + b) sum_u exp(c k_u + w_tu) v_u / sum_u exp(c k_u + w_tu)``.

    Args:
        query: (B, T, d), or (B, H, T, h) with H h channels; key and value alike.
        key: (B, T, d), or (B, T, groups) with one key for the channels of each group.
        value: (B, T, d).
        mask: (B, T), or (1, T) for all sequences, true for a real token, or None.
        causal: Whether rows look at themselves and earlier keys only.
        groups: Number of groups of neighbouring channels, which share a position bias.
        weight: w, (groups, T, T); with ``first`` a band of it, (groups, T or 1, n), and w is 0 elsewhere. None: w is 0.
        first: Offset of the key that the first column of a band belongs to.
        affine: a, b and c, with d numbers each, in one shape and dtype, of which c is for keys of d channels; None: a
            and c are 1, b is 0.
        summed: Whether a group has the sum of the keys of its channels, times c, as its one key; with ``affine``.
        gate: g.

    Returns:
        (B, T, d), or (B, T, H, h) for values (B, H, T, h), in the dtype of ``value``; rows without any key are 0.
    """
    scales = (None, None, None) if affine is None else affine
    total = channels(value)
    if affine is not None and summed and total // groups > _WIDEST:
        key = (joined(key).float() * affine[2].float().flatten()).unflatten(2, (groups, -1)).sum(3)
        summed = False
    if affine is not None and key.dim() == 3 and key.shape[2] != total:
        scales = (*affine[:2], affine[2].detach())  # not used again
    compiling = torch.compiler.is_compiling() or type(value) is not Tensor
    rows = (joined(query), joined(key), joined(value)) if compiling else (query, key, value)
    given = (*rows, mask, *scales, weight, first, groups, causal, summed, gate)
    mixed: Tensor
    if compiling:
        mixed = _aft(*given)
        mixed = mixed if value.dim() == 3 else mixed.unflatten(2, (value.shape[1], value.shape[3]))
    elif torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in given[:8]):
        mixed = _Mixing.apply(*given)  # not through the dispatcher, which takes longer than the launches
    else:
        mixed = launch_mixing(Call(*given))
    return mixed
