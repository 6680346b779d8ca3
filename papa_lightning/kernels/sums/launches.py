"""Launches of the kernels of sums: tiles by shape and dtype, and how the sequences of a batch are shared out."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from papa_lightning.kernels.launch import precision

#: Most sequences whose probabilities are added in float32: the rounding is a few units of its last place.
SEQUENCES = 64
#: Most bytes of the sums of parts of a batch.
WORKSPACE = 48 * 2**20
#: Entries of the sums that a program adds parts to.
ENTRIES = 1024


class Blocks(NamedTuple):
    """Size of a tile in queries and keys, and how a GPU runs it."""

    queries: int
    keys: int
    warps: int
    stages: int

    def settings(self) -> dict[str, int]:
        """Arguments of a launch."""
        queries, keys, warps, stages = self
        return {"queries": queries, "keys": keys, "num_warps": warps, "num_stages": stages}


class Plan(NamedTuple):
    """How a batch of one shape is computed; made once, because it takes longer than a launch.

    Args:
        mixed: Shape of the mixed values.
        short: Whether one kernel mixes and adds.
        programs: Number of programs of the kernel that mixes.
        mixing: What they are compiled with.
        adding: What the programs that add, or do both, are compiled with.
        slots: Number of slots.
        tiles: Number of tiles of a head.
        parts: Number of programs that share the sequences of a tile.
        each: Number of sequences of each of them.
        launches: First sequence and number of programs of each launch that adds; empty for an empty batch.
        norms_at: Place of the sums of squares of parts in the workspace, behind the logarithms of the sums of rows.
        parts_at: Place of the sums of parts.
        work: Number of entries of the workspace.
    """

    mixed: tuple[int, ...]
    short: bool
    programs: int
    mixing: dict[str, Any]
    adding: dict[str, Any]
    slots: int
    tiles: int
    parts: int
    each: int
    launches: tuple[tuple[int, int], ...]
    norms_at: int
    parts_at: int
    work: int


@lru_cache(maxsize=1024)
def plan_batch(
    shape: tuple[int, int, int, int],
    value_size: int,
    slots: int | None,
    dtype: torch.dtype,
    biased: bool,
    device: torch.device,
) -> Plan:
    """The plan of a batch of queries (B, H, T, h); slots are None where a token's is its place."""
    batch, heads, length, size = shape
    row, own = _power(size) * dtype.itemsize, length if slots is None else slots
    widest = max(row, _power(value_size) * dtype.itemsize)
    # Exact products of wide float32 rows take as much shared memory as a bias does: more than 99 KB with more keys.
    crowded = biased or (dtype == torch.float32 and widest > 256)
    rows, tile, short = mixing_blocks(length, widest, crowded), adding_blocks(own, row, biased), False
    if slots is None and is_short(length, widest):
        tile, short = short_blocks(length), True
    tiles, entries = _tiles(own, tile), heads * own**2
    alone = batch <= SEQUENCES or heads * tiles >= _processors(device)  # one program a tile takes no third launch
    wanted = 1 if alone else max(-(-_processors(device) // max(1, heads * tiles)), -(-batch // SEQUENCES))
    parts = max(1, min(batch, wanted, WORKSPACE // max(1, 4 * entries)))
    each = max(1, min(SEQUENCES, -(-batch // parts)))
    norms_at = 0 if short else _aligned(batch * heads * length)
    parts_at = norms_at + (parts > 1) * _aligned(heads * tiles * parts)
    values = {"value_size": value_size, "value_width": _power(value_size)}
    common = {"size": size, "width": _power(size)}
    adding = {"even": own % tile.keys == 0, "shared": parts > 1, "stages": tile.stages, **(values if short else {})}
    empty = 0 in (*shape, value_size)
    starts = range(0, 0 if empty else batch, parts * each)
    return Plan(
        mixed=(batch, length, heads, value_size),
        short=short,
        programs=-(-length // rows.queries) * batch * heads,
        mixing={**common, **values, "even": length % rows.keys == 0, **rows.settings()},
        adding={**common, **adding, **tile.settings()},
        slots=own,
        tiles=tiles,
        parts=parts,
        each=each,
        launches=tuple((first, heads * tiles * min(parts, -(-(batch - first) // each))) for first in starts),
        norms_at=norms_at,
        parts_at=parts_at,
        work=parts_at + (parts > 1) * parts * entries,
    )


@torch.compiler.assume_constant_result  # torch.compile asks once, and does not trace it
def most_tiles(slots: int, size: int, dtype: torch.dtype) -> int:
    """The largest number of tiles of a head in batches of up to so many slots, for heads of a size and dtype."""
    return _most_tiles(slots, _power(size) * dtype.itemsize)


@cache
def _most_tiles(slots: int, row: int) -> int:
    lengths = {min(slots, length) for length in (slots, *_LENGTHS)}
    blocks = [(length, adding_blocks(length, row, biased)) for length in lengths for biased in (False, True)]
    blocks += [(length, short_blocks(length)) for length in lengths if is_short(length, row)]
    return max(_tiles(length, tile) for length, tile in blocks)


def _tiles(slots: int, blocks: Blocks) -> int:
    """Number of tiles of a head."""
    return -(-slots // blocks.queries) * -(-slots // blocks.keys)


def mixing_blocks(length: int, row: int, crowded: bool) -> Blocks:
    """Tiles of the mixing kernel by length and bytes of a row of queries, and whether shared memory is short."""
    if row <= 128 and not crowded:
        queries, keys, stages = 128, 64, 3
    else:
        queries, keys, stages = (64, 64 if row <= 256 else 32, 2) if row <= 512 else (32, 16, 1)
        keys = max(16, keys // 2) if crowded and row > 128 else keys
    whole = _power(length)
    return Blocks(min(queries, whole), min(keys, whole), 8 if min(queries, whole) == 128 else 4, stages)


def is_short(length: int, row: int) -> bool:
    """Whether one kernel mixes and adds, by length and bytes of a row of queries or values."""
    return length <= _LENGTHS[0] and row <= 128


def short_blocks(length: int) -> Blocks:
    """Tiles of the kernel that mixes and adds: of few queries, because a batch has few such tiles."""
    return Blocks(16, _power(length), 4, 2)


#: Lengths up to which small tiles, and middle ones, keep a GPU busy.
_LENGTHS = (128, 511)


def adding_blocks(slots: int, row: int, biased: bool) -> Blocks:
    """Tiles of the adding kernel by number of slots and bytes of a row of queries, and whether a bias is read."""
    whole, (small, middle) = _power(slots), _LENGTHS
    if slots <= small or row > 256:
        side = min(32, whole)
        return Blocks(side, side, 4, 3 if row <= 256 else 2 if row <= 512 else 1)
    if row > 128 or biased or slots <= middle:
        return Blocks(64, 64 if row <= 128 or not biased else 32, 4, 3 if row <= 128 and not biased else 2)
    return Blocks(128, 64, 4, 3)


def _processors(device: torch.device) -> int:
    """Number of multiprocessors of a device."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def exact_precision(query: Tensor) -> str:
    """How products are taken: of float32 as exactly as float32, unless torch's settings allow TF32."""
    found = precision(query)
    exact = query.dtype == torch.float32 and found == "ieee" and torch.version.hip is None
    return "tf32x3" if exact else found


def _aligned(number: int) -> int:
    """The next multiple of 64 entries."""
    return -(-number // 64) * 64


def _power(size: int) -> int:
    """The size of a block that holds a number of entries: a power of 2, of 16 or more."""
    return max(16, 1 << (size - 1).bit_length()) if size > 0 else 16
