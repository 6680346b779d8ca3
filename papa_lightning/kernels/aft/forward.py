"""Kernels of attention-free mixing, forward: states of chunks of keys, then rows.

    mean[t, c] = sum_u exp(w[t, u] + k[u, c]) v[u, c] / sum_u exp(w[t, u] + k[u, c])
    out = sigmoid(a q + b) gate mean

A row sees the keys of some neighbouring chunks as products of matrices ``exp(w - maximum of the row)`` and ``exp(k -
maximum of the channel)``, whose maxima run along as those of flash attention do. All farther keys have w = 0: the
states of their chunks are enough. Where the largest w and the largest k are so far from each other that a sum
underflows, the program takes its rows again, key by key with a maximum for each row and channel.
"""

import triton
import triton.language as tl

from papa_lightning.kernels.aft.tiles import (
    LOWEST,
    SMALLEST,
    VARYING,
    dot,
    load_allowed,
    load_keys,
    load_rows,
    log_weights,
    state_out_of_sight,
    store_state,
)


@triton.jit
def place_of(chunks, groups, blocks, width, C: tl.constexpr):
    """What a program works on: sequence, chunk, group, channels (C,), and which of them exist."""
    # Programs that run together read whole rows: channels come first.
    row = tl.program_id(0) // (groups * blocks)
    block = tl.program_id(0) % (groups * blocks)
    own = (block % blocks) * C + tl.arange(0, C)
    group = block // blocks
    return row // chunks, row % chunks, group, group * width + own, own < width


