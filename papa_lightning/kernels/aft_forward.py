"""Kernels of attention-free mixing, forward: states of chunks of keys, then rows.

    mean[t, c] = sum_u exp(w[t, u] + k[u, c]) v[u, c] / sum_u exp(w[t, u] + k[u, c])
    out = sigmoid(a q + b) gate mean

A row sees the keys of some neighbouring chunks one by one, as products of matrices ``exp(w - maximum of the row)`` and
``exp(k - maximum of the channel)``, whose maxima run along as those of flash attention do. All farther keys have w = 0:
the states of their chunks are enough. Where the largest w and the largest k are so far from each other that a sum
underflows, the program takes its rows again, key by key with a maximum for each row and channel.
"""

import triton
import triton.language as tl

from papa_lightning.kernels.aft_tiles import (
    LOWEST,
    SMALLEST,
    VARYING,
    dot,
    load_allowed,
    load_keys,
    load_rows,
    log_weights,
    merged_states,
    store_state,
)


@triton.jit
def place_of(chunks, blocks, width, C: tl.constexpr):
    """What a program works on: sequence, chunk, group, channels (C,), and which of them exist."""
    batch = tl.program_id(0) // chunks
    chunk = tl.program_id(0) % chunks
    group = tl.program_id(1) // blocks
    own = (tl.program_id(1) % blocks) * C + tl.arange(0, C)
    return batch, chunk, group, group * width + own, own < width


