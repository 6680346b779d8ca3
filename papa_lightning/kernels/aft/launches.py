"""Launches of the kernels of attention-free mixing."""

import torch
from torch import Tensor

from papa_lightning.kernels.aft.call import Call, channels, new_output, new_rows, prepared, sizes
from papa_lightning.kernels.aft.plans import Plan, plan
from papa_lightning.kernels.aft.scan_launches import launch_scan, launch_scan_gradients
from papa_lightning.kernels.launches import aligned


def scans(call: Call) -> bool:
    """Whether a call is causal AFT-simple, which has kernels of its own."""
    return call.causal and call.weight is None and not call.summed and channels(call.key) == channels(call.value)


def launch_mixing(call: Call) -> Tensor:
    """The output of a call."""
    if 0 in call.value.shape:
        return new_output(call.value)
    call = prepared(call)
    with torch.cuda.device_of(call.value):
        if scans(call):
            return launch_scan(call)
        query, key, value, mask, query_scale, query_shift, key_scale, weight = call[:8]
        own, even = plan(sizes(call)), aligned(*call[:8])
        before, after = _states(call, own, even)
        out = new_output(value)
        own.rows(even, query, query_scale, query_shift, key, key_scale, value, weight, mask, before, after, out)
        return out


def launch_gradients(call: Call, grad: Tensor, out: Tensor) -> tuple[Tensor, ...]:
    """Gradients of query, key, value, the three scales (3, d), and the position bias; empty without such an input."""
    if 0 in call.value.shape:
        return _no_gradients(call)
    call, grad, out = prepared(call), grad.contiguous(), out.contiguous()
    with torch.cuda.device_of(call.value):
        if scans(call):
            return *launch_scan_gradients(call, grad, out), call.value.new_empty(0)
        return _launch_tile_gradients(call, grad, out)


def _no_gradients(call: Call) -> tuple[Tensor, ...]:
    """The gradients of a batch without a token: zeros."""
    nothing, scales = call.value.new_empty(0), (3, channels(call.value))
    by_scale = nothing if call.key_scale is None else call.value.new_zeros(scales, dtype=torch.float32)
    by_bias = nothing if call.weight is None else torch.zeros_like(call.weight, dtype=torch.float32)
    return *(new_rows(one) for one in call[:3]), by_scale, by_bias


def _states(call: Call, own: Plan, even: bool) -> tuple[Tensor, Tensor]:
    """The states of the chunks of keys, as the rows need them."""
    if own.sums is None:
        return (call.value.new_empty(0, dtype=torch.float32),) * 2
    states = call.value.new_empty((3, *own.states), dtype=torch.float32)
    own.sums(even, call.key, call.key_scale, call.value, call.mask, states)
    return _running(own, states, before=True, after=not call.causal)


def _running(own: Plan, states: Tensor, before: bool, after: bool) -> tuple[Tensor, Tensor]:
    """States up to each chunk, and from each one on, if asked, where there are many chunks; overwrites ``states``."""
    up_to = states
    if own.before is not None and before:
        up_to = torch.empty_like(states) if after else states
        own.before(True, states, up_to)
    if own.after is not None and after:
        own.after(True, states, states)
    return up_to, states


def _launch_tile_gradients(call: Call, grad: Tensor, out: Tensor) -> tuple[Tensor, ...]:
    """The same for what is no scan."""
    query, key, value, mask, query_scale, query_shift, key_scale, weight = call[:8]
    own, even = plan(sizes(call)), aligned(grad, *call[:8])
    before, after = _states(call, own, even)
    grad_query, grad_value, grad_mean = new_rows(query), new_rows(value), new_rows(value)
    lse = torch.empty_like(grad_mean, dtype=torch.float32)
    row_states, scales = value.new_empty((2, 3, *own.states), dtype=torch.float32).unbind(0)
    own.row_gradients(
        even, query, query_scale, query_shift, key, key_scale, value, weight, mask, before, after, out, grad,
        grad_query, lse, grad_mean, row_states, scales,
    )  # fmt: skip
    if own.kind == "shared":  # a column for each block of channels
        grad_key = value.new_empty((value.shape[0], value.shape[-2], own.columns), dtype=torch.float32)
    else:
        grad_key = new_rows(key)
    found = None if own.parts is None else value.new_zeros(own.parts, dtype=torch.float32)
    before, after = _running(own, row_states, not call.causal, True)
    own.key_gradients(
        even, key, key_scale, value, weight, mask, out, grad, lse, grad_mean, before, after, grad_key, grad_value,
        scales[2], None if own.weights is not None else found,
    )  # fmt: skip
    if own.weights is not None:
        own.weights(even, key, key_scale, value, weight, mask, out, grad, lse, grad_mean, found)
    if own.kind == "shared":
        grad_key = grad_key.unflatten(2, (call.groups, -1)).sum(3).to(key.dtype)
    by_scale = value.new_empty(0) if key_scale is None else scales.sum((1, 2))
    return grad_query, grad_key, grad_value, by_scale, _summed(call, found)


def _summed(call: Call, parts: Tensor | None) -> Tensor:
    """The gradient of the position bias in float32, summed over its parts in their order."""
    if parts is None or call.weight is None:
        return call.value.new_empty(0)
    if call.first is not None and call.weight.shape[1] == 1:
        return parts.sum((0, 2)).unsqueeze(1)
    return parts.sum(0) if len(parts) > 1 else parts[0]