@triton.jit(do_not_specialize=VARYING)
def states_of_keys(
    key, key_scale, value, mask, states,
    length, width, total, chunks, groups, blocks, state_stride,
    key_b, key_t, value_b, value_t, mask_b,
    KIND: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr, L: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """States (3, B, chunks, d) of the keys: a maximum, the sum of their weights, and that of weighted values."""
    batch, chunk, group, channels, inside = place_of(chunks, groups, blocks, width, C)
    keys = chunk * L + tl.arange(0, L)
    allowed = load_allowed(mask, mask_b, batch, keys, length, MASKED)
    logs = load_keys(
        key, key_scale, key_b, key_t, batch, group, keys, channels, inside, length, allowed, KIND, SCALED, L, C
    )
    values = load_rows(value, value_b, value_t, batch, keys, channels, length, inside)
    values = tl.where(allowed[:, None], values, 0.0)
    place = (batch * chunks + chunk) * total
    store_state(states, state_stride, place, channels, inside, logs, 1.0, values)


@triton.jit
def exact_rows(
    key, key_scale, value, weight, mask,
    top, denominator, numerator, batch, group, rows, channels, inside, begin, end, length, first, last,
    key_b, key_t, value_b, value_t, weight_o, weight_g, weight_t, weight_u, mask_b,
    KIND: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr, WEIGHTED: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Sums of rows as :func:`sums_of_rows`, key by key, with a scale for each row and channel."""
    for position in range(begin, end):
        one = position + tl.arange(0, 1)
        allowed = load_allowed(mask, mask_b, batch, one, length, MASKED)
        logs = load_keys(
            key, key_scale, key_b, key_t, batch, group, one, channels, inside, length, allowed, KIND, SCALED, 1, C
        )
        values = load_rows(value, value_b, value_t, batch, one, channels, length, inside)
        values = tl.where(allowed[:, None], values, 0.0)
        logs += log_weights(
            weight, weight_o, weight_g, weight_t, weight_u, group, rows[:, None], one[None, :], allowed[None, :],
            length, first, last, CAUSAL, WEIGHTED,
        )  # fmt: skip
        higher = tl.maximum(top, logs)
        weights = tl.exp2(logs - higher)
        lowered = tl.exp2(top - higher)
        denominator = denominator * lowered + weights
        numerator = numerator * lowered + weights * values
        top = higher
    return top, denominator, numerator


@triton.jit
def sums_of_rows(
    key, key_scale, value, weight, mask, before, after,
    batch, chunk, group, channels, inside, left, right, length, total, chunks, state_stride, first, last,
    key_b, key_t, value_b, value_t, weight_o, weight_g, weight_t, weight_u, mask_b,
    KIND: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr, WEIGHTED: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, SCANNED: tl.constexpr, MEANS: tl.constexpr, PRECISION: tl.constexpr,
    L: tl.constexpr, N: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """A scale (L, C), and denominators and, if ``MEANS``, numerators of the means of rows, times 2 to its power."""
    rows = chunk * L + tl.arange(0, L)
    begin = tl.maximum(chunk - left, 0)
    end = tl.minimum(chunk + right + 1, chunks)
    top, mass, sums = state_out_of_sight(
        before, after, state_stride, batch * chunks * total, total, begin, end, chunks, channels, inside,
        BEFORE, AFTER, SCANNED, C,
    )  # fmt: skip
    level = tl.zeros((L,), tl.float32) + tl.where(tl.max(top, 0) > 0.5 * LOWEST, 0.0, LOWEST)
    state_top = top
    denominator = tl.zeros((L, C), tl.float32) + mass[None, :]
    numerator = tl.zeros((L, C), tl.float32) + sums[None, :]
    stop = tl.minimum(end * L, length)
    for start in range(begin * L, stop, N):
        keys = start + tl.arange(0, N)
        allowed = load_allowed(mask, mask_b, batch, keys, stop, MASKED)
        logs = load_keys(
            key, key_scale, key_b, key_t, batch, group, keys, channels, inside, length, allowed, KIND, SCALED, N, C
        )
        bias = log_weights(
            weight, weight_o, weight_g, weight_t, weight_u, group, rows[:, None], keys[None, :], allowed[None, :],
            length, first, last, CAUSAL, WEIGHTED,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(logs, 0))
        risen = tl.maximum(level, tl.max(bias, 1))
        lowered = tl.exp2(level - risen)[:, None] * tl.exp2(top - higher)[None, :]
        weights = tl.exp2(bias - risen[:, None])
        scaled = tl.exp2(logs - higher[None, :])
        denominator = dot(weights, scaled, denominator * lowered, PRECISION)
        if MEANS:
            values = load_rows(value, value_b, value_t, batch, keys, channels, length, inside)
            values = tl.where(allowed[:, None], values, 0.0)
            numerator = dot(weights, scaled * values, numerator * lowered, PRECISION)
        top = higher
        level = risen
    scale = level[:, None] + top[None, :]
    low = (level[:, None] > 0.5 * LOWEST) & (denominator < SMALLEST) & inside[None, :]
    if tl.max(tl.max(low.to(tl.int32), 1), 0) > 0:
        tile = tl.zeros((L, C), tl.float32)
        scale, denominator, numerator = exact_rows(
            key, key_scale, value, weight, mask,
            tile + state_top[None, :], tile + mass[None, :], tile + sums[None, :],
            batch, group, rows, channels, inside, begin * L, stop, length, first, last,
            key_b, key_t, value_b, value_t, weight_o, weight_g, weight_t, weight_u, mask_b,
            KIND, SCALED, MASKED, CAUSAL, WEIGHTED, C,
        )  # fmt: skip
    return scale, denominator, numerator


@triton.jit
def gate_inputs(query, query_scale, query_shift, query_b, query_t, batch, rows, channels, inside, length,
                SCALED: tl.constexpr):  # fmt: skip
    """Queries (L, C), their scale (C,), and the sigmoid of what they become."""
    queries = load_rows(query, query_b, query_t, batch, rows, channels, length, inside)
    scale = tl.full(channels.shape, 1.0, tl.float32)
    shift = tl.zeros(channels.shape, tl.float32)
    if SCALED:
        scale = tl.load(query_scale + channels, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(query_shift + channels, mask=inside, other=0.0).to(tl.float32)
    return queries, scale, tl.sigmoid(queries * scale[None, :] + shift[None, :])


@triton.jit(do_not_specialize=VARYING)
def mixed_rows(
    query, query_scale, query_shift, key, key_scale, value, weight, mask, before, after, out,
    gate, length, width, total, chunks, groups, blocks, state_stride, first, last, left, right,
    query_b, query_t, key_b, key_t, value_b, value_t, weight_o, weight_g, weight_t, weight_u, mask_b,
    KIND: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr, WEIGHTED: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, SCANNED: tl.constexpr, PRECISION: tl.constexpr,
    L: tl.constexpr, N: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gated means (B, T, d)."""
    batch, chunk, group, channels, inside = place_of(chunks, groups, blocks, width, C)
    _, denominator, numerator = sums_of_rows(
        key, key_scale, value, weight, mask, before, after,
        batch, chunk, group, channels, inside, left, right, length, total, chunks, state_stride, first, last,
        key_b, key_t, value_b, value_t, weight_o, weight_g, weight_t, weight_u, mask_b,
        KIND, SCALED, MASKED, CAUSAL, WEIGHTED, BEFORE, AFTER, SCANNED, True, PRECISION, L, N, C,
    )  # fmt: skip
    rows = chunk * L + tl.arange(0, L)
    _, _, opened = gate_inputs(
        query, query_scale, query_shift, query_b, query_t, batch, rows, channels, inside, length, SCALED
    )
    mean = numerator / tl.where(denominator > 0.0, denominator, 1.0)
    pointers = out + tl.cast(batch, tl.int64) * length * total + rows[:, None] * total + channels[None, :]
    mixed = (gate * opened * mean).to(out.dtype.element_ty)
    tl.store(pointers, mixed, mask=(rows[:, None] < length) & inside[None, :])
