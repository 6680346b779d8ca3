"""Plans and launches of the scans of causal AFT-simple."""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from papa_lightning.kernels.aft.call import Call, Sizes, new_output, new_rows, sizes
from papa_lightning.kernels.aft.scan import scan_key_gradients, scan_row_gradients, scan_rows, scan_sums
from papa_lightning.kernels.launches import Launch, aligned

#: Programs, of one warp each, that keep a GPU busy.
_PROGRAMS = 2048
#: Tokens of the shortest segment: its states cost as much as some rows.
_SHORTEST = 32
#: Channels of a program.
_CHANNELS = 64


class _Plan(NamedTuple):
    """Kernels of calls of some sizes, and the shape of the states of their segments."""

    states: tuple[int, ...]
    sums: Launch
    rows: Launch
    row_gradients: Launch
    key_gradients: Launch


@lru_cache(maxsize=256)
def plan(given: Sizes, size: int | None = None) -> _Plan:
    """The same for the same sizes on every machine; ``size`` is that of a segment, if it is given."""
    batch, length, total = given[:3]
    blocks = triton.cdiv(total, _CHANNELS)
    if size is None:
        wanted = triton.cdiv(_PROGRAMS, batch * blocks)
        size = max(_SHORTEST, 4 * triton.cdiv(length, 4 * wanted))
    segments = triton.cdiv(length, size)
    names = ("query_b", "query_t", "key_b", "key_t", "value_b", "value_t")
    numbers = {
        **dict(zip(names, given.strides, strict=True)),
        "length": length, "total": total, "segments": segments, "size": size, "blocks": blocks, "gate": given.gate,
        "state_stride": batch * segments * total, "mask_b": given.mask or 0, "SCALED": given.scale is not None,
        "MASKED": given.mask is not None, "C": _CHANNELS,
    }  # fmt: skip
    kernels = (scan_sums, scan_rows, scan_row_gradients, scan_key_gradients)
    grid, options = (batch * segments * blocks,), {"num_warps": 1, "num_stages": 1}
    return _Plan((batch, segments, total), *(Launch(kernel, grid, numbers, options) for kernel in kernels))


def _states(call: Call, cut: _Plan, even: bool) -> Tensor:
    """The states of all segments of keys."""
    states = call.value.new_empty((3, *cut.states), dtype=torch.float32)
    cut.sums(even, call.key, call.key_scale, call.value, call.mask, states)
    return states


def launch_scan(call: Call) -> Tensor:
    """The output of a call."""
    query, key, value, mask, query_scale, query_shift, key_scale = call[:7]
    cut, even = plan(sizes(call)), aligned(*call[:7])
    states, out = _states(call, cut, even), new_output(value)
    cut.rows(even, query, query_scale, query_shift, key, key_scale, value, mask, states, out)
    return out


def launch_scan_gradients(call: Call, grad: Tensor, out: Tensor) -> tuple[Tensor, ...]:
    """Gradients of query, key and value, and of the three scales (3, d), which are nothing without scales."""
    query, key, value, mask, query_scale, query_shift, key_scale = call[:7]
    cut, even = plan(sizes(call)), aligned(grad, *call[:7])
    states = _states(call, cut, even)
    grad_query, grad_key, grad_value, grad_mean = new_rows(query), new_rows(key), new_rows(value), new_rows(value)
    lse = torch.empty_like(grad_mean, dtype=torch.float32)
    row_states, scales = value.new_empty((2, 3, *cut.states), dtype=torch.float32).unbind(0)
    cut.row_gradients(
        even, query, query_scale, query_shift, key, key_scale, mask, states, out, grad, grad_query, lse, grad_mean,
        row_states, scales,
    )  # fmt: skip
    cut.key_gradients(
        even, key, key_scale, value, mask, row_states, out, grad, lse, grad_mean, grad_key, grad_value, scales
    )
    by_scale = value.new_empty(0) if key_scale is None else scales.sum((1, 2))
    return grad_query, grad_key, grad_value, by_scale
