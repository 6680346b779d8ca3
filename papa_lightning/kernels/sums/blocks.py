"""The Triton code of :mod:`papa_lightning.kernels.sums.mixing`."""

import triton
import triton.language as tl

# The score of a key that is not seen is -2**100: low, but not infinite, so that a row without any key is uniform and no
# NaN. A power of 2, because GPUs take ``x * scale - highest * scale`` with the first product exact and the second one
# rounded: of another number, the difference would be huge instead of 0 in a block without any key. It is written out,
# because every launch compares the globals that a kernel uses.


@triton.jit
def _scores(q, k, scale, bias, inside, precision: tl.constexpr):
    """Scores of a tile, to be multiplied by ``scale``; ``inside`` marks the entries of the bias that exist."""
    x = tl.dot(q, k, input_precision=precision)
    if bias is not None:
        if bias.dtype.element_ty == tl.int1:
            x = tl.where(tl.load(bias, mask=inside, other=0) != 0, x, -1.2676506002282294e30)
        else:
            x += tl.load(bias, mask=inside, other=0.0).to(tl.float32) * (1.4426950408889634 / scale)
            x = tl.where(x < -1.2676506002282294e30, -1.2676506002282294e30, x)  # a maximum would hide NaN
    return x


@triton.jit
def mix_rows(
    query, key, value, mask, bias, mixed, work, scale, heads, length,
    query_b, query_h, query_t, key_b, key_h, key_t, value_b, value_h, value_t, mask_b, mask_t,
    bias_b, bias_h, bias_i, bias_j,
    size: tl.constexpr, width: tl.constexpr, value_size: tl.constexpr, value_width: tl.constexpr,
    even: tl.constexpr, precision: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    """Write the mixed values, and the logarithms (B, H, T) to the base 2 of the sums of rows, of a tile of queries."""
    tiles = tl.cdiv(length, queries)
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = sequence // heads, sequence % heads
    i = (tl.program_id(0) % tiles) * queries + tl.arange(0, queries)
    d, e, there = tl.arange(0, width), tl.arange(0, value_width), i < length
    query += b * query_b + h * query_h
    key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    q = tl.load(query + i[:, None] * query_t + d[None, :], mask=there[:, None] & (d[None, :] < size), other=0.0)
    highest = tl.full((queries,), float("-inf"), tl.float32)
    total = tl.zeros((queries,), tl.float32)
    sums = tl.zeros((queries, value_width), tl.float32)
    for start in range(0, length, keys):
        j = start + tl.arange(0, keys)
        here = j < length
        k = tl.load(key + j[None, :] * key_t + d[:, None], mask=here[None, :] & (d[:, None] < size), other=0.0)
        pairs = bias
        if bias is not None:
            pairs = bias + b * bias_b + h * bias_h + i[:, None] * bias_i + j[None, :] * bias_j
        x = _scores(q, k, scale, pairs, there[:, None] & here[None, :], precision)
        if mask is not None:
            real = tl.load(mask + b * mask_b + j * mask_t, mask=here, other=0) != 0
            x = tl.where(real[None, :], x, tl.where(here, -1.2676506002282294e30, float("-inf"))[None, :])
        elif not even:
            x = tl.where(here[None, :], x, float("-inf"))
        new = tl.maximum(highest, tl.max(x, 1) * scale)
        p, shrink = tl.exp2(x * scale - new[:, None]), tl.exp2(highest - new)
        total, highest = total * shrink + tl.sum(p, 1), new
        held = here[:, None] & (e < value_size)[None, :]
        v = tl.load(value + j[:, None] * value_t + e[None, :], mask=held, other=0.0)
        sums = tl.dot(p.to(v.dtype), v, sums * shrink[:, None], input_precision=precision)
    at = ((b * length + i[:, None]) * heads + h) * value_size + e[None, :]
    rows = (sums / total[:, None]).to(mixed.dtype.element_ty)
    tl.store(mixed + at, rows, mask=there[:, None] & (e[None, :] < value_size))
    # A row without any key is uniform, as its values are mixed here, but is not counted.
    norms = tl.where(highest <= -1.2676506002282294e30 * scale, float("inf"), highest + tl.log2(total))
    tl.store(work + sequence * length + i, norms, mask=there)


@triton.jit(do_not_specialize=["layer", "first", "last", "each"])
def add_tiles(
    query, key, mask, bias, tokens, work, sums, squares, scale, heads, length, slots, max_length, most_tiles,
    norms_at, parts_at, layer, first, last, each, query_b, query_h, query_t, key_b, key_h, key_t, mask_b, mask_t,
    bias_b, bias_h, bias_i, bias_j, tokens_b,
    size: tl.constexpr, width: tl.constexpr, even: tl.constexpr, shared: tl.constexpr,
    precision: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """Add the probabilities of some sequences in a tile of slots, and write the sum of their squares."""
    columns = tl.cdiv(slots, keys)
    tiles = tl.cdiv(slots, queries) * columns
    tile, rest = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    h, part = (rest % heads).to(tl.int64), (rest // heads).to(tl.int64)
    i, j = (tile // columns) * queries + tl.arange(0, queries), (tile % columns) * keys + tl.arange(0, keys)
    d, there, here = tl.arange(0, width), i < slots, j < slots
    inside = there[:, None] & here[None, :]
    total, squared = tl.zeros((queries, keys), tl.float32), tl.zeros((queries,), tl.float32)
    begin = first + part * each
    for b in tl.range(begin, tl.minimum(begin + each, last), num_stages=stages):
        query_at, key_at = i, j
        if tokens is not None:
            query_at = tl.load(tokens + b * tokens_b + i, mask=there, other=0)
            key_at = tl.load(tokens + b * tokens_b + j, mask=here, other=0)
        norms = tl.load(work + (b * heads + h) * length + query_at, mask=there, other=0.0)
        q = tl.load(query + b * query_b + h * query_h + query_at[:, None] * query_t + d[None, :],
                    mask=there[:, None] & (d[None, :] < size), other=0.0)  # fmt: skip
        k = tl.load(key + b * key_b + h * key_h + key_at[None, :] * key_t + d[:, None],
                    mask=here[None, :] & (d[:, None] < size), other=0.0)  # fmt: skip
        pairs = bias
        if bias is not None:
            pairs = bias + b * bias_b + h * bias_h + query_at[:, None] * bias_i + key_at[None, :] * bias_j
        p = tl.exp2(_scores(q, k, scale, pairs, inside, precision) * scale - norms[:, None])
        if mask is not None:
            real = tl.load(mask + b * mask_b + i * mask_t, mask=there, other=0) != 0
            seen = tl.load(mask + b * mask_b + j * mask_t, mask=here, other=0) != 0
            p = tl.where(real[:, None] & seen[None, :], p, 0.0)  # over NaN too
        elif not even:
            p = tl.where(here[None, :], p, 0.0)
        total += p
        squared += tl.sum(p * p, 1)
    _keep(total, squared, work, sums, squares, heads, slots, max_length, most_tiles, norms_at, parts_at,
          layer, h, part, tile, tiles, i, j, shared)  # fmt: skip


@triton.jit(do_not_specialize=["layer", "first", "last", "each"])
def mix_and_add(
    query, key, value, mask, bias, mixed, work, sums, squares, scale, heads, length, max_length, most_tiles,
    norms_at, parts_at, layer, first, last, each, query_b, query_h, query_t, key_b, key_h, key_t,
    value_b, value_h, value_t, mask_b, mask_t, bias_b, bias_h, bias_i, bias_j,
    size: tl.constexpr, width: tl.constexpr, value_size: tl.constexpr, value_width: tl.constexpr,
    even: tl.constexpr, shared: tl.constexpr, precision: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr,
    stages: tl.constexpr,
):  # fmt: skip
    """Both at once for some sequences, in a tile of queries, where all keys are one block."""
    tiles = tl.cdiv(length, queries)
    tile, rest = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    h, part = (rest % heads).to(tl.int64), (rest // heads).to(tl.int64)
    i, j = tile * queries + tl.arange(0, queries), tl.arange(0, keys)
    d, e, there, here = tl.arange(0, width), tl.arange(0, value_width), i < length, j < length
    total, squared = tl.zeros((queries, keys), tl.float32), tl.zeros((queries,), tl.float32)
    begin = first + part * each
    for b in tl.range(begin, tl.minimum(begin + each, last), num_stages=stages):
        q = tl.load(query + b * query_b + h * query_h + i[:, None] * query_t + d[None, :],
                    mask=there[:, None] & (d[None, :] < size), other=0.0)  # fmt: skip
        k = tl.load(key + b * key_b + h * key_h + j[None, :] * key_t + d[:, None],
                    mask=here[None, :] & (d[:, None] < size), other=0.0)  # fmt: skip
        v = tl.load(value + b * value_b + h * value_h + j[:, None] * value_t + e[None, :],
                    mask=here[:, None] & (e[None, :] < value_size), other=0.0)  # fmt: skip
        pairs = bias
        if bias is not None:
            pairs = bias + b * bias_b + h * bias_h + i[:, None] * bias_i + j[None, :] * bias_j
        x = _scores(q, k, scale, pairs, there[:, None] & here[None, :], precision)
        if mask is not None:
            seen = tl.load(mask + b * mask_b + j * mask_t, mask=here, other=0) != 0
            x = tl.where(seen[None, :], x, tl.where(here, -1.2676506002282294e30, float("-inf"))[None, :])
        elif not even:
            x = tl.where(here[None, :], x, float("-inf"))
        highest = tl.max(x, 1)
        p = tl.exp2(x * scale - (highest * scale)[:, None])
        p /= tl.sum(p, 1)[:, None]
        rows = tl.dot(p.to(v.dtype), v, input_precision=precision)
        at = ((b * length + i[:, None]) * heads + h) * value_size + e[None, :]
        tl.store(mixed + at, rows.to(mixed.dtype.element_ty), mask=there[:, None] & (e[None, :] < value_size))
        if bias is not None:
            p = tl.where((highest <= -1.2676506002282294e30)[:, None], 0.0, p)  # as in mix_rows
        if mask is not None:
            real = tl.load(mask + b * mask_b + i * mask_t, mask=there, other=0) != 0
            p = tl.where(real[:, None] & seen[None, :], p, 0.0)
        total += p
        squared += tl.sum(p * p, 1)
    _keep(total, squared, work, sums, squares, heads, length, max_length, most_tiles, norms_at, parts_at,
          layer, h, part, tile, tiles, i, j, shared)  # fmt: skip


@triton.jit
def _keep(
    total, squared, work, sums, squares, heads, slots, max_length, most_tiles, norms_at, parts_at,
    layer, h, part, tile, tiles, i, j, shared: tl.constexpr,
):  # fmt: skip
    """Add the sums of a tile to those of its head, or write them to the workspace, where several have one tile."""
    norm = tl.sum(tl.where(i < slots, squared, 0.0), 0)
    inside = (i[:, None] < slots) & (j[None, :] < slots)
    if shared:
        tl.store(work + norms_at + h * (tl.num_programs(0) // heads) + part * tiles + tile, norm)
        at = work + parts_at + ((part * heads + h) * slots + i[:, None]) * slots + j[None, :]
        tl.store(at, total, mask=inside)
    else:
        own = squares + (layer * heads + h) * most_tiles + tile
        tl.store(own, tl.load(own) + norm.to(tl.float64))
        at = sums + ((layer * heads + h) * max_length + i[:, None]) * max_length + j[None, :]
        tl.store(at, tl.load(at, mask=inside, other=0.0) + total.to(tl.float64), mask=inside)


@triton.jit(do_not_specialize=["layer", "parts", "tiles"])
def add_parts(
    work, sums, squares, slots, max_length, most_tiles, norms_at, parts_at, layer, parts, tiles, block: tl.constexpr
):
    """Add the sums of parts of a batch to a block of a head's sums, and those of squares, in order."""
    heads = tl.num_programs(1)
    h, order = tl.program_id(1).to(tl.int64), tl.arange(0, block)
    if tl.program_id(0) == 0:
        squared = tl.zeros((block,), tl.float64)
        for start in range(0, parts * tiles, block):
            inside = start + order < parts * tiles
            squared += tl.load(work + norms_at + h * parts * tiles + start + order, mask=inside, other=0.0)
        own = squares + (layer * heads + h) * most_tiles
        tl.store(own, tl.load(own) + tl.sum(squared, 0))
    entry = tl.program_id(0) * block + order
    inside, added = entry < slots * slots, tl.zeros((block,), tl.float64)
    for part in range(0, parts):
        added += tl.load(work + parts_at + (part * heads + h) * slots * slots + entry, mask=inside, other=0.0)
    at = sums + ((layer * heads + h) * max_length + entry // slots) * max_length + entry % slots
    tl.store(at, tl.load(at, mask=inside, other=0.0) + added, mask=inside)
