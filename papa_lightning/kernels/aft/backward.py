"""Kernels of attention-free mixing, backward: rows, then keys, then position biases.

With ``p[t, u, c] = exp(w[t, u] + k[u, c] - lse[t, c])``, where lse is the logarithm of the denominator, and the
gradient ``g[t, c]`` of the mean, the gradients are::

    dv[u, c] = sum_t p g            dk[u, c] = sum_t p g (v[u, c] - mean[t, c])
    dw[t, u] = sum_bc p g (v[u, c] - mean[t, c])

So keys look at rows as rows look at keys, with ``-lse`` in place of k: the same chunks, states, products of matrices,
and exact sums where the factors of p are too far from each other. lse is computed again, not kept; g times the mean is
the gradient of the output times the output. The keys of a short band sum dw as well, for one sequence each.
"""

import triton
import triton.language as tl

from papa_lightning.kernels.aft.forward import gate_inputs, place_of, sums_of_rows
from papa_lightning.kernels.aft.tiles import (
    LARGEST,
    LOWEST,
    VARYING,
    dot,
    load_allowed,
    load_keys,
    load_rows,
    log_weights,
    operand,
    state_out_of_sight,
    store_state,
)


@triton.jit
def column_of(tile, channels, channel):
    """One column (L,) of a tile (L, C)."""
    return tl.sum(tl.where(channels[None, :] == channel, tile, 0.0), 1)


