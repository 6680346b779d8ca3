"""Plans and launches of the kernels of attention-free mixing."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from papa_lightning.kernels.aft.backward import gradients_of_keys, gradients_of_rows, gradients_of_weights
from papa_lightning.kernels.aft.call import Call
from papa_lightning.kernels.aft.forward import mixed_rows, states_of_keys
from papa_lightning.kernels.aft.scan_launches import launch_scan, launch_scan_gradients, launch_sums
from papa_lightning.kernels.aft.tiles import running_states
from papa_lightning.kernels.launch import takes_tf32

#: Programs of the gradient of position biases that keep a GPU busy.
_PROGRAMS = 512
#: Chunks whose states each program merges for itself; of more, running states are made first.
_MERGED = 64


class _Settings(NamedTuple):
    """How kernels run: tiles of ``size`` tokens by ``channels``, in so many warps, stages and registers (0: any)."""

    size: int
    channels: int
    warps: int
    stages: int
    registers: int
    precision: str


class _Plan(NamedTuple):
    """How calls of some sizes are cut; ``constants`` are arguments of all kernels, and ``biased`` those beside them.

    A row sees ``sight`` chunks, and the sums over all others are in their states, of which there are none if all are in
    sight. ``empty`` is the shape of three numbers for each chunk, and ``grid`` the programs of a kernel.
    """

    constants: dict[str, Any]
    biased: dict[str, Any]
    grid: tuple[int]
    empty: tuple[int, ...]
    sight: int
    kind: str
    states: bool
    scanned: bool


def _settings(key: torch.dtype, value: torch.dtype, reach: int) -> _Settings:
    """The same numbers for the same dtypes and sizes on every machine; ``reach`` is how far the band reaches."""
    if torch.float32 in (key, value) and not takes_tf32():
        return _Settings(32, 32, 4, 1, 0, "ieee")
    precision = "bf16" if key == value == torch.bfloat16 else "tf32"
    return _Settings(64, 64, 8, 1, 0, precision) if reach > 64 else _Settings(32, 64, 4, 1, 168, precision)


def _planned(call: Call) -> _Plan:
    """The plan of a call."""
    length, weight = call.value.shape[1], call.weight
    first, last = 0, -1
    if weight is not None:
        first, last = (-length, length) if call.first is None else (call.first, call.first + weight.shape[-1] - 1)
    last = min(last, 0) if call.causal else last
    settings = _settings(call.key.dtype, call.value.dtype, max(-first, last))
    return _plan(
        settings, call.value.shape, call.key.shape[2], call.groups, weight is not None, first, last, call.causal,
        call.summed,
    )  # fmt: skip


@lru_cache(maxsize=256)
def _plan(
    settings: _Settings,
    shape: tuple[int, int, int],
    keys: int,
    groups: int,
    weighted: bool,
    first: int,
    last: int,
    causal: bool,
    summed: bool,
) -> _Plan:
    """The plan of calls with these sizes."""
    batch, length, total = shape
    width = total // groups
    size = min(settings.size, max(16, triton.next_power_of_2(length)))
    channels = max(16, triton.next_power_of_2(width))
    channels = channels if summed else min(settings.channels, channels)
    chunks, blocks = triton.cdiv(length, size), triton.cdiv(width, channels)
    left, right = (min(triton.cdiv(max(reach, 0), size), chunks - 1) for reach in (-first, last))
    if not weighted and not causal:
        left = -1  # no chunk is in sight of a row: all are before it or after it
    kind = "summed" if summed else "channels" if keys == total else "shared"
    states = chunks > 1 + (left if causal else min(left, right))
    sizes = {"length": length, "width": width, "total": total, "chunks": chunks, "groups": groups, "blocks": blocks}
    how = {"KIND": kind, "L": size, "C": channels, "num_warps": settings.warps, "num_stages": settings.stages}
    if settings.registers and torch.version.hip is None:
        how["maxnreg"] = settings.registers
    biased = {"first": first, "last": last, "left": left, "CAUSAL": causal, "PRECISION": settings.precision}
    seen = {"right": right, "WEIGHTED": weighted, "SCANNED": chunks > _MERGED, "state_stride": batch * chunks * total}
    return _Plan(
        constants={**sizes, **how},
        biased={**biased, **seen},
        grid=(batch * chunks * groups * blocks,),
        empty=(3, batch, chunks, total),
        sight=left + 1 + right,
        kind=kind,
        states=states,
        scanned=chunks > _MERGED,
    )


def _keys(call: Call, plan: _Plan) -> dict[str, Any]:
    """Arguments of all kernels: keys and values."""
    key, value, mask = call.key, call.value, call.mask
    key_b, key_t, _ = key.stride()
    value_b, value_t, _ = value.stride()
    return {
        **plan.constants,
        "key": key,
        "key_scale": call.key_scale,
        "value": value,
        "mask": mask,
        "key_b": key_b,
        "key_t": key_t,
        "value_b": value_b,
        "value_t": value_t,
        "mask_b": 0 if mask is None else mask.stride(0),
        "SCALED": call.key_scale is not None,
        "MASKED": mask is not None,
    }


def _weights(call: Call, plan: _Plan) -> dict[str, Any]:
    """Arguments of the kernels that read position biases: the bias of a row and a key is at ``o + t row + u key``."""
    weight = call.weight
    if weight is None:
        return {"weight": None, "weight_o": 0, "weight_g": 0, "weight_t": 0, "weight_u": 0}
    groups, rows, columns = weight.stride()
    origin = 0
    if call.first is not None:
        origin = -call.first * columns
        rows = (0 if weight.shape[1] == 1 else rows) - columns
    return {"weight": weight, "weight_o": origin, "weight_g": groups, "weight_t": rows, "weight_u": columns}


def _queries(call: Call) -> dict[str, Any]:
    """Arguments of the kernels that read queries."""
    query_b, query_t, _ = call.query.stride()
    return {
        "query": call.query,
        "query_scale": call.query_scale,
        "query_shift": call.query_shift,
        "query_b": query_b,
        "query_t": query_t,
        "gate": call.gate,
    }


def _states(call: Call, plan: _Plan, keys: dict[str, Any]) -> dict[str, Any]:
    """The states of the chunks of keys, as the rows need them."""
    states = call.value.new_empty(plan.empty if plan.states else (0,), dtype=torch.float32)
    if plan.states and plan.kind == "channels":  # one warp a chunk, where nothing is exchanged
        launch_sums(call, states, plan.constants["L"])
    elif plan.states:
        few = {**keys, "num_warps": 2}
        states_of_keys[plan.grid](**few, states=states, state_stride=plan.biased["state_stride"])
    return _running(plan, states, before=True, after=not call.causal)


def _running(plan: _Plan, states: Tensor, before: bool, after: bool) -> dict[str, Any]:
    """States up to each chunk, and from each one on, if asked, where there are many chunks; overwrites ``states``."""
    found = {"before": states, "after": states, "BEFORE": plan.states and before, "AFTER": plan.states and after}
    if plan.states and plan.scanned:
        _, batch, chunks, total = states.shape
        grid, sizes = (batch, triton.cdiv(total, 32)), (total, chunks, states.stride(0))
        if before:
            found["before"] = torch.empty_like(states) if after else states
            running_states[grid](states, found["before"], *sizes, REVERSE=False, N=16, C=32)
        if after:
            running_states[grid](states, states, *sizes, REVERSE=True, N=16, C=32)
    return found


def scans(call: Call) -> bool:
    """Whether a call is causal AFT-simple, which has kernels of its own."""
    return call.causal and call.weight is None and not call.summed and call.key.shape[2] == call.value.shape[2]


def launch_mixing(call: Call) -> tuple[Tensor, Tensor]:
    """The output of a call, and what its gradients need besides, if anything."""
    with torch.cuda.device_of(call.value):
        if scans(call):
            return launch_scan(call)
        plan = _planned(call)
        keys = _keys(call, plan)
        out = torch.empty_like(call.value, memory_format=torch.contiguous_format)
        states = _states(call, plan, keys)
        mixed_rows[plan.grid](**keys, **plan.biased, **_weights(call, plan), **_queries(call), **states, out=out)
        return out, call.value.new_empty(0, dtype=torch.float32)


def launch_gradients(call: Call, grad: Tensor, out: Tensor, states: Tensor) -> list[Tensor]:
    """Gradients of query, key, value, the three scales (3, d), and the position bias; empty without such an input."""
    with torch.cuda.device_of(call.value):
        if scans(call):
            return [*launch_scan_gradients(call, grad, out, states), call.value.new_empty(0)]
        return _launch_tile_gradients(call, grad, out)


def _launch_tile_gradients(call: Call, grad: Tensor, out: Tensor) -> list[Tensor]:
    """The same for what is no scan."""
    plan, value = _planned(call), call.value
    keys, weights = _keys(call, plan), {**plan.biased, **_weights(call, plan)}
    grad_query, grad_value, mean, grad_mean = (
        torch.empty_like(one, memory_format=torch.contiguous_format) for one in (call.query, value, value, value)
    )
    rows = {"mean": mean, "lse": torch.empty_like(mean, dtype=torch.float32), "grad_mean": grad_mean}
    row_states, scales = (value.new_empty(plan.empty, dtype=torch.float32) for _ in range(2))
    grad_b, grad_t, _ = grad.stride()
    out_b, out_t, _ = out.stride()
    gradients_of_rows[plan.grid](
        **keys, **weights, **_queries(call), **_states(call, plan, keys), **rows, grad=grad, grad_b=grad_b,
        grad_t=grad_t, out=out, out_b=out_b, out_t=out_t, grad_query=grad_query, row_states=row_states,
        grad_gate=scales,
    )  # fmt: skip
    if plan.kind == "shared":  # a column for each block of channels
        columns = call.groups * plan.constants["blocks"]
        grad_key = value.new_empty((*value.shape[:2], columns), dtype=torch.float32)
    else:
        grad_key = torch.empty_like(call.key, memory_format=torch.contiguous_format)
    gradients_of_keys[plan.grid](
        **keys, **weights, **_running(plan, row_states, not call.causal, True), **rows, grad_key=grad_key,
        grad_value=grad_value, grad_scale=scales[2], grad_key_b=grad_key.stride(0), grad_key_t=grad_key.stride(1),
    )  # fmt: skip
    if plan.kind == "shared":
        grad_key = grad_key.unflatten(2, (call.groups, -1)).sum(3).to(call.key.dtype)
    by_scale = value.new_empty(0) if call.key_scale is None else scales.flatten(1, 2).sum(1)
    return [grad_query, grad_key, grad_value, by_scale, _weight_gradient(call, plan, {**keys, **weights, **rows})]


def _weight_gradient(call: Call, plan: _Plan, given: dict[str, Any]) -> Tensor:
    """The gradient of the position bias, in float32, summed over parts of sequences and channels in their order."""
    weight = call.weight
    if weight is None:
        return call.value.new_empty(0)
    (batch, length, _), banded, columns = call.value.shape, call.first is not None, weight.shape[2]
    items = batch * plan.constants["blocks"]
    pairs = plan.constants["chunks"] * plan.sight * call.groups
    part = triton.cdiv(items, min(items, triton.cdiv(_PROGRAMS, pairs)))
    parts = triton.cdiv(items, part)
    found = weight.new_zeros((parts, call.groups, length, columns), dtype=torch.float32)
    part_stride, group_stride, _, _ = found.stride()
    # Differences of sums over all sequences: the rounding of bfloat16 would be most of a small one.
    precision = given["PRECISION"].replace("bf16", "tf32")
    for name in ("right", "WEIGHTED", "SCANNED", "state_stride", "PRECISION"):
        del given[name]
    gradients_of_weights[(pairs, parts)](
        **given, PRECISION=precision, grad_weight=found, sight=plan.sight, items=items, part=part,
        out_o=-call.first if call.first is not None else 0, out_p=part_stride, out_g=group_stride,
        out_t=columns - 1 if banded else columns, out_u=1,
    )  # fmt: skip
    summed = found.sum(0) if parts > 1 else found[0]
    return summed.sum(1, keepdim=True) if banded and weight.shape[1] == 1 else summed
