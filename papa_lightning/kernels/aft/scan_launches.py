"""Plans and launches of the scans of causal AFT-simple."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from papa_lightning.kernels.aft.call import Call
from papa_lightning.kernels.aft.scan import scan_key_gradients, scan_row_gradients, scan_rows, scan_sums

#: Programs, of one warp each, that keep a GPU busy.
_PROGRAMS = 2048
#: Tokens of the shortest segment: its states cost as much as some rows.
_SHORTEST = 32
#: Channels of a program.
_CHANNELS = 64


class _Plan(NamedTuple):
    """How calls of some sizes are cut; ``constants`` are arguments of all kernels."""

    constants: dict[str, Any]
    grid: tuple[int]
    states: tuple[int, ...]


@lru_cache(maxsize=256)
def _plan(batch: int, length: int, total: int, size: int | None = None) -> _Plan:
    """The same for the same sizes on every machine; ``size`` is that of a segment, if it is given."""
    blocks = triton.cdiv(total, _CHANNELS)
    if size is None:
        wanted = triton.cdiv(_PROGRAMS, batch * blocks)
        size = max(_SHORTEST, 4 * triton.cdiv(length, 4 * wanted))
    segments = triton.cdiv(length, size)
    sizes = {"length": length, "total": total, "segments": segments, "size": size, "blocks": blocks}
    constants = {**sizes, "state_stride": batch * segments * total, "C": _CHANNELS, "num_warps": 1, "num_stages": 1}
    return _Plan(constants, (batch * segments * blocks,), (3, batch, segments, total))


def _given(call: Call, plan: _Plan) -> dict[str, Any]:
    """Arguments of all kernels: keys."""
    key_b, key_t, _ = call.key.stride()
    return {
        **plan.constants,
        "key": call.key,
        "key_scale": call.key_scale,
        "mask": call.mask,
        "key_b": key_b,
        "key_t": key_t,
        "mask_b": 0 if call.mask is None else call.mask.stride(0),
        "SCALED": call.key_scale is not None,
        "MASKED": call.mask is not None,
    }


def _values(call: Call) -> dict[str, Any]:
    """Arguments of the kernels that read values."""
    value_b, value_t, _ = call.value.stride()
    return {"value": call.value, "value_b": value_b, "value_t": value_t}


def _queries(call: Call) -> dict[str, Any]:
    """Arguments of the kernels that read queries."""
    query_b, query_t, _ = call.query.stride()
    scales = {"query_scale": call.query_scale, "query_shift": call.query_shift}
    return {"query": call.query, "query_b": query_b, "query_t": query_t, "gate": call.gate, **scales}


def launch_sums(call: Call, states: Tensor, size: int) -> None:
    """Write the states of segments of some tokens, a multiple of 4."""
    plan = _plan(*call.value.shape, size)
    scan_sums[plan.grid](**_given(call, plan), **_values(call), states=states)


def launch_scan(call: Call) -> tuple[Tensor, Tensor]:
    """The output of a call, and the states of its segments, which the gradients need."""
    plan = _plan(*call.value.shape)
    given, values = _given(call, plan), _values(call)
    states = call.value.new_empty(plan.states, dtype=torch.float32)
    out = torch.empty_like(call.value, memory_format=torch.contiguous_format)
    scan_sums[plan.grid](**given, **values, states=states)
    scan_rows[plan.grid](**given, **values, **_queries(call), states=states, out=out)
    return out, states


def launch_scan_gradients(call: Call, grad: Tensor, out: Tensor, states: Tensor) -> tuple[Tensor, ...]:
    """Gradients of query, key and value, and of the three scales (3, d), which are nothing without scales.

    States that are empty are made again.
    """
    plan, value = _plan(*call.value.shape), call.value
    given = _given(call, plan)
    grad_query, grad_key, grad_value, grad_mean = (
        torch.empty_like(one, memory_format=torch.contiguous_format) for one in (call.query, call.key, value, value)
    )
    if not states.numel():
        states = value.new_empty(plan.states, dtype=torch.float32)
        launch_sums(call, states, plan.constants["size"])
    lse = torch.empty_like(grad_mean, dtype=torch.float32)
    row_states, scales = (torch.empty_like(states) for _ in range(2))
    (grad_b, grad_t, _), (out_b, out_t, _) = grad.stride(), out.stride()
    given |= {"grad": grad, "grad_b": grad_b, "grad_t": grad_t, "out": out, "out_b": out_b, "out_t": out_t}
    given |= {"lse": lse, "grad_mean": grad_mean, "row_states": row_states, "grad_scales": scales}
    scan_row_gradients[plan.grid](**given, **_queries(call), states=states, grad_query=grad_query)
    scan_key_gradients[plan.grid](**given, **_values(call), grad_key=grad_key, grad_value=grad_value)
    by_scale = value.new_empty(0) if call.key_scale is None else scales.flatten(1, 2).sum(1)
    return grad_query, grad_key, grad_value, by_scale
