"""Kernels of causal AFT-simple: a walk along the sequence, with running maxima, and so exact for keys of any size.

A sequence is cut into segments, one a program, of one warp: its lanes are channels, so that nothing is exchanged. What
lies before a segment, or behind it in the backward pass, is in the states of the other segments; see tiles.py.
Rows are taken four at a time, whose loads wait together.
"""

import triton
import triton.language as tl

from papa_lightning.kernels.aft.tiles import LOG2E, LOWEST, VARYING, merge, state_out_of_sight


@triton.jit
def _place(segments, blocks, total, C: tl.constexpr):
    """What a program works on: sequence, segment, channels (C,), and which of them exist."""
    row = tl.program_id(0) // blocks
    channels = (tl.program_id(0) % blocks) * C + tl.arange(0, C)
    return row // segments, row % segments, channels, channels < total


@triton.jit
def _rows(pointer, stride, position, channels, inside, length):
    """Four rows of channels in float32; 0 outside."""
    first = pointer + position * stride + channels
    zero = tl.zeros_like(channels)
    row_0 = tl.load(first, mask=inside & (position + zero < length), other=0.0).to(tl.float32)
    row_1 = tl.load(first + stride, mask=inside & (position + zero + 1 < length), other=0.0).to(tl.float32)
    row_2 = tl.load(first + 2 * stride, mask=inside & (position + zero + 2 < length), other=0.0).to(tl.float32)
    row_3 = tl.load(first + 3 * stride, mask=inside & (position + zero + 3 < length), other=0.0).to(tl.float32)
    return row_0, row_1, row_2, row_3


@triton.jit
def _allowed(mask, position, channels, length, MASKED: tl.constexpr):
    """Whether a key is a real token, for all channels."""
    here = position + tl.zeros_like(channels) < length
    if MASKED:
        here = here & (tl.load(mask + position + tl.zeros_like(channels), mask=here, other=0) != 0)
    return here


@triton.jit
def _four_allowed(mask, position, channels, length, MASKED: tl.constexpr):
    """The same for four keys."""
    here_0 = _allowed(mask, position, channels, length, MASKED)
    here_1 = _allowed(mask, position + 1, channels, length, MASKED)
    here_2 = _allowed(mask, position + 2, channels, length, MASKED)
    here_3 = _allowed(mask, position + 3, channels, length, MASKED)
    return here_0, here_1, here_2, here_3


@triton.jit
def _vector(pointer, channels, inside, default, SCALED: tl.constexpr):
    """A number for each channel, or one for all."""
    found = tl.zeros(channels.shape, tl.float32) + default
    if SCALED:
        found = tl.load(pointer + channels, mask=inside, other=0.0).to(tl.float32)
    return found


@triton.jit
def _absorbed(top, mass, sums, key, value, scale, here):
    """A state with one more key."""
    logs = tl.where(here, key * scale, float("-inf"))
    return merge(top, mass, sums, logs, 1.0, tl.where(here, value, 0.0))


@triton.jit
def _store_state(states, stride, place, channels, inside, top, first, second):
    """Write a state."""
    tl.store(states + place + channels, top, mask=inside)
    tl.store(states + stride + place + channels, first, mask=inside)
    tl.store(states + 2 * stride + place + channels, second, mask=inside)


