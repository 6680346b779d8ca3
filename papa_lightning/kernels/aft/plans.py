"""Plans of the kernels of attention-free mixing that work on tiles."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton

from papa_lightning.kernels.aft import scan_launches
from papa_lightning.kernels.aft.backward import gradients_of_keys, gradients_of_rows, gradients_of_weights
from papa_lightning.kernels.aft.call import Sizes
from papa_lightning.kernels.aft.forward import mixed_rows, states_of_keys
from papa_lightning.kernels.aft.tiles import running_states
from papa_lightning.kernels.launches import Launch

#: Programs of the gradient of position biases that keep a GPU busy.
_PROGRAMS = 512
#: Chunks whose states each program merges for itself; of more, running states are made first.
_MERGED = 64


#: Columns of the longest band whose gradient the keys sum: as large for each sequence as its values are.
_SHORT = 64


class Settings(NamedTuple):
    """How kernels run: tiles of ``size`` tokens by ``channels``; rows see ``keys``, and keys see ``rows`` at a time.

    In so many warps, stages and registers (0: any).
    """

    size: int
    keys: int
    rows: int
    channels: int
    warps: int
    stages: int
    registers: int
    precision: str


class Plan(NamedTuple):
    """Kernels of calls of some sizes.

    ``states`` is the shape of a number for each channel and chunk. ``before`` and ``after`` sum states up to each
    chunk, and from it on, where there are many. ``parts`` is the shape of the gradients of position biases before
    they are summed; the kernel ``weights`` makes these if it is there, else that of keys.
    """

    kind: str
    states: tuple[int, int, int]
    sums: Launch | None
    before: Launch | None
    after: Launch | None
    rows: Launch
    row_gradients: Launch
    key_gradients: Launch
    weights: Launch | None
    columns: int
    parts: tuple[int, int, int, int] | None


def settings(exact: bool, half: bool, reach: int) -> Settings:
    """The same numbers on every machine for products in float32 (``exact``), bfloat16 (``half``), else TF32.

    ``reach`` is how far the band reaches.
    """
    if exact:
        return Settings(32, 32, 32, 32, 4, 1, 0, "ieee")
    precision = "bf16" if half else "tf32"
    return (
        Settings(64, 64, 64, 64, 8, 1, 0, precision) if reach > 64 else Settings(32, 64, 32, 64, 4, 1, 168, precision)
    )


def reached(given: Sizes) -> tuple[int, int]:
    """Offsets of the first and the last key of the band; the last is before the first where there is none."""
    first, last = 0, -1
    if given.bias is not None:
        first, last = -given.length, given.length
        if given.first is not None:
            first, last = given.first, given.first + given.bias[0][2] - 1
    return first, min(last, 0) if given.causal else last


class _Cut(NamedTuple):
    """How sequences are cut: into ``chunks``, of which a row sees ``left`` before its own, and ``right`` behind it."""

    size: int
    channels: int
    chunks: int
    blocks: int
    left: int
    right: int

    @property
    def sight(self) -> int:
        """Number of chunks that a row sees."""
        return self.left + 1 + self.right


def _cut(given: Sizes, how: Settings, first: int, last: int) -> _Cut:
    width = given.total // given.groups
    size = min(how.size, max(16, triton.next_power_of_2(given.length)))
    channels = max(16, triton.next_power_of_2(width))
    channels = channels if given.summed else min(how.channels, channels)
    chunks = triton.cdiv(given.length, size)
    left, right = (min(triton.cdiv(max(reach, 0), size), chunks - 1) for reach in (-first, last))
    if given.bias is None and not given.causal:
        left = -1  # no chunk is in sight of a row: all are before it or after it
    return _Cut(size, channels, chunks, triton.cdiv(width, channels), left, right)


def _strides(given: Sizes) -> dict[str, int]:
    """Strides of the tensors of a call; the bias of a row and a key is at ``o + t row + u key``."""
    names = ("query_b", "query_t", "key_b", "key_t", "value_b", "value_t")
    found = {**dict(zip(names, given.strides, strict=True)), "mask_b": given.mask or 0}
    if given.bias is None:
        return {**found, "weight_o": 0, "weight_g": 0, "weight_t": 0, "weight_u": 0}
    shape, (groups, rows, columns), _ = given.bias
    origin = 0
    if given.first is not None:
        origin = -given.first * columns
        rows = (0 if shape[1] == 1 else rows) - columns
    return {**found, "weight_o": origin, "weight_g": groups, "weight_t": rows, "weight_u": columns}


def _numbers(given: Sizes, how: Settings, cut: _Cut, first: int, last: int, states: bool) -> dict[str, Any]:
    """Arguments of all kernels by name."""
    kind = "summed" if given.summed else "channels" if given.keys == given.total else "shared"
    return {
        **_strides(given),
        "length": given.length, "width": given.total // given.groups, "total": given.total, "chunks": cut.chunks,
        "groups": given.groups, "blocks": cut.blocks, "first": first, "last": last, "left": cut.left,
        "right": cut.right, "gate": given.gate, "state_stride": given.batch * cut.chunks * given.total, "KIND": kind,
        "SCALED": given.scale is not None, "MASKED": given.mask is not None, "CAUSAL": given.causal,
        "WEIGHTED": given.bias is not None, "BEFORE": states, "AFTER": states and not given.causal,
        "SCANNED": cut.chunks > _MERGED, "PRECISION": how.precision, "L": cut.size, "N": how.keys, "C": cut.channels,
    }  # fmt: skip


def _running(given: Sizes, cut: _Cut, states: bool) -> tuple[Launch | None, Launch | None]:
    """Kernels that sum states up to each chunk, and from each one on."""
    if not states or cut.chunks <= _MERGED:
        return None, None
    sizes = {"total": given.total, "chunks": cut.chunks, "stride": given.batch * cut.chunks * given.total}
    grid = (given.batch, triton.cdiv(given.total, 32))
    before, after = (
        Launch(running_states, grid, {**sizes, "REVERSE": way, "N": 16, "C": 32}, {}) for way in (False, True)
    )
    return before, after


@lru_cache(maxsize=256)
def plan(given: Sizes) -> Plan:
    """The plan of calls with these sizes."""
    first, last = reached(given)
    how = settings(given.exact, set(given.dtypes[1:]) == {torch.bfloat16}, max(-first, last))
    cut = _cut(given, how, first, last)
    states = cut.chunks > 1 + (cut.left if given.causal else min(cut.left, cut.right))
    numbers = _numbers(given, how, cut, first, last, states)
    options = {"num_warps": how.warps, "num_stages": how.stages}
    if how.registers and torch.version.hip is None:
        options["maxnreg"] = how.registers
    grid = (given.batch * cut.chunks * given.groups * cut.blocks,)
    sums = None
    if states and numbers["KIND"] == "channels":  # one warp a chunk, where nothing is exchanged
        sums = scan_launches.plan(given, cut.size).sums
    elif states:
        sums = Launch(states_of_keys, grid, numbers, {**options, "num_warps": 2})
    columns = given.groups * cut.blocks
    numbers |= {"grad_key_b": given.length * columns, "grad_key_t": columns}
    numbers, parts, weights = _weights(given, cut, numbers, options)
    before, after = _running(given, cut, states)
    keys = {**numbers, "N": how.rows, "BEFORE": states and not given.causal, "AFTER": states}
    return Plan(
        numbers["KIND"], (given.batch, cut.chunks, given.total), sums, before, after,
        Launch(mixed_rows, grid, numbers, options), Launch(gradients_of_rows, grid, numbers, options),
        Launch(gradients_of_keys, grid, keys, options), weights, columns, parts,
    )  # fmt: skip


def _weights(
    given: Sizes, cut: _Cut, numbers: dict[str, Any], options: dict[str, int]
) -> tuple[dict[str, Any], tuple[int, int, int, int] | None, Launch | None]:
    """Arguments that say where gradients of position biases are, their shape by parts, and their kernel.

    There is none where keys sum them, by parts of a sequence and a block of channels each.
    """
    if given.bias is None:
        places = dict.fromkeys(("out_o", "out_p", "out_g", "out_t", "out_u"), 0)
        return {**numbers, **places, "FUSED": False}, None, None
    columns, items, pairs = given.bias[0][2], given.batch * cut.blocks, cut.chunks * cut.sight * given.groups
    fused = given.first is not None and columns <= _SHORT
    part = 1 if fused else triton.cdiv(items, min(items, triton.cdiv(_PROGRAMS, pairs)))
    shape = (triton.cdiv(items, part), given.groups, given.length, columns)
    numbers = {
        **numbers, "FUSED": fused, "out_o": -(given.first or 0), "out_p": given.groups * given.length * columns,
        "out_g": given.length * columns, "out_t": columns if given.first is None else columns - 1, "out_u": 1,
    }  # fmt: skip
    if fused:
        return numbers, shape, None
    # Differences of sums over all sequences: the rounding of bfloat16 would be most of a small one.
    precise = {"PRECISION": numbers["PRECISION"].replace("bf16", "tf32")}
    own = {**numbers, **precise, "sight": cut.sight, "items": items, "part": part}
    return numbers, shape, Launch(gradients_of_weights, (pairs, shape[0]), own, options)