@triton.jit(do_not_specialize=VARYING)
def gradients_of_rows(
    query, query_scale, query_shift, key, key_scale, value, weight, mask, before, after, out, grad,
    grad_query, lse, grad_mean, row_states, grad_gate,
    gate, length, width, total, chunks, groups, blocks, state_stride, first, last, left, right,
    query_b, query_t, key_b, key_t, value_b, value_t, weight_o, weight_g, weight_t, weight_u, mask_b,
    KIND: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr, WEIGHTED: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, SCANNED: tl.constexpr, PRECISION: tl.constexpr,
    L: tl.constexpr, N: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gradients of queries and, by chunk (2, B, chunks, d), of their scale and shift; and what other kernels need."""
    batch, chunk, group, channels, inside = place_of(chunks, groups, blocks, width, C)
    scale, denominator, _ = sums_of_rows(
        key, key_scale, value, weight, mask, before, after,
        batch, chunk, group, channels, inside, left, right, length, total, chunks, state_stride, first, last,
        key_b, key_t, value_b, value_t, weight_o, weight_g, weight_t, weight_u, mask_b,
        KIND, SCALED, MASKED, CAUSAL, WEIGHTED, BEFORE, AFTER, SCANNED, False, PRECISION, L, N, C,
    )  # fmt: skip
    seen = denominator > 0.0
    logs = tl.where(seen, scale + tl.log2(tl.where(seen, denominator, 1.0)), float("inf"))
    rows = chunk * L + tl.arange(0, L)
    queries, query_scales, opened = gate_inputs(
        query, query_scale, query_shift, query_b, query_t, batch, rows, channels, inside, length, SCALED
    )
    grads = load_rows(grad, length * total, total, batch, rows, channels, length, inside)
    products = grads * load_rows(out, length * total, total, batch, rows, channels, length, inside)
    shifts = products * (1.0 - opened)
    grads *= opened * gate
    here = (rows[:, None] < length) & inside[None, :]
    offsets = tl.cast(batch, tl.int64) * length * total + rows[:, None] * total + channels[None, :]
    tl.store(grad_query + offsets, (shifts * query_scales[None, :]).to(grad_query.dtype.element_ty), mask=here)
    tl.store(grad_mean + offsets, grads.to(grad_mean.dtype.element_ty), mask=here)
    tl.store(lse + offsets, logs, mask=here)
    place = (batch * chunks + chunk) * total
    if SCALED:
        tl.store(grad_gate + place + channels, tl.sum(shifts * queries, 0), mask=inside)
        tl.store(grad_gate + state_stride + place + channels, tl.sum(shifts, 0), mask=inside)
    if BEFORE:
        logs = tl.where(rows[:, None] < length, -logs, float("-inf"))
        store_state(row_states, state_stride, place, channels, inside, logs, grads, products)


@triton.jit
def load_gradients(out, grad, lse, grad_mean, total, batch, rows, channels, length, stop, inside):
    """Tiles of rows up to ``stop``: ``-lse``, gradients of means, and these times the means."""
    stride_b = length * total
    grads = load_rows(grad_mean, stride_b, total, batch, rows, channels, stop, inside)
    products = load_rows(grad, stride_b, total, batch, rows, channels, stop, inside)
    products *= load_rows(out, stride_b, total, batch, rows, channels, stop, inside)
    logs = -load_rows(lse, stride_b, total, batch, rows, channels, stop, inside)
    return tl.where(rows[:, None] < stop, logs, float("-inf")), grads, products


@triton.jit
def exact_keys(
    weight, out, grad, lse, grad_mean,
    grads, products, logs, batch, group, keys, channels, inside, begin, end, length, total, first, last,
    weight_o, weight_g, weight_t, weight_u, CAUSAL: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Sums over rows of ``p g`` and of ``p g mean``, row by row, for the logarithms (L, C) of keys."""
    for position in range(begin, end):
        one = position + tl.arange(0, 1)
        minus_lse, row_grads, row_products = load_gradients(
            out, grad, lse, grad_mean, total, batch, one, channels, length, length, inside
        )
        bias = log_weights(
            weight, weight_o, weight_g, weight_t, weight_u, group, one[None, :], keys[:, None],
            (keys < length)[:, None], length, first, last, CAUSAL, WEIGHTED,
        )  # fmt: skip
        weights = tl.exp2(bias + logs + minus_lse)
        grads += weights * row_grads
        products += weights * row_products
    return grads, products


@triton.jit
def row_factors(
    weight, out, grad, lse, grad_mean, batch, group, keys, rows, channels, inside, length, stop, total, first, last,
    weight_o, weight_g, weight_t, weight_u, CAUSAL: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Position biases of keys and rows (L, N), and of rows (N, C) ``-lse``, gradients of means, these times means."""
    minus_lse, grads, products = load_gradients(
        out, grad, lse, grad_mean, total, batch, rows, channels, length, stop, inside
    )
    bias = log_weights(
        weight, weight_o, weight_g, weight_t, weight_u, group, rows[None, :], keys[:, None],
        (rows < stop)[None, :], length, first, last, CAUSAL, WEIGHTED,
    )  # fmt: skip
    return bias, minus_lse, grads, products


@triton.jit
def exact_weights(
    bias, minus_lse, grads, products, values, logs, channels, begin, inside, L: tl.constexpr, N: tl.constexpr
):
    """Gradients of the position biases of keys and rows (L, N), channel by channel."""
    found = tl.zeros((L, N), tl.float32)
    for channel in range(begin, tl.max(tl.where(inside, channels, begin - 1), 0) + 1):
        p = tl.exp2(
            bias + column_of(minus_lse, channels, channel)[None, :] + column_of(logs, channels, channel)[:, None]
        )
        own = column_of(grads, channels, channel)[None, :] * column_of(values, channels, channel)[:, None]
        found += p * (own - column_of(products, channels, channel)[None, :])
    return found


@triton.jit
def store_weights(
    grad_weight, weight, out, grad, lse, grad_mean, values, logs, level, top,
    batch, group, keys, channels, inside, begin, length, stop, total, first, last, far,
    weight_o, weight_g, weight_t, weight_u, out_o, out_t, out_u,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr, L: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the position biases of keys, of one sequence."""
    factor = tl.exp2(tl.where(inside[None, :], logs + level[:, None] + top[None, :], float("-inf")))
    by_values = operand(factor * values, PRECISION)
    by_ones = operand(-factor, PRECISION)
    for start in range(begin, stop, N):
        rows = start + tl.arange(0, N)
        bias, minus_lse, grads, products = row_factors(
            weight, out, grad, lse, grad_mean, batch, group, keys, rows, channels, inside, length, stop, total,
            first, last, weight_o, weight_g, weight_t, weight_u, CAUSAL, True,
        )  # fmt: skip
        if far:
            found = exact_weights(
                bias, minus_lse, grads, products, values, logs, channels, tl.min(channels, 0), inside, L, N
            )
        else:
            scaled = tl.exp2(minus_lse - top[None, :])
            found = dot(by_values, tl.trans(scaled * grads), tl.zeros((L, N), tl.float32), PRECISION)
            found = dot(by_ones, tl.trans(scaled * products), found, PRECISION) * tl.exp2(bias - level[:, None])
        offset = keys[:, None] - rows[None, :]
        here = (rows[None, :] < stop) & (keys[:, None] < length) & (offset >= first) & (offset <= last)
        tl.store(grad_weight + (out_o + rows[None, :] * out_t + keys[:, None] * out_u), found, mask=here)


@triton.jit(do_not_specialize=VARYING)
def gradients_of_keys(
    key, key_scale, value, weight, mask, out, grad, lse, grad_mean, before, after,
    grad_key, grad_value, grad_scale, grad_weight,
    length, width, total, chunks, groups, blocks, state_stride, first, last, left, right,
    key_b, key_t, value_b, value_t, grad_key_b, grad_key_t, weight_o, weight_g, weight_t, weight_u, mask_b,
    out_o, out_p, out_g, out_t, out_u,
    KIND: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr, WEIGHTED: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, SCANNED: tl.constexpr, PRECISION: tl.constexpr,
    FUSED: tl.constexpr, L: tl.constexpr, N: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gradients of values and keys, by chunk (B, chunks, d) of the scale of keys, and if asked of position biases."""
    batch, chunk, group, channels, inside = place_of(chunks, groups, blocks, width, C)
    keys = chunk * L + tl.arange(0, L)
    begin = tl.maximum(chunk - right, 0)
    end = tl.minimum(chunk + left + 1, chunks)
    top, first_sum, second_sum = state_out_of_sight(
        before, after, state_stride, batch * chunks * total, total, begin, end, chunks, channels, inside,
        BEFORE, AFTER, SCANNED, C,
    )  # fmt: skip
    state_top = top
    level = tl.zeros((L,), tl.float32) + tl.where(tl.max(top, 0) > 0.5 * LOWEST, 0.0, LOWEST)
    grads = tl.zeros((L, C), tl.float32) + first_sum[None, :]
    products = tl.zeros((L, C), tl.float32) + second_sum[None, :]
    stop = tl.minimum(end * L, length)
    for start in range(begin * L, stop, N):
        bias, minus_lse, row_grads, row_products = row_factors(
            weight, out, grad, lse, grad_mean, batch, group, keys, start + tl.arange(0, N), channels, inside,
            length, stop, total, first, last, weight_o, weight_g, weight_t, weight_u, CAUSAL, WEIGHTED,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(minus_lse, 0))
        risen = tl.maximum(level, tl.max(bias, 1))
        lowered = tl.exp2(level - risen)[:, None] * tl.exp2(top - higher)[None, :]
        weights = tl.exp2(bias - risen[:, None])
        scaled = tl.exp2(minus_lse - higher[None, :])
        grads = dot(weights, scaled * row_grads, grads * lowered, PRECISION)
        products = dot(weights, scaled * row_products, products * lowered, PRECISION)
        top = higher
        level = risen
    allowed = load_allowed(mask, mask_b, batch, keys, length, MASKED)
    logs = load_keys(
        key, key_scale, key_b, key_t, batch, group, keys, channels, inside, length, allowed, KIND, SCALED, L, C
    )
    scale = logs + level[:, None] + top[None, :]
    factor = tl.exp2(scale)
    grads *= factor
    products *= factor
    far = tl.max(tl.max(tl.where(inside[None, :], scale, LOWEST), 1), 0) > LARGEST
    if far:
        outside = tl.exp2(logs + state_top[None, :])
        grads, products = exact_keys(
            weight, out, grad, lse, grad_mean,
            outside * first_sum[None, :], outside * second_sum[None, :], logs, batch, group, keys, channels, inside,
            begin * L, stop, length, total, first, last, weight_o, weight_g, weight_t, weight_u, CAUSAL, WEIGHTED,
        )  # fmt: skip
    values = load_rows(value, value_b, value_t, batch, keys, channels, length, inside)
    values = tl.where(allowed[:, None], values, 0.0)
    key_grads = tl.where(allowed[:, None], values * grads - products, 0.0)
    here = (keys[:, None] < length) & inside[None, :]
    offsets = tl.cast(batch, tl.int64) * length * total + keys[:, None] * total + channels[None, :]
    grads = tl.where(allowed[:, None], grads, 0.0)
    tl.store(grad_value + offsets, grads.to(grad_value.dtype.element_ty), mask=here)
    if KIND == "shared":
        pointers = (
            grad_key + tl.cast(batch, tl.int64) * grad_key_b + keys * grad_key_t + tl.program_id(0) % (groups * blocks)
        )
        tl.store(pointers, tl.sum(tl.where(inside[None, :], key_grads, 0.0), 1), mask=keys < length)
    else:
        if KIND == "summed":
            key_grads = tl.broadcast_to(tl.sum(tl.where(inside[None, :], key_grads, 0.0), 1)[:, None], (L, C))
        if SCALED:
            inputs = load_rows(key, key_b, key_t, batch, keys, channels, length, inside)
            inputs = tl.where(allowed[:, None], inputs, 0.0)
            place = (batch * chunks + chunk) * total
            tl.store(grad_scale + place + channels, tl.sum(key_grads * inputs, 0), mask=inside)
            key_grads *= tl.load(key_scale + channels, mask=inside, other=0.0).to(tl.float32)[None, :]
        tl.store(grad_key + offsets, key_grads.to(grad_key.dtype.element_ty), mask=here)
    if FUSED:  # after the rest, whose registers are free then
        part = tl.cast(batch * blocks + (tl.program_id(0) % (groups * blocks)) % blocks, tl.int64)
        store_weights(
            grad_weight + part * out_p + tl.cast(group, tl.int64) * out_g, weight, out, grad, lse, grad_mean,
            values, logs, level, top, batch, group, keys, channels, inside, begin * L, length, stop, total,
            first, last, far, weight_o, weight_g, weight_t, weight_u, out_o, out_t, out_u, CAUSAL, PRECISION, L, N,
        )  # fmt: skip


@triton.jit(do_not_specialize=VARYING)
def gradients_of_weights(
    key, key_scale, value, weight, mask, out, grad, lse, grad_mean, grad_weight,
    length, width, total, chunks, groups, blocks, sight, items, part, first, last, left,
    key_b, key_t, value_b, value_t, weight_o, weight_g, weight_t, weight_u, mask_b, out_o, out_p, out_g, out_t, out_u,
    KIND: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    L: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gradients of position biases of a pair of chunks, by parts (parts, groups, ...) of sequences and channels."""
    group = tl.program_id(0) % groups
    pair = tl.program_id(0) // groups
    chunk = pair // sight
    other = chunk - left + pair % sight
    rows = chunk * L + tl.arange(0, L)
    keys = other * L + tl.arange(0, L)
    exists = (keys >= 0) & (keys < length)
    bias = log_weights(
        weight, weight_o, weight_g, weight_t, weight_u, group, rows[:, None], keys[None, :], exists[None, :],
        length, first, last, CAUSAL, True,
    )  # fmt: skip
    level = tl.maximum(tl.max(bias, 1), LOWEST)
    weights = tl.exp2(bias - level[:, None])
    total_grads = tl.zeros((L, L), tl.float32)
    begin = tl.program_id(1) * part
    end = tl.where((other >= 0) & (other < chunks), tl.minimum(begin + part, items), begin)
    for item in range(begin, end):
        batch = item // blocks
        own = (item % blocks) * C + tl.arange(0, C)
        inside = own < width
        channels = group * width + own
        allowed = load_allowed(mask, mask_b, batch, keys, length, MASKED)
        logs = load_keys(
            key, key_scale, key_b, key_t, batch, group, keys, channels, inside, length, allowed, KIND, SCALED, L, C
        )
        values = load_rows(value, value_b, value_t, batch, keys, channels, length, inside)
        values = tl.where(allowed[:, None], values, 0.0)
        minus_lse, grads, products = load_gradients(
            out, grad, lse, grad_mean, total, batch, rows, channels, length, length, inside
        )
        top = tl.maximum(tl.max(logs, 0), LOWEST)
        scale = tl.where(inside[None, :], level[:, None] + top[None, :] + minus_lse, LOWEST)
        if tl.max(tl.max(scale, 1), 0) > LARGEST:
            for channel in range(0, tl.minimum(C, width - (item % blocks) * C)):
                column = group * width + (item % blocks) * C + channel
                exponents = bias + column_of(minus_lse, channels, column)[:, None]
                p = tl.exp2(exponents + column_of(logs, channels, column)[None, :])
                own_values = column_of(values, channels, column)[None, :]
                own_grads = column_of(grads, channels, column)[:, None]
                total_grads += p * (own_grads * own_values - column_of(products, channels, column)[:, None])
        else:
            factor = tl.exp2(scale)
            scaled = tl.exp2(logs - top[None, :])
            sums = dot(factor * grads, tl.trans(scaled * values), tl.zeros((L, L), tl.float32), PRECISION)
            total_grads += weights * dot(-factor * products, tl.trans(scaled), sums, PRECISION)
    offset = keys[None, :] - rows[:, None]
    here = (rows[:, None] < length) & exists[None, :] & (offset >= first) & (offset <= last)
    pointers = grad_weight + tl.cast(tl.program_id(1), tl.int64) * out_p + tl.cast(group, tl.int64) * out_g
    tl.store(pointers + (out_o + rows[:, None] * out_t + keys[None, :] * out_u), total_grads, mask=here)
