"""Programs of the constant product: blocks of mixed tokens, and blocks of the gradient of its matrices.

Names of strides end in the letter of their dimension: matrix ``c`` or sequence ``b``, head ``h``, row ``i`` and column
``j`` or token ``t``; features, and tokens of a mask, are neighbours, since every argument takes time at a launch. Rows
are queries and columns keys, or the other way about in the product for a gradient, whose matrices are transposed.
"""

import triton
import triton.language as tl

#: Row sums below this count as zero, as in the torch form.
EPS = tl.constexpr(1e-12)


@triton.jit
def _sort(bits, head, ALL: tl.constexpr):
    """Whether a head is constant, and its number among the heads of its sort; ``bits`` has one for each head."""
    constant = True
    rank = head
    if not ALL:
        constant = ((bits >> head) & 1) != 0
        before = 0
        for other in range(head):
            before += ((bits >> other) & 1).to(tl.int32)
        rank = tl.where(constant, before, head - before)
    return constant, rank


@triton.jit
def _head(bits, rank, HEADS: tl.constexpr):
    """The constant head with a number among these; without bits they all are."""
    head = rank
    before = 0
    for other in range(HEADS):
        bit = ((bits >> other) & 1).to(tl.int32)
        head = tl.where((bit != 0) & (before == rank), other, head)
        before += bit
    return head


@triton.jit
def _bounds(mask, length, first, before, after, LOCAL: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr):
    """Keys that the rows from ``first`` on need: those in reach, between the first real token and the last."""
    low = 0
    high = length
    if CHUNK > 0:
        low = length
        high = 0
        for start in range(0, length, CHUNK):
            t = start + tl.arange(0, CHUNK)
            real = tl.load(mask + t, mask=t < length, other=0) != 0
            low = tl.minimum(low, tl.min(tl.where(real, t, length)))
            high = tl.maximum(high, tl.max(tl.where(real, t + 1, 0)))
        high = tl.where((low < first + ROWS) & (high > first), high, low)  # no key, where no row is real
    if LOCAL:
        low = tl.maximum(low, first - before)
        high = tl.minimum(high, first + ROWS + after)
    return low, high


@triton.jit
def _near(i, j, before, after):
    """Pairs of a row and a column that are in reach."""
    return (i[:, None] - j[None, :] <= before) & (j[None, :] - i[:, None] <= after)


