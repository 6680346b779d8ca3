"""Parts of the kernels of attention-free mixing: tiles of keys and weights, and running sums of chunks.

A sequence is cut into chunks of some tokens. A *state* is what a chunk adds to the sums over all that lie out of sight:
for each channel a maximum ``top`` of logarithms, and two sums of ``2^(logarithm - top)`` times something. All
logarithms are to base 2.
"""

import triton
import triton.language as tl

#: Stands for minus infinity in running maxima, so that no difference of two of them is NaN.
LOWEST = tl.constexpr(-1e30)
#: Sums below this are taken again, exactly: terms that underflowed could be more than a rounding error of them.
SMALLEST = tl.constexpr(1e-25)
#: Products of exponentials above 2 to this are taken again, exactly, for the same reason.
LARGEST = tl.constexpr(60.0)
LOG2E = tl.constexpr(1.4426950408889634)
#: Sizes that differ from batch to batch: a kernel is not compiled anew for every one that divides by 16.
VARYING = (
    "length",
    "chunks",
    "first",
    "last",
    "left",
    "right",
    "mask_b",
    "weight_o",
    "out_o",
    "sight",
    "items",
    "part",
)


@triton.jit
def operand(tile, PRECISION: tl.constexpr):
    """A tile as products take it."""
    if PRECISION == "bf16":
        tile = tile.to(tl.bfloat16)
    return tile


@triton.jit
def dot(left, right, total, PRECISION: tl.constexpr):
    """``total + left @ right``, in float32, with operands in bfloat16, TF32 or float32."""
    if PRECISION == "bf16":
        total = tl.dot(left.to(tl.bfloat16), right.to(tl.bfloat16), total)
    else:
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def load_rows(pointer, stride_b, stride_t, batch, rows, channels, length, inside):
    """Rows of a tensor (B, T, d) as a tile (rows, channels) in float32; 0 outside."""
    pointers = pointer + tl.cast(batch, tl.int64) * stride_b + rows[:, None] * stride_t + channels[None, :]
    return tl.load(pointers, mask=(rows[:, None] < length) & inside[None, :], other=0.0).to(tl.float32)


@triton.jit
def load_allowed(mask, stride_b, batch, keys, length, MASKED: tl.constexpr):
    """Which keys are real tokens, (keys,)."""
    allowed = keys < length
    if MASKED:
        allowed = allowed & (tl.load(mask + tl.cast(batch, tl.int64) * stride_b + keys, mask=allowed, other=0) != 0)
    return allowed