@triton.jit(do_not_specialize=VARYING)
def scan_sums(
    key, key_scale, value, mask, states,
    length, total, segments, size, blocks, state_stride, key_b, key_t, value_b, value_t, mask_b,
    SCALED: tl.constexpr, MASKED: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """States (3, B, segments, d) of the keys of all segments."""
    batch, segment, channels, inside = _place(segments, blocks, total, C)
    scale = _vector(key_scale, channels, inside, 1.0, SCALED) * LOG2E
    sequence = tl.cast(batch, tl.int64)
    top = tl.full((C,), LOWEST, tl.float32)
    mass = tl.zeros((C,), tl.float32)
    sums = tl.zeros((C,), tl.float32)
    for row in range(segment * size, tl.minimum(segment * size + size, length), 4):
        k_0, k_1, k_2, k_3 = _rows(key + sequence * key_b, key_t, row, channels, inside, length)
        v_0, v_1, v_2, v_3 = _rows(value + sequence * value_b, value_t, row, channels, inside, length)
        h_0, h_1, h_2, h_3 = _four_allowed(mask, batch * mask_b + row, channels, batch * mask_b + length, MASKED)
        top, mass, sums = _absorbed(top, mass, sums, k_0, v_0, scale, h_0)
        top, mass, sums = _absorbed(top, mass, sums, k_1, v_1, scale, h_1)
        top, mass, sums = _absorbed(top, mass, sums, k_2, v_2, scale, h_2)
        top, mass, sums = _absorbed(top, mass, sums, k_3, v_3, scale, h_3)
    place = (batch * segments + segment) * total
    _store_state(states, state_stride, place, channels, inside, top, mass, sums)


@triton.jit
def _gated(query, scale, shift, gate, mass, sums):
    """A row of the output."""
    return gate * tl.sigmoid(query * scale + shift) * sums / tl.where(mass > 0.0, mass, 1.0)


@triton.jit
def _store_four(pointer, stride, position, channels, inside, length, row_0, row_1, row_2, row_3):
    """Write four rows."""
    first = pointer + position * stride + channels
    place = position + tl.zeros_like(channels)
    kind = pointer.dtype.element_ty
    tl.store(first, row_0.to(kind), mask=inside & (place < length))
    tl.store(first + stride, row_1.to(kind), mask=inside & (place + 1 < length))
    tl.store(first + 2 * stride, row_2.to(kind), mask=inside & (place + 2 < length))
    tl.store(first + 3 * stride, row_3.to(kind), mask=inside & (place + 3 < length))


@triton.jit(do_not_specialize=VARYING)
def scan_rows(
    query, query_scale, query_shift, key, key_scale, value, mask, states, out,
    gate, length, total, segments, size, blocks, state_stride,
    query_b, query_t, key_b, key_t, value_b, value_t, mask_b,
    SCALED: tl.constexpr, MASKED: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gated means (B, T, d)."""
    batch, segment, channels, inside = _place(segments, blocks, total, C)
    scale = _vector(key_scale, channels, inside, 1.0, SCALED) * LOG2E
    factor = _vector(query_scale, channels, inside, 1.0, SCALED)
    shift = _vector(query_shift, channels, inside, 0.0, SCALED)
    top, mass, sums = state_out_of_sight(
        states, states, state_stride, batch * segments * total, total, segment, segments, segments, channels, inside,
        True, False, False, C,
    )  # fmt: skip
    sequence = tl.cast(batch, tl.int64)
    output = out + sequence * length * total
    for row in range(segment * size, tl.minimum(segment * size + size, length), 4):
        k_0, k_1, k_2, k_3 = _rows(key + sequence * key_b, key_t, row, channels, inside, length)
        v_0, v_1, v_2, v_3 = _rows(value + sequence * value_b, value_t, row, channels, inside, length)
        q_0, q_1, q_2, q_3 = _rows(query + sequence * query_b, query_t, row, channels, inside, length)
        h_0, h_1, h_2, h_3 = _four_allowed(mask, batch * mask_b + row, channels, batch * mask_b + length, MASKED)
        top, mass, sums = _absorbed(top, mass, sums, k_0, v_0, scale, h_0)
        o_0 = _gated(q_0, factor, shift, gate, mass, sums)
        top, mass, sums = _absorbed(top, mass, sums, k_1, v_1, scale, h_1)
        o_1 = _gated(q_1, factor, shift, gate, mass, sums)
        top, mass, sums = _absorbed(top, mass, sums, k_2, v_2, scale, h_2)
        o_2 = _gated(q_2, factor, shift, gate, mass, sums)
        top, mass, sums = _absorbed(top, mass, sums, k_3, v_3, scale, h_3)
        o_3 = _gated(q_3, factor, shift, gate, mass, sums)
        _store_four(output, total, row, channels, inside, length, o_0, o_1, o_2, o_3)


@triton.jit
def _row_gradients(
    top, mass, behind, first, second, along, total, key, query, grad, mixed, scale, factor, shift, gate, here
):
    """A row of the backward pass: new states and sums, ``lse``, and the gradients of the mean and of the query."""
    top, mass, _ = merge(top, mass, mass, tl.where(here, key * scale, float("-inf")), 1.0, 1.0)
    seen = mass > 0.0
    lse = tl.where(seen, top + tl.log2(tl.where(seen, mass, 1.0)), float("inf"))
    opened = tl.sigmoid(query * factor + shift)
    products = grad * mixed
    shifts = products * (1.0 - opened)
    grads = gate * opened * grad
    behind, first, second = merge(behind, first, second, -lse, grads, products)
    return top, mass, behind, first, second, along + shifts * query, total + shifts, lse, grads, shifts * factor


@triton.jit(do_not_specialize=VARYING)
def scan_row_gradients(
    query, query_scale, query_shift, key, key_scale, mask, states, out, grad,
    grad_query, lse, grad_mean, row_states, grad_scales,
    gate, length, total, segments, size, blocks, state_stride,
    query_b, query_t, key_b, key_t, mask_b,
    SCALED: tl.constexpr, MASKED: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gradients of queries, by segment (3, B, segments, d) of their scale and shift, and what keys need."""
    batch, segment, channels, inside = _place(segments, blocks, total, C)
    scale = _vector(key_scale, channels, inside, 1.0, SCALED) * LOG2E
    factor = _vector(query_scale, channels, inside, 1.0, SCALED)
    shift = _vector(query_shift, channels, inside, 0.0, SCALED)
    place = batch * segments * total
    top, mass, _ = state_out_of_sight(
        states, states, state_stride, place, total, segment, segments, segments, channels, inside,
        True, False, False, C,
    )  # fmt: skip
    behind = tl.full((C,), LOWEST, tl.float32)
    first = tl.zeros((C,), tl.float32)
    second = tl.zeros((C,), tl.float32)
    along = tl.zeros((C,), tl.float32)
    shifts = tl.zeros((C,), tl.float32)
    sequence = tl.cast(batch, tl.int64)
    own = sequence * length * total
    for row in range(segment * size, tl.minimum(segment * size + size, length), 4):
        k_0, k_1, k_2, k_3 = _rows(key + sequence * key_b, key_t, row, channels, inside, length)
        q_0, q_1, q_2, q_3 = _rows(query + sequence * query_b, query_t, row, channels, inside, length)
        o_0, o_1, o_2, o_3 = _rows(out + own, total, row, channels, inside, length)
        g_0, g_1, g_2, g_3 = _rows(grad + own, total, row, channels, inside, length)
        h_0, h_1, h_2, h_3 = _four_allowed(mask, batch * mask_b + row, channels, batch * mask_b + length, MASKED)
        top, mass, behind, first, second, along, shifts, l_0, m_0, d_0 = _row_gradients(
            top, mass, behind, first, second, along, shifts, k_0, q_0, g_0, o_0, scale, factor, shift, gate, h_0
        )
        top, mass, behind, first, second, along, shifts, l_1, m_1, d_1 = _row_gradients(
            top, mass, behind, first, second, along, shifts, k_1, q_1, g_1, o_1, scale, factor, shift, gate, h_1
        )
        top, mass, behind, first, second, along, shifts, l_2, m_2, d_2 = _row_gradients(
            top, mass, behind, first, second, along, shifts, k_2, q_2, g_2, o_2, scale, factor, shift, gate, h_2
        )
        top, mass, behind, first, second, along, shifts, l_3, m_3, d_3 = _row_gradients(
            top, mass, behind, first, second, along, shifts, k_3, q_3, g_3, o_3, scale, factor, shift, gate, h_3
        )
        _store_four(lse + own, total, row, channels, inside, length, l_0, l_1, l_2, l_3)
        _store_four(grad_mean + own, total, row, channels, inside, length, m_0, m_1, m_2, m_3)
        _store_four(grad_query + own, total, row, channels, inside, length, d_0, d_1, d_2, d_3)
    place += segment * total
    _store_state(row_states, state_stride, place, channels, inside, behind, first, second)
    if SCALED:
        tl.store(grad_scales + place + channels, along, mask=inside)
        tl.store(grad_scales + state_stride + place + channels, shifts, mask=inside)


@triton.jit
def _key_gradients(top, first, second, along, key, value, lse, grad, products, scale, here, exists):
    """A key of the backward pass: the state with its row, and the gradients of the value and of the scaled key."""
    top, first, second = merge(top, first, second, tl.where(exists, -lse, float("-inf")), grad, products)
    factor = tl.exp2(tl.where(here, key * scale, float("-inf")) + top)
    grads = factor * first
    key_grads = tl.where(here, value * grads - factor * second, 0.0)
    return top, first, second, along + key_grads * tl.where(here, key, 0.0), grads, key_grads


@triton.jit(do_not_specialize=VARYING)
def scan_key_gradients(
    key, key_scale, value, mask, row_states, out, grad, lse, grad_mean, grad_key, grad_value, grad_scales,
    length, total, segments, size, blocks, state_stride,
    key_b, key_t, value_b, value_t, mask_b,
    SCALED: tl.constexpr, MASKED: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values, from the last to the first, and by segment of the scale of keys."""
    batch, segment, channels, inside = _place(segments, blocks, total, C)
    factor = _vector(key_scale, channels, inside, 1.0, SCALED)
    scale = factor * LOG2E
    place = batch * segments * total
    top, first, second = state_out_of_sight(
        row_states, row_states, state_stride, place, total, segment, segment + 1, segments, channels, inside,
        False, True, False, C,
    )  # fmt: skip
    along = tl.zeros((C,), tl.float32)
    sequence = tl.cast(batch, tl.int64)
    own = sequence * length * total
    for done in range(0, size, 4):
        row = segment * size + size - 4 - done
        k_0, k_1, k_2, k_3 = _rows(key + sequence * key_b, key_t, row, channels, inside, length)
        v_0, v_1, v_2, v_3 = _rows(value + sequence * value_b, value_t, row, channels, inside, length)
        l_0, l_1, l_2, l_3 = _rows(lse + own, total, row, channels, inside, length)
        m_0, m_1, m_2, m_3 = _rows(grad_mean + own, total, row, channels, inside, length)
        o_0, o_1, o_2, o_3 = _rows(out + own, total, row, channels, inside, length)
        g_0, g_1, g_2, g_3 = _rows(grad + own, total, row, channels, inside, length)
        h_0, h_1, h_2, h_3 = _four_allowed(mask, batch * mask_b + row, channels, batch * mask_b + length, MASKED)
        e_0, e_1, e_2, e_3 = _four_allowed(mask, row, channels, length, False)
        top, first, second, along, v_3, k_3 = _key_gradients(
            top, first, second, along, k_3, v_3, l_3, m_3, g_3 * o_3, scale, h_3, e_3
        )
        top, first, second, along, v_2, k_2 = _key_gradients(
            top, first, second, along, k_2, v_2, l_2, m_2, g_2 * o_2, scale, h_2, e_2
        )
        top, first, second, along, v_1, k_1 = _key_gradients(
            top, first, second, along, k_1, v_1, l_1, m_1, g_1 * o_1, scale, h_1, e_1
        )
        top, first, second, along, v_0, k_0 = _key_gradients(
            top, first, second, along, k_0, v_0, l_0, m_0, g_0 * o_0, scale, h_0, e_0
        )
        _store_four(grad_value + own, total, row, channels, inside, length, v_0, v_1, v_2, v_3)
        _store_four(
            grad_key + own, total, row, channels, inside, length, k_0 * factor, k_1 * factor, k_2 * factor, k_3 * factor
        )
    if SCALED:
        tl.store(grad_scales + 2 * state_stride + place + segment * total + channels, along, mask=inside)