@triton.jit
def _kept(seed, drop, number, queries, groups, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Entries of a matrix, by its number, that dropout keeps: of queries, and of keys in groups of four."""
    zero = queries[:, None] * 0 + groups[None, :] * 0
    group, query = zero + groups[None, :], zero + queries[:, None]
    first, second, third, fourth = tl.philox(tl.load(seed), group, query, zero + number.to(tl.int32), zero, 7)
    drawn = tl.join(tl.join(first, second), tl.join(third, fourth))
    return tl.reshape(drawn, (QUERIES, KEYS)) >= tl.cast(drop * 4294967296.0, tl.uint32)


@triton.jit
def _mix_rows(
    constants, source, own, mask, places, mass, seed, drop, number, i, first, writes_mass, length, end, before, after,
    constants_i, constants_j, source_t,
    TRANSPOSED: tl.constexpr, LOCAL: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Rows of a matrix times columns of the source, by the addresses of these, divided by the mass of each row."""
    low, high = _bounds(mask, length, first, before, after, LOCAL and places is None, CHUNK, ROWS)
    slots = i
    if places is not None:
        slots = tl.load(places + i, mask=i < length, other=0).to(tl.int32)
    matrix_rows = constants + slots.to(tl.int64) * constants_i
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    # Half precision sums rows by a product too. A block that is read by an asynchronous product and by threads as well
    # is overwritten too early: Triton 3.6 keeps as many of its copies as for threads alone.
    alike: tl.constexpr = constants.dtype.element_ty == source.dtype.element_ty
    half: tl.constexpr = source.dtype.element_ty != tl.float32
    multiplied: tl.constexpr = (seed is None and not (LOCAL or TRANSPOSED)) and (alike and half)
    sums = tl.zeros((ROWS, 16), dtype=tl.float32) if multiplied else tl.zeros((ROWS,), dtype=tl.float32)
    for start in range(low // KEYS * KEYS, high, KEYS):
        j = start + tl.arange(0, KEYS)
        keys = j
        if places is not None:
            keys = tl.load(places + j, mask=j < length, other=0).to(tl.int32)
        readable = (i < (end if TRANSPOSED else length))[:, None] & (j < (length if TRANSPOSED else end))[None, :]
        c = tl.load(matrix_rows[:, None] + keys.to(tl.int64)[None, :] * constants_j, mask=readable, other=0.0)
        real = j < length
        if mask is not None:
            real = tl.load(mask + j, mask=real, other=0) != 0
        at_source = source[None, :] + j.to(tl.int64)[:, None] * source_t
        v = tl.load(at_source, mask=real[:, None] & own[None, :], other=0.0)
        if LOCAL:
            c = tl.where(_near(slots, keys, before, after), c, 0.0)
        if TRANSPOSED:
            c = c.to(tl.float32) * (1.0 / tl.maximum(tl.load(mass + j, mask=j < length, other=1.0), EPS))[None, :]
        elif multiplied:
            ones = tl.broadcast_to(real[:, None], (KEYS, 16)).to(tl.float32)
            sums = tl.dot(c, ones.to(v.dtype), sums)
        else:
            c = tl.where(real[None, :], c, 0.0)
            sums += tl.sum(c.to(tl.float32), 1)
        if seed is not None:
            if TRANSPOSED:
                groups = first // 4 + tl.arange(0, ROWS // 4)
                c = tl.where(tl.trans(_kept(seed, drop, number, j, groups, KEYS, ROWS)), c, 0.0)
            else:
                c = tl.where(_kept(seed, drop, number, i, start // 4 + tl.arange(0, KEYS // 4), ROWS, KEYS), c, 0.0)
        total = tl.dot(c.to(v.dtype), v, total, input_precision=PRECISION)
    scale = tl.full((ROWS,), 1.0, dtype=tl.float32)
    if multiplied:
        sums = tl.max(sums, 1)  # all columns are the same
    if not TRANSPOSED:
        scale = 1.0 / tl.maximum(sums, EPS)
        if mass is not None:
            tl.store(mass + i, sums, mask=i < tl.where(writes_mass, length, 0))
    if mask is not None:
        scale = tl.where(tl.load(mask + i, mask=i < length, other=0) != 0, scale, 0.0)
    if seed is not None:
        scale = scale / (1.0 - drop)
    return total * scale[:, None]


@triton.jit(do_not_specialize=["bits", "count", "batch", "length", "before", "after", "mask_b", "places_b"])
def mix(
    constants, source, result, others, mask, places, mass, seed, drop, bits, count, batch, length, end, before, after,
    constants_c, constants_i, constants_j, source_b, source_h, source_t, others_b, others_h, others_t, mask_b, places_b,
    HEADS: tl.constexpr, SIZE: tl.constexpr, TRANSPOSED: tl.constexpr, LOCAL: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A block of the result, (B, T, heads, SIZE): mixed tokens, or a copy of others for a head that is not constant.

    Bits are set for constant heads, of which there are ``count``. Without mask, places and seed, a block is of several
    sequences. TRANSPOSED: the source is a gradient with all heads, the result that of the constant ones, and copies go
    from the source to others.
    """
    head = tl.program_id(1)
    constant, rank = _sort(bits, head, others is None)
    blocks = tl.cdiv(length, ROWS)
    group = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * ROWS
    i = first + tl.arange(0, ROWS)
    rows = i.to(tl.int64)[:, None]
    if (mask is None and places is None) and seed is None:  # with parentheses for Triton 3.2
        column = group * COLUMNS + tl.arange(0, COLUMNS)
        width: tl.constexpr = (SIZE + 15) // 16 * 16  # whole ones of 32 bytes are read
        b = (column // width).to(tl.int64)
        d = column % width
        own = (b < batch) & (d < SIZE)
        writes_mass = group == 0
    else:
        parts: tl.constexpr = (SIZE + COLUMNS - 1) // COLUMNS
        b = (group // parts).to(tl.int64)
        d = (group % parts) * COLUMNS + tl.arange(0, COLUMNS)
        own = d < SIZE
        writes_mass = group % parts == 0
        mask = mask if mask is None else mask + b * mask_b
        places = places if places is None else places + b * places_b
    number = b * count + rank
    if mask is None and places is None:  # all sequences have the same mass
        mass = mass if mass is None else mass + rank.to(tl.int64) * length
        writes_mass = group == 0
    else:
        mass = mass if mass is None else mass + number * length
    source += b * source_b + d + (head if TRANSPOSED else rank) * source_h
    result += (b * length * (count if TRANSPOSED else HEADS) + (rank if TRANSPOSED else head)) * SIZE + d
    inside = (i < length)[:, None] & own[None, :]
    at = result[None, :] + rows * ((count if TRANSPOSED else HEADS) * SIZE)
    if constant:
        total = _mix_rows(
            constants + rank.to(tl.int64) * constants_c, source, own, mask, places, mass, seed, drop, number,
            i, first, writes_mass, length, end, before, after, constants_i, constants_j, source_t,
            TRANSPOSED, LOCAL, CHUNK, PRECISION, ROWS, COLUMNS, KEYS,
        )  # fmt: skip
        tl.store(at, total.to(result.dtype.element_ty), mask=inside)
    elif others is not None:
        at_others = (others + b * others_b + rank * others_h + d)[None, :] + rows * others_t
        if TRANSPOSED:
            copied = tl.load(source[None, :] + rows * source_t, mask=inside)
            tl.store(at_others, copied.to(others.dtype.element_ty), mask=inside)
        else:
            tl.store(at, tl.load(at_others, mask=inside).to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["bits", "count", "batch", "length", "before", "after", "mask_b"])
def constants_gradient(
    grad, value, mixed, mask, mass, seed, drop, result, bits, count, batch, length, before, after,
    grad_b, grad_h, grad_t, value_b, value_h, value_t, mask_b,
    HEADS: tl.constexpr, SIZE: tl.constexpr, LOCAL: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A block of ``sum_b m_i m_j / mass_bi (g_bi . V_bj - g_bi . out_bi)``, sequence by sequence, (C, T, T)."""
    rank = tl.program_id(1)
    head = _head(bits, rank, HEADS)
    blocks = tl.cdiv(length, KEYS)
    first_row = (tl.program_id(0) // blocks) * ROWS
    first_key = (tl.program_id(0) % blocks) * KEYS
    i = first_row + tl.arange(0, ROWS)
    j = first_key + tl.arange(0, KEYS)
    rows, keys = i.to(tl.int64)[:, None], j.to(tl.int64)[:, None]
    parts: tl.constexpr = (SIZE + COLUMNS - 1) // COLUMNS
    steps = batch * parts
    if LOCAL:  # nothing to sum where no pair is in reach
        reached = (first_row - (first_key + KEYS - 1) <= before) & (first_key - (first_row + ROWS - 1) <= after)
        steps = tl.where(reached, steps, 0)
    total = tl.zeros((ROWS, KEYS), dtype=tl.float32)
    for step in range(steps):
        b = tl.cast(step // parts, tl.int64)
        d = ((step % parts) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
        inside = (i < length)[:, None] & (d < SIZE)
        g = tl.load(grad + b * grad_b + head * grad_h + rows * grad_t + d, mask=inside, other=0.0)
        o = tl.load(mixed + ((b * length + rows) * HEADS + head) * SIZE + d, mask=inside, other=0.0)
        number = rank if mask is None else b * count + rank
        sums = tl.load(mass + number * length + i, mask=i < length, other=0.0)
        scale = tl.where(sums < EPS, 0.0, 1.0 / tl.maximum(sums, EPS))
        real = j < length
        if mask is not None:
            real = tl.load(mask + b * mask_b + j, mask=real, other=0) != 0
            scale = tl.where(tl.load(mask + b * mask_b + i, mask=i < length, other=0) != 0, scale, 0.0)
        at_value = value + b * value_b + rank * value_h + keys * value_t + d
        v = tl.load(at_value, mask=real[:, None] & (d < SIZE), other=0.0)
        scaled = g.to(tl.float32) * scale[:, None]
        if seed is None:
            total = tl.dot(scaled.to(v.dtype), tl.trans(v), total, input_precision=PRECISION)
        else:
            part = tl.dot(scaled.to(v.dtype), tl.trans(v), input_precision=PRECISION) / (1.0 - drop)
            groups = first_key // 4 + tl.arange(0, KEYS // 4)
            total += tl.where(_kept(seed, drop, b * count + rank, i, groups, ROWS, KEYS), part, 0.0)
        total -= tl.sum(scaled * o.to(tl.float32), 1)[:, None] * real.to(tl.float32)[None, :]
    if LOCAL:
        total = tl.where(_near(i, j, before, after), total, 0.0)
    at = result + rank.to(tl.int64) * length * length + rows * length + j[None, :]
    tl.store(at, total.to(result.dtype.element_ty), mask=(i < length)[:, None] & (j < length)[None, :])