@triton.jit
def load_keys(
    key, scale, stride_b, stride_t, batch, group, keys, channels, inside, length, allowed,
    KIND: tl.constexpr, SCALED: tl.constexpr, L: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Logarithms of the weights of keys, to base 2, a tile (keys, channels), minus infinity where not allowed."""
    if KIND == "shared":  # (B, T, groups)
        pointers = key + tl.cast(batch, tl.int64) * stride_b + keys * stride_t + group
        logs = tl.load(pointers, mask=keys < length, other=0.0).to(tl.float32)[:, None] * LOG2E
    else:
        logs = load_rows(key, stride_b, stride_t, batch, keys, channels, length, inside)
        if SCALED:
            logs = logs * (tl.load(scale + channels, mask=inside, other=0.0).to(tl.float32) * LOG2E)[None, :]
        else:
            logs = logs * LOG2E
        if KIND == "summed":
            logs = tl.sum(logs, 1)[:, None]
    return tl.where(allowed[:, None], tl.broadcast_to(logs, (L, C)), float("-inf"))


@triton.jit
def log_weights(
    weight, origin, stride_g, stride_t, stride_u, group, rows, keys, allowed, length, first, last,
    CAUSAL: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Position biases to base 2 of rows and keys, one of them (n, 1) and the other (1, n).

    They are 0 beside the band, and minus infinity where not allowed.
    """
    offset = keys - rows
    if CAUSAL:
        allowed = allowed & (offset <= 0)
    if WEIGHTED:
        banded = allowed & (rows < length) & (keys < length) & (offset >= first) & (offset <= last)
        pointers = weight + tl.cast(group, tl.int64) * stride_g + (origin + rows * stride_t + keys * stride_u)
        logs = tl.load(pointers, mask=banded, other=0.0).to(tl.float32) * LOG2E
    else:
        logs = tl.zeros(offset.shape, tl.float32)
    return tl.where(allowed, logs, float("-inf"))


@triton.jit
def store_state(states, stride, place, channels, inside, logs, first, second):
    """Write the state of a chunk from tiles: ``top``, and the sums of ``2^(logs - top)`` times two factors."""
    top = tl.maximum(tl.max(logs, 0), LOWEST)
    scaled = tl.exp2(logs - top[None, :])
    pointers = states + place + channels
    tl.store(pointers, top, mask=inside)
    tl.store(pointers + stride, tl.sum(scaled * first, 0), mask=inside)
    tl.store(pointers + 2 * stride, tl.sum(scaled * second, 0), mask=inside)


@triton.jit
def merge(top, first, second, other_top, other_first, other_second):
    """The state of two parts of a sequence, from the states of both."""
    higher = tl.maximum(top, other_top)
    own = tl.exp2(top - higher)
    other = tl.exp2(other_top - higher)
    return higher, first * own + other_first * other, second * own + other_second * other


@triton.jit(do_not_specialize=VARYING)
def running_states(states, merged, total, chunks, stride, REVERSE: tl.constexpr, N: tl.constexpr, C: tl.constexpr):
    """States of all chunks up to each one, (3, B, chunks, d); in reverse: from each one on."""
    channels = tl.program_id(1) * C + tl.arange(0, C)
    inside = channels < total
    place = tl.program_id(0) * chunks * total
    before = tl.full((C,), LOWEST, tl.float32)
    first_before = tl.zeros((C,), tl.float32)
    second_before = tl.zeros((C,), tl.float32)
    for start in range(0, chunks, N):
        order = start + tl.arange(0, N)
        chunk = order
        if REVERSE:
            chunk = chunks - 1 - order
        used = (order < chunks)[:, None] & inside[None, :]
        offsets = place + chunk[:, None] * total + channels[None, :]
        top = tl.load(states + offsets, mask=used, other=LOWEST)
        first = tl.load(states + stride + offsets, mask=used, other=0.0)
        second = tl.load(states + 2 * stride + offsets, mask=used, other=0.0)
        top, first, second = tl.associative_scan((top, first, second), 0, merge)
        top, first, second = merge(top, first, second, before[None, :], first_before[None, :], second_before[None, :])
        tl.store(merged + offsets, top, mask=used)
        tl.store(merged + stride + offsets, first, mask=used)
        tl.store(merged + 2 * stride + offsets, second, mask=used)
        last = (tl.arange(0, N) == N - 1)[:, None]
        before = tl.max(tl.where(last, top, LOWEST), 0)
        first_before = tl.sum(tl.where(last, first, 0.0), 0)
        second_before = tl.sum(tl.where(last, second, 0.0), 0)


@triton.jit
def load_state(merged, stride, place, width, chunk, chunks, channels, inside):
    """The state up to a chunk, or from it on; none where there is no such chunk."""
    places = chunk + tl.zeros_like(channels)
    used = inside & (places >= 0) & (places < chunks)
    pointers = merged + place + places * width + channels
    top = tl.load(pointers, mask=used, other=LOWEST)
    return top, tl.load(pointers + stride, mask=used, other=0.0), tl.load(pointers + 2 * stride, mask=used, other=0.0)


@triton.jit
def state_out_of_sight(
    before, after, stride, place, width, begin, end, chunks, channels, inside,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, SCANNED: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The state of the chunks before the number ``begin``, and from ``end`` on, if asked.

    It is read from running states in both directions if ``SCANNED``, else merged from the states of the chunks.
    """
    top = tl.full((C,), LOWEST, tl.float32)
    first = tl.zeros((C,), tl.float32)
    second = tl.zeros((C,), tl.float32)
    if SCANNED:
        if BEFORE:
            top, first, second = load_state(before, stride, place, width, begin - 1, chunks, channels, inside)
        if AFTER:
            other, other_first, other_second = load_state(after, stride, place, width, end, chunks, channels, inside)
            top, first, second = merge(top, first, second, other, other_first, other_second)
    else:
        start = begin * 0
        stop = begin
        if AFTER:
            stop = chunks + begin * 0
            if not BEFORE:
                start = end
        if not (BEFORE or AFTER):
            stop = start
        for start_of_16 in range(start, stop, 16):
            chunk = start_of_16 + tl.arange(0, 16)
            used = ((chunk < stop) & ((chunk < begin) | (chunk >= end)))[:, None] & inside[None, :]
            pointers = before + place + chunk[:, None] * width + channels[None, :]
            tops = tl.load(pointers, mask=used, other=LOWEST)
            higher = tl.maximum(top, tl.max(tops, 0))
            scaled = tl.exp2(tops - higher[None, :])
            lowered = tl.exp2(top - higher)
            first = first * lowered + tl.sum(scaled * tl.load(pointers + stride, mask=used, other=0.0), 0)
            second = second * lowered + tl.sum(scaled * tl.load(pointers + 2 * stride, mask=used, other=0.0), 0)
            top = higher
    return top, first, second
