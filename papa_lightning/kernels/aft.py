"""Attention-free mixing as one operator: gated means with weights ``exp(k + w)``, forward and backward.

Sums and exponentials are float32. Matrix products take TF32 operands for half precision; for float32 they are float32,
unless ``torch.get_float32_matmul_precision()`` allows TF32. Inputs and output are all that is kept for the backward pass.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from papa_lightning.kernels.aft_backward import gradients_of_keys, gradients_of_rows, gradients_of_weights
from papa_lightning.kernels.aft_forward import mixed_rows, states_of_keys
from papa_lightning.kernels.aft_tiles import running_states

#: Channels of the widest group whose keys a program sums.
_WIDEST = 128
#: Programs of the gradient of position biases that keep a GPU busy.
_PROGRAMS = 512


class _Call(NamedTuple):
    """Arguments of the operator that are no gradients; see :func:`aft`."""

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


class _Settings(NamedTuple):
    """How kernels run: tiles of ``size`` tokens by ``channels``, in so many warps, stages and registers (0: any)."""

    size: int
    channels: int
    warps: int
    stages: int
    registers: int
    precision: str


class _Plan(NamedTuple):
    """How a call is cut: chunks, of which rows see ``left`` before theirs and ``right`` behind, in blocks of channels.

    ``states`` is whether some chunk is out of sight of another. The band reaches from the offset ``first`` to ``last``.
    """

    settings: _Settings
    width: int
    blocks: int
    chunks: int
    left: int
    right: int
    first: int
    last: int
    kind: str
    states: bool


def _settings(call: _Call, reach: int) -> _Settings:
    """The same numbers for the same dtypes and sizes on every machine; ``reach`` is how far the band reaches."""
    dtypes = {call.value.dtype, call.key.dtype}
    if torch.float32 in dtypes and torch.get_float32_matmul_precision() == "highest":
        return _Settings(32, 32, 4, 1, 0, "ieee")
    precision = "bf16" if dtypes == {torch.bfloat16} else "tf32"
    return _Settings(64, 64, 8, 1, 0, precision) if reach > 64 else _Settings(32, 64, 8, 1, 128, precision)


def _plan(call: _Call) -> _Plan:
    """Cut a call."""
    length, width = call.value.shape[1], call.value.shape[2] // call.groups
    if call.weight is None:
        first, last = 0, -1
    elif call.first is None:
        first, last = -length, length
    else:
        first, last = call.first, call.first + call.weight.shape[-1] - 1
    last = min(last, 0) if call.causal else last
    found = _settings(call, max(-first, last))
    size = min(found.size, max(16, triton.next_power_of_2(length)))
    channels = max(16, triton.next_power_of_2(width))
    channels = channels if call.summed else min(found.channels, channels)
    chunks = triton.cdiv(length, size)
    left, right = (min(triton.cdiv(max(reach, 0), size), chunks - 1) for reach in (-first, last))
    if call.weight is None and not call.causal:
        left = -1  # no chunk is in sight of a row: all are before it or after it
    return _Plan(
        settings=found._replace(size=size, channels=channels),
        width=width,
        blocks=triton.cdiv(width, channels),
        chunks=chunks,
        left=left,
        right=right,
        first=first,
        last=last,
        kind="summed" if call.summed else "channels" if call.key.shape[2] == call.value.shape[2] else "shared",
        states=chunks > 1 + (left if call.causal else min(left, right)),
    )


def _common(call: _Call, plan: _Plan) -> dict[str, Any]:
    """Arguments that all kernels have."""
    _, length, total = call.value.shape
    found: dict[str, Any] = {
        "key": call.key,
        "key_scale": call.key_scale,
        "value": call.value,
        "mask": call.mask,
        "length": length,
        "width": plan.width,
        "total": total,
        "chunks": plan.chunks,
        "groups": call.groups,
        "blocks": plan.blocks,
        "key_b": call.key.stride(0),
        "key_t": call.key.stride(1),
        "value_b": call.value.stride(0),
        "value_t": call.value.stride(1),
        "mask_b": 0 if call.mask is None else call.mask.stride(0),
        "KIND": plan.kind,
        "SCALED": call.key_scale is not None,
        "MASKED": call.mask is not None,
        "L": plan.settings.size,
        "C": plan.settings.channels,
        "num_warps": plan.settings.warps,
        "num_stages": plan.settings.stages,
    }
    if plan.settings.registers and torch.version.hip is None:
        found["maxnreg"] = plan.settings.registers
    return found


def _biased(call: _Call, plan: _Plan) -> dict[str, Any]:
    """Arguments of the kernels that read position biases."""
    weight, shared = call.weight, call.weight is not None and call.weight.shape[1] == 1 and call.first is not None
    groups, rows, columns = (0, 0, 0) if weight is None else weight.stride()
    rows = 0 if shared else rows
    banded = weight is not None and call.first is not None
    return {
        "weight": weight,
        "weight_o": -plan.first * columns if banded else 0,
        "weight_g": groups,
        "weight_t": rows - columns if banded else rows,
        "weight_u": columns,
        "first": plan.first,
        "last": plan.last,
        "left": plan.left,
        "CAUSAL": call.causal,
        "PRECISION": plan.settings.precision,
    }


def _gated(call: _Call) -> dict[str, Any]:
    """Arguments of the kernels that read queries."""
    return {
        "query": call.query,
        "query_scale": call.query_scale,
        "query_shift": call.query_shift,
        "query_b": call.query.stride(0),
        "query_t": call.query.stride(1),
        "gate": call.gate,
    }


def _new_states(call: _Call, plan: _Plan, number: int = 3) -> Tensor:
    """Room for numbers of each chunk, (number, B, chunks, d)."""
    batch, _, total = call.value.shape
    return call.value.new_empty((number, batch, plan.chunks, total), dtype=torch.float32)


def _states(call: _Call, plan: _Plan, grid: tuple[int]) -> dict[str, Any]:
    """Running states of the keys, with what tells kernels about them."""
    states = _new_states(call, plan)
    if plan.states:
        states_of_keys[grid](**_common(call, plan), states=states, state_stride=states.stride(0))
    return {
        **_running(call, plan, states, True, not call.causal),
        "state_stride": states.stride(0),
        "right": plan.right,
        "WEIGHTED": call.weight is not None,
    }


def _running(call: _Call, plan: _Plan, states: Tensor, before: bool, after: bool) -> dict[str, Any]:
    """States of all chunks up to each one, and from each one on, if asked; ``states`` are overwritten."""
    found = {"before": states, "after": states}
    if plan.states:
        _, batch, chunks, total = states.shape
        grid = (batch, triton.cdiv(total, 32))
        if before:
            found["before"] = torch.empty_like(states) if after else states
            running_states[grid](states, found["before"], total, chunks, states.stride(0), False, N=16, C=32)
        if after:
            running_states[grid](states, states, total, chunks, states.stride(0), True, N=16, C=32)
    return {**found, "BEFORE": plan.states and before, "AFTER": plan.states and after}


def _mixed(call: _Call) -> Tensor:
    plan = _plan(call)
    grid = (call.value.shape[0] * plan.chunks * call.groups * plan.blocks,)
    out = torch.empty_like(call.value, memory_format=torch.contiguous_format)
    mixed_rows[grid](**_common(call, plan), **_biased(call, plan), **_gated(call), **_states(call, plan, grid), out=out)
    return out


def _gradients(call: _Call, grad: Tensor, out: Tensor) -> list[Tensor]:
    """Gradients of query, key, value, the three scales (3, d), and the position bias; empty without such an input."""
    plan = _plan(call)
    (batch, length, total), value = call.value.shape, call.value
    grid = (batch * plan.chunks * call.groups * plan.blocks,)
    common, biased, states = _common(call, plan), _biased(call, plan), _states(call, plan, grid)
    grad_query, grad_value, mean, grad_mean = (
        torch.empty_like(one, memory_format=torch.contiguous_format) for one in (call.query, value, value, value)
    )
    rows = {
        "mean": mean,
        "lse": torch.empty_like(mean, dtype=torch.float32),
        "grad_mean": grad_mean,
    }
    row_states, scales = _new_states(call, plan), _new_states(call, plan)
    gradients_of_rows[grid](
        **common,
        **biased,
        **_gated(call),
        **states,
        **rows,
        grad=grad,
        grad_b=grad.stride(0),
        grad_t=grad.stride(1),
        out=out,
        out_b=out.stride(0),
        out_t=out.stride(1),
        grad_query=grad_query,
        row_states=row_states,
        grad_gate=scales,
    )
    states |= _running(call, plan, row_states, not call.causal, True)
    if plan.kind == "shared":
        grad_key = value.new_empty((batch, length, call.groups * plan.blocks), dtype=torch.float32)
    else:
        grad_key = torch.empty_like(call.key, memory_format=torch.contiguous_format)
    gradients_of_keys[grid](
        **common,
        **biased,
        **states,
        **rows,
        grad_key=grad_key,
        grad_value=grad_value,
        grad_scale=scales[2],
        grad_key_b=grad_key.stride(0),
        grad_key_t=grad_key.stride(1),
    )
    if plan.kind == "shared":
        grad_key = grad_key.unflatten(2, (call.groups, plan.blocks)).sum(3).to(call.key.dtype)
    by_scale = value.new_empty(0) if call.key_scale is None else scales.flatten(1, 2).sum(1)
    return [grad_query, grad_key, grad_value, by_scale, _weight_gradient(call, plan, common, biased, rows)]


def _weight_gradient(
    call: _Call, plan: _Plan, common: dict[str, Any], biased: dict[str, Any], rows: dict[str, Tensor]
) -> Tensor:
    """The gradient of the position bias, in float32, summed over parts in their order."""
    weight = call.weight
    if weight is None:
        return call.value.new_empty(0)
    length, banded = call.value.shape[1], call.first is not None
    sight, items = plan.left + 1 + plan.right, call.value.shape[0] * plan.blocks
    pairs = plan.chunks * sight
    parts = min(items, triton.cdiv(_PROGRAMS, pairs * call.groups))
    part = triton.cdiv(items, parts)
    parts = triton.cdiv(items, part)
    columns = weight.shape[2]
    found = weight.new_zeros((parts, call.groups, length, columns), dtype=torch.float32)
    # Differences of sums over all sequences: the rounding of bfloat16 would be most of a small one.
    biased["PRECISION"] = "tf32" if plan.settings.precision == "bf16" else plan.settings.precision
    gradients_of_weights[(pairs * call.groups, parts)](
        **common,
        **biased,
        **rows,
        grad_weight=found,
        sight=sight,
        items=items,
        part=part,
        out_o=-plan.first if banded else 0,
        out_p=found.stride(0),
        out_g=found.stride(1),
        out_t=columns - 1 if banded else columns,
        out_u=1,
    )
    summed = found.sum(0) if parts > 1 else found[0]
    return summed.sum(1, keepdim=True) if banded and weight.shape[1] == 1 else summed


_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? query_scale, Tensor? query_shift, "
    "Tensor? key_scale, Tensor? weight, int? first, int groups, bool causal, bool summed, float gate"
)


@torch.library.custom_op("papa_lightning::aft", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor")
def _aft(*args: Any) -> Tensor:
    return _mixed(_prepared(_Call(*args)))


@torch.library.custom_op(
    "papa_lightning::aft_backward", mutates_args=(), schema=f"(Tensor grad, Tensor out, {_ARGUMENTS}) -> Tensor[]"
)
def _aft_backward(grad: Tensor, out: Tensor, *args: Any) -> list[Tensor]:
    return _gradients(_prepared(_Call(*args)), _dense_rows(grad), _dense_rows(out))


def _dense_rows(tensor: Tensor) -> Tensor:
    """A tensor whose channels lie side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _prepared(call: _Call) -> _Call:
    """The call with tensors as the kernels read them."""
    mask = None if call.mask is None else call.mask.bool().view(torch.uint8)
    return call._replace(
        query=_dense_rows(call.query), key=_dense_rows(call.key), value=_dense_rows(call.value), mask=mask
    )


