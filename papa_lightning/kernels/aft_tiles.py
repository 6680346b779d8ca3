"""Parts of the kernels of attention-free mixing: tiles of keys and weights, and running sums of chunks.

A sequence is cut into chunks of some tokens. A *state* is what a chunk adds to the sums over all that lie out of sight:
for each channel a maximum ``top`` of logarithms, and two sums of ``exp(logarithm - top)`` times something.
"""

import triton
import triton.language as tl

#: Stands for minus infinity in running maxima, so that no difference of two of them is NaN.
LOWEST = tl.constexpr(-1e30)
#: Sums below this are taken again, exactly: terms that underflowed could be more than a rounding error of them.
SMALLEST = tl.constexpr(1e-25)
#: Products of exponentials above ``exp`` of this are taken again, exactly, for the same reason.
LARGEST = tl.constexpr(40.0)
#: Sizes that differ from batch to batch: a kernel is not compiled anew for every one that divides by 16.
VARYING = ("length", "chunks", "first", "last", "left", "right", "mask_b", "weight_o", "out_o", "sight", "items", "part")


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
    """Logarithms of the weights of keys, a tile (keys, channels), minus infinity where not allowed."""
    if KIND == "shared":  # (B, T, groups)
        pointers = key + tl.cast(batch, tl.int64) * stride_b + keys * stride_t + group
        logs = tl.load(pointers, mask=keys < length, other=0.0).to(tl.float32)[:, None]
    else:
        logs = load_rows(key, stride_b, stride_t, batch, keys, channels, length, inside)
        if SCALED:
            logs = logs * tl.load(scale + channels, mask=inside, other=0.0).to(tl.float32)[None, :]
        if KIND == "summed":
            logs = tl.sum(logs, 1)[:, None]
    return tl.where(allowed[:, None], tl.broadcast_to(logs, (L, C)), float("-inf"))


@triton.jit
def log_weights(
    weight, origin, stride_g, stride_t, stride_u, group, rows, keys, allowed, length, first, last,
    CAUSAL: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Position biases of rows and keys, one (n, 1) and the other (1, n): 0 beside the band, minus infinity if hidden."""
    offset = keys - rows
    if CAUSAL:
        allowed = allowed & (offset <= 0)
    if WEIGHTED:
        banded = allowed & (rows < length) & (keys < length) & (offset >= first) & (offset <= last)
        pointers = weight + tl.cast(group, tl.int64) * stride_g + (origin + rows * stride_t + keys * stride_u)
        logs = tl.load(pointers, mask=banded, other=0.0).to(tl.float32)
    else:
        logs = tl.zeros(offset.shape, tl.float32)
    return tl.where(allowed, logs, float("-inf"))


@triton.jit
def store_state(states, stride, place, channels, inside, logs, first, second):
    """Write the state of a chunk from tiles: ``top``, and the sums of ``exp(logs - top)`` times two factors."""
    top = tl.maximum(tl.max(logs, 0), LOWEST)
    scaled = tl.exp(logs - top[None, :])
    pointers = states + place + channels
    tl.store(pointers, top, mask=inside)
    tl.store(pointers + stride, tl.sum(scaled * first, 0), mask=inside)
    tl.store(pointers + 2 * stride, tl.sum(scaled * second, 0), mask=inside)


@triton.jit
def merged_states(
    states, stride, place, width, channels, inside, before, after, chunks, STATES: tl.constexpr, C: tl.constexpr
):
    """The state of all chunks before the number ``before``, and from the number ``after`` on."""
    top = tl.full((C,), LOWEST, tl.float32)
    first = tl.zeros((C,), tl.float32)
    second = tl.zeros((C,), tl.float32)
    if STATES:
        begin = tl.where(before > 0, 0, after)
        end = tl.where(after < chunks, chunks, before)
        for start in range(begin, end, 16):
            chunk = start + tl.arange(0, 16)
            used = (chunk < end) & ((chunk < before) | (chunk >= after))
            used = used[:, None] & inside[None, :]
            pointers = states + place + chunk[:, None] * width + channels[None, :]
            tops = tl.load(pointers, mask=used, other=LOWEST)
            higher = tl.maximum(top, tl.max(tops, 0))
            scaled = tl.exp(tops - higher[None, :])
            lowered = tl.exp(top - higher)
            first = first * lowered + tl.sum(scaled * tl.load(pointers + stride, mask=used, other=0.0), 0)
            second = second * lowered + tl.sum(scaled * tl.load(pointers + 2 * stride, mask=used, other=0.0), 0)
            top = higher
    return top, first, second