@triton.jit(do_not_specialize=VARYING)
def states_of_keys(
    key, key_scale, value, mask, states,
    length, width, total, chunks, blocks, state_stride,
    key_b, key_t, value_b, value_t, mask_b,
    KIND: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr, L: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """States (3, B, chunks, d) of the keys: a maximum, the sum of their weights, and that of weighted values."""
    batch, chunk, group, channels, inside = place_of(chunks, blocks, width, C)
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
    key, key_scale, value, weight, mask, states,
    batch, chunk, group, channels, inside, begin, end, before, after, length, total, chunks, state_stride, first, last,
    key_b, key_t, value_b, value_t, weight_o, weight_g, weight_t, weight_u, mask_b,
    KIND: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr, WEIGHTED: tl.constexpr,
    STATES: tl.constexpr, L: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Logarithms of a scale, denominators and numerators of rows (L, C), exact for weights of any size."""
    rows = chunk * L + tl.arange(0, L)
    state, mass, sums = merged_states(
        states, state_stride, batch * chunks * total, total, channels, inside, before, after, chunks, STATES, C
    )
    top = tl.zeros((L, C), tl.float32) + state[None, :]
    denominator = tl.zeros((L, C), tl.float32) + mass[None, :]
    numerator = tl.zeros((L, C), tl.float32) + sums[None, :]
    for position in range(begin * L, tl.minimum(end * L, length)):
        one = position + tl.arange(0, 1)
        allowed = load_allowed(mask, mask_b, batch, one, length, MASKED)
        logs = load_keys(
            key, key_scale, key_b, key_t, batch, group, one, channels, inside, length, allowed, KIND, SCALED, 1, C
        )
        values = load_rows(value, value_b, value_t, batch, one, channels, length, inside)
        values = tl.where(allowed[:, None], values, 0.0)
        bias = log_weights(
            weight, weight_o, weight_g, weight_t, weight_u, group, rows[:, None], one[None, :], allowed[None, :], length,
            first, last, CAUSAL, WEIGHTED,
        )  # fmt: skip
        logs = bias + logs
        higher = tl.maximum(top, logs)
        weights = tl.exp(logs - higher)
        lowered = tl.exp(top - higher)
        denominator = denominator * lowered + weights
        numerator = numerator * lowered + weights * values
        top = higher
    return top, denominator, numerator


@triton.jit
def means_of_rows(
    key, key_scale, value, weight, mask, states,
    batch, chunk, group, channels, inside, left, right, length, total, chunks, state_stride, first, last,
    key_b, key_t, value_b, value_t, weight_o, weight_g, weight_t, weight_u, mask_b,
    KIND: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr, WEIGHTED: tl.constexpr,
    STATES: tl.constexpr, PRECISION: tl.constexpr, L: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Means of the values of rows (L, C), and logarithms of their denominators; 0 and infinity for rows without keys."""
    rows = chunk * L + tl.arange(0, L)
    before = chunk - left
    after = chunk + right + 1
    if CAUSAL:
        after = chunks
    begin = tl.maximum(before, 0)
    end = tl.minimum(chunk + right + 1, chunks)
    top, mass, sums = merged_states(
        states, state_stride, batch * chunks * total, total, channels, inside, before, after, chunks, STATES, C
    )
    level = tl.zeros((L,), tl.float32) + tl.where(tl.max(top, 0) > 0.5 * LOWEST, 0.0, LOWEST)
    denominator = tl.zeros((L, C), tl.float32) + mass[None, :]
    numerator = tl.zeros((L, C), tl.float32) + sums[None, :]
    for other in range(begin, end):
        keys = other * L + tl.arange(0, L)
        allowed = load_allowed(mask, mask_b, batch, keys, length, MASKED)
        logs = load_keys(
            key, key_scale, key_b, key_t, batch, group, keys, channels, inside, length, allowed, KIND, SCALED, L, C
        )
        values = load_rows(value, value_b, value_t, batch, keys, channels, length, inside)
        values = tl.where(allowed[:, None], values, 0.0)
        bias = log_weights(
            weight, weight_o, weight_g, weight_t, weight_u, group, rows[:, None], keys[None, :], allowed[None, :], length,
            first, last, CAUSAL, WEIGHTED,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(logs, 0))
        risen = tl.maximum(level, tl.max(bias, 1))
        lowered = tl.exp(level - risen)[:, None] * tl.exp(top - higher)[None, :]
        weights = tl.exp(bias - risen[:, None])
        scaled = tl.exp(logs - higher[None, :])
        denominator = dot(weights, scaled, denominator * lowered, PRECISION)
        numerator = dot(weights, scaled * values, numerator * lowered, PRECISION)
        top = higher
        level = risen
    scale = level[:, None] + top[None, :]
    low = (level[:, None] > 0.5 * LOWEST) & (denominator < SMALLEST) & inside[None, :]
    if tl.max(tl.max(low.to(tl.int32), 1), 0) > 0:
        scale, denominator, numerator = exact_rows(
            key, key_scale, value, weight, mask, states,
            batch, chunk, group, channels, inside, begin, end, before, after, length, total, chunks, state_stride,
            first, last, key_b, key_t, value_b, value_t, weight_o, weight_g, weight_t, weight_u, mask_b,
            KIND, SCALED, MASKED, CAUSAL, WEIGHTED, STATES, L, C,
        )  # fmt: skip
    seen = denominator > 0.0
    denominator = tl.where(seen, denominator, 1.0)
    return numerator / denominator, tl.where(seen, scale + tl.log(denominator), float("inf"))


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
    query, query_scale, query_shift, key, key_scale, value, weight, mask, states, out,
    gate, length, width, total, chunks, blocks, state_stride, first, last, left, right,
    query_b, query_t, key_b, key_t, value_b, value_t, weight_o, weight_g, weight_t, weight_u, mask_b,
    KIND: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr, WEIGHTED: tl.constexpr,
    STATES: tl.constexpr, PRECISION: tl.constexpr, L: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gated means (B, T, d)."""
    batch, chunk, group, channels, inside = place_of(chunks, blocks, width, C)
    mean, _ = means_of_rows(
        key, key_scale, value, weight, mask, states,
        batch, chunk, group, channels, inside, left, right, length, total, chunks, state_stride, first, last,
        key_b, key_t, value_b, value_t, weight_o, weight_g, weight_t, weight_u, mask_b,
        KIND, SCALED, MASKED, CAUSAL, WEIGHTED, STATES, PRECISION, L, C,
    )  # fmt: skip
    rows = chunk * L + tl.arange(0, L)
    _, _, opened = gate_inputs(
        query, query_scale, query_shift, query_b, query_t, batch, rows, channels, inside, length, SCALED
    )
    pointers = out + tl.cast(batch, tl.int64) * length * total + rows[:, None] * total + channels[None, :]
    mixed = (gate * opened * mean).to(out.dtype.element_ty)
    tl.store(pointers, mixed, mask=(rows[:, None] < length) & inside[None, :])