@_aft.register_fake
def _(*args: Any) -> Tensor:
    return torch.empty_like(args[2], memory_format=torch.contiguous_format)


@_aft_backward.register_fake
def _(grad: Tensor, out: Tensor, *args: Any) -> list[Tensor]:
    call = _Call(*args)
    found = [torch.empty_like(one, memory_format=torch.contiguous_format) for one in call[:3]]
    scaled, weight = call.key_scale is not None, call.weight
    found.append(
        call.value.new_empty((3, call.value.shape[2]), dtype=torch.float32) if scaled else call.value.new_empty(0)
    )
    found.append(call.value.new_empty(0) if weight is None else weight.new_empty(weight.shape, dtype=torch.float32))
    return found


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    call = _Call(*inputs)
    ctx.save_for_backward(*call[:8], output)
    ctx.others = call[8:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, out = ctx.saved_tensors
    call = _Call(*tensors, *ctx.others)
    query, key, value, by_scale, weight = _aft_backward(grad, out, *call)
    scales = [None if one is None else by_scale[i].view(one.shape).to(one.dtype) for i, one in enumerate(call[4:7])]
    weight = None if call.weight is None else weight.to(call.weight.dtype)
    return query, key, value, None, *scales, weight, None, None, None, None, None


_aft.register_autograd(_backward, setup_context=_setup_context)


def aft(
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
        query: (B, T, d).
        key: (B, T, d), or (B, T, groups) with one key for the channels of each group.
        value: (B, T, d).
        mask: (B, T), true for a real token, or None.
        causal: Whether rows look at themselves and earlier keys only.
        groups: Number of groups of neighbouring channels, which share a position bias.
        weight: w, (groups, T, T); with ``first`` a band of it, (groups, T or 1, n), and w is 0 elsewhere. None: w is 0.
        first: Offset of the key that the first column of a band belongs to.
        affine: a, b and c, with d numbers each, of which c is for keys of d channels; None: a = c = 1 and b = 0.
        summed: Whether a group has the sum of the keys of its channels, times c, as its one key; with ``affine``.
        gate: g.

    Returns:
        (B, T, d) in the dtype of ``value``; rows without any key are 0.
    """
    scales = (None, None, None) if affine is None else affine
    if affine is not None and summed and value.shape[2] // groups > _WIDEST:
        key, summed = (key.float() * affine[2].float().flatten()).unflatten(2, (groups, -1)).sum(3), False
    if affine is not None and key.shape[2] != value.shape[2]:
        scales = (*affine[:2], affine[2].detach())  # not used again
    mixed: Tensor = _aft(query, key, value, mask, *scales, weight, first, groups, causal, summed, gate)
    return mixed
