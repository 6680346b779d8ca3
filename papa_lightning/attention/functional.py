"""Pure functions on attention matrices: averaging, normalising, and mixing with constants.

Shapes: B sequences, H heads, T tokens, h features a head. A *mask* is (B, T), true for a real token. It may have holes,
so no length is derived from it; None: every token is real.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

#: Bytes of a floating point number -> integers of the same size.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

#: Largest number of entries of constants that are gathered at a time, but at least a row a head: 8 MB in float32.
PIECE = 2**21

#: Row sums below this count as zero: such a row stays zero instead of being divided.
EPS = 1e-12


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of values of ``dtype`` are taken: float64 for float64, else float32.

    Example:
        >>> accumulation_dtype(torch.bfloat16)
        torch.float32
    """
    return torch.promote_types(dtype, torch.float32)


def attention_probabilities(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, bias: Tensor | None = None
) -> Tensor:
    """Softmax attention ``A = softmax(scaling * Q K^T + bias)`` over the real keys.

    Args:
        query: (B, H, T, h).
        key: (B, H, T, h).
        mask: (B, T), true for a real token, or None.
        scaling: Factor of the scores, usually ``h ** -0.5``.
        bias: Broadcastable to (B, H, T, T), or None: floating point is added to the scores, and boolean is true where
            a query may look, whatever ``mask`` says besides.

    Returns:
        (B, H, T, T), rows are queries; float32, or float64 for float64 input. Rows sum to 1 over the real keys;
        the rows of a sequence without any are uniform.

    Example:
        >>> q = k = torch.zeros(1, 1, 2, 4)
        >>> attention_probabilities(q, k, torch.tensor([[True, False]]), 0.5)
        tensor([[[[1., 0.],
                  [1., 0.]]]])
    """
    scores = torch.matmul(query * scaling, key.transpose(-1, -2)).to(accumulation_dtype(query.dtype))
    # The lowest finite number, as in transformers: -inf would make padding NaN, and with it the gradient of every gate.
    lowest = torch.finfo(scores.dtype).min
    if bias is not None and bias.dtype == torch.bool:
        scores.masked_fill_(~bias, lowest)
    elif bias is not None:
        scores.add_(bias)
    if mask is not None:
        padding = ~mask.bool()[:, None, None, :]
        if bias is None:  # nothing is left of a score beside the lowest number, and a sum is much faster than a fill
            scores.add_(torch.zeros_like(padding, dtype=scores.dtype).masked_fill_(padding, lowest))
        else:  # the lowest number may be there already, and twice that is -inf
            scores.masked_fill_(padding, lowest)
    if scores.requires_grad:
        return torch.softmax(scores, dim=-1)
    return torch.softmax(scores, dim=-1, out=scores)  # calibration has room for one tensor of this size, not two


def masked_attention_sum(attention: Tensor, mask: Tensor | None) -> Tensor:
    """Sum of attention matrices over the sequences of a batch, ``sum_b A[b,h,i,j] m[b,i] m[b,j]``: (H, T, T).

    The sum is in the dtype of ``attention``; across batches add the results in float64.

    Args:
        attention: (B, H, T, T). It is OVERWRITTEN: a second tensor of its size is what calibration cannot afford.
        mask: (B, T), true for a real token, or None.

    Example:
        >>> masked_attention_sum(torch.ones(3, 1, 2, 2), torch.tensor([[1, 0], [1, 0], [0, 0]]))
        tensor([[[2., 0.],
                 [0., 0.]]])
    """
    if mask is not None:
        clear_padding(attention, mask)
    return attention.sum(dim=0)


def clear_padding(attention: Tensor, mask: Tensor, first: int = 0) -> None:
    """Write 0 where the query or the key is padding, over NaN too, in (B, H, rows, T) that begin with row ``first``."""
    real = mask.bool()
    pairs = real[:, None, first : first + attention.shape[2], None] & real[:, None, None, :]
    # On the bits, because a product would leave NaN, and a fill takes ten times as long: all bits of 0.0 are 0, and
    # those of the integer -1 are 1.
    bits = _BITS[attention.element_size()]
    attention.view(bits).bitwise_and_(-pairs.to(bits))


def add_pairs(sums: Tensor, pairs: Tensor, entries: Tensor) -> None:
    """Add entries of each sequence to the sums of its pairs, ``sums[h, pairs[b, p]] += entries[b, h, p]``, in order.

    Args:
        sums: (H, S S), float64; written in place.
        pairs: (B, P), int64, no pair twice in a sequence but where an entry is 0.
        entries: (B, H, P).

    Example:
        >>> sums = torch.zeros(1, 3, dtype=torch.float64)
        >>> add_pairs(sums, torch.tensor([[0, 2], [0, 1]]), torch.ones(2, 1, 2))
        >>> sums
        tensor([[2., 1., 1.]], dtype=torch.float64)
    """
    for own, added in zip(pairs, entries, strict=True):  # not at once: the order of colliding sums would be open
        sums.index_add_(1, own, added.to(sums.device, sums.dtype))


def pair_counts(mask: Tensor) -> Tensor:
    """Number of sequences in which both positions hold a real token, ``sum_b m[b,i] m[b,j]``, from a mask (B, T).

    The result is (T, T) in float64, exact up to 2**53 sequences.

    Example:
        >>> pair_counts(torch.tensor([[1, 1], [1, 0]]))
        tensor([[2., 1.],
                [1., 1.]], dtype=torch.float64)
    """
    real = mask.bool().double()
    return real.T @ real


def average_attention(sums: Tensor, counts: Tensor) -> Tensor:
    """Constants ``C = sums / counts`` of sums (..., T, T) and counts (T, T); 0 where no sequence has both positions.

    Rows need not sum to 1: every pair (i, j) has a count of its own.

    Example:
        >>> average_attention(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[2.0, 4.0], [0.0, 0.0]]))
        tensor([[0.5000, 0.7500],
                [0.0000, 0.0000]])
    """
    return torch.where(counts > 0, sums / counts.clamp_min(1.0), 0.0)


def normalized_constants(constants: Tensor, mask: Tensor | None) -> Tensor:
    """The explicit form of constant attention, ``A[b,h,i,j] = C[h,i,j] m_i m_j / sum_j C[h,i,j] m_i m_j``.

    It is only for attention dropout and for returning the matrices; :func:`constant_attention` gives the same product
    without a tensor of this size.

    Args:
        constants: (H, T, T).
        mask: (B, T), true for a real token, or None.

    Returns:
        (B, H, T, T), or (1, H, T, T) without a mask, in the dtype of ``constants``. A row whose sum is 0 stays 0.

    Example:
        >>> normalized_constants(torch.tensor([[[1.0, 3.0], [1.0, 1.0]]]), torch.tensor([[1, 0]]))
        tensor([[[[1., 0.],
                  [0., 0.]]]])
    """
    if mask is None:
        kept = constants[None]
    else:
        real = mask.to(constants.dtype)
        kept = constants * (real[:, None, :, None] * real[:, None, None, :])
    # At least in float32: EPS is 0 in float16, and 0 / 0 is NaN.
    mass = kept.sum(dim=-1, keepdim=True, dtype=accumulation_dtype(kept.dtype)).clamp_min(EPS)
    return (kept / mass).to(constants.dtype)


def constant_mass(constants: Tensor, mask: Tensor | None) -> Tensor:
    """The row sums that normalise constant attention, ``mass[b,h,i] = sum_j C[h,i,j] m[b,j]``.

    For constants (H, T, T) and a mask (B, T) they are (B, H, T), or (1, H, T) without a mask; at least float32, so that
    half precision does not blur the sums.
    """
    exact = constants.to(accumulation_dtype(constants.dtype))
    if mask is None:
        return exact.sum(dim=-1)[None]
    # Under autocast this product would be taken in half precision and make every row a little wrong.
    with torch.autocast(device_type=constants.device.type, enabled=False):
        return torch.matmul(mask.to(exact.dtype), exact.transpose(1, 2)).transpose(0, 1)


def matrix_product(matrices: Tensor, value: Tensor) -> Tensor:
    """Matrices (H, T, T) of a whole batch times values (B, H, T, h): (B, T, H, h), a view of (H, T, B, h)."""
    # One product of (T x T) by (T x B h) a head: B products of (T x T) by (T x h) take longer than this copy of values.
    columns = value.permute(1, 2, 0, 3)
    mixed = torch.bmm(matrices.to(value.dtype), columns.flatten(2)).to(value.dtype)
    return mixed.view(columns.shape).permute(2, 1, 0, 3)


def constant_attention(
    constants: Tensor, value: Tensor, mask: Tensor | None = None, mass: Tensor | None = None
) -> Tensor:
    """Constant attention as one matrix product a head, ``out = m (C (m V)) / max(C m, eps)``.

    Equal to ``normalized_constants(constants, mask) @ value``, but as C does not depend on the batch, the product is
    (T x T) by (T x B h) a head. Products with mask and mass are the copies into its layout and back, and cost nothing.

    Args:
        constants: (H, T, T), the constants of these heads cut to the length of the batch.
        value: (B, H, T, h).
        mask: (B, T), true for a real token, or None.
        mass: ``constant_mass(constants, mask)``, where it is known already.

    Returns:
        (B, T, H, h) in the dtype of ``value``: the layout that an output projection flattens without a copy.
        Rows of padding queries, and real ones whose mass is 0, are 0.

    Example:
        >>> constants = torch.tensor([[[1.0, 3.0], [1.0, 1.0]]])
        >>> value = torch.tensor([[[[4.0], [8.0]]]])
        >>> constant_attention(constants, value).flatten()
        tensor([7., 6.])
        >>> constant_attention(constants, value, torch.tensor([[1, 0]])).flatten()
        tensor([4., 0.])
    """
    batch, heads, length, _ = value.shape
    mass = constant_mass(constants, mask) if mass is None else mass
    scale = mass.clamp_min(EPS).reciprocal().transpose(1, 2)
    if mask is not None:
        scale = scale * mask[..., None]
        columns = _copying_factor(mask.to(value.dtype).T, (heads, length, batch)) * value.permute(1, 2, 0, 3)
        value = columns.permute(2, 0, 1, 3)
    mixed = matrix_product(constants, value)
    return (_copying_factor(scale, (batch, length, heads)) * mixed).to(value.dtype)


def gathered_attention(matrices: Tensor, value: Tensor, places: Tensor, mask: Tensor) -> Tensor:
    """Constant attention of tokens with slots of their own, ``A[b,h,i,j] = C[h, slot_i, slot_j] m_i m_j / mass_i``.

    Equal to :func:`constant_attention` of the tokens in the order of their slots, in n^2 instead of S^2 for n tokens in
    S slots. The gathered entries exist in pieces of some sequences, or some queries of one.

    Args:
        matrices: (H, S, S), the constants, contiguous.
        value: (B, H, n, h).
        places: (B, n), the slot of each token; int64.
        mask: (B, n), true for a real token.

    Returns:
        (B, n, H, h) in the dtype of ``value``; rows of padding queries, and real ones without mass, are 0.

    Example:
        >>> constants = torch.tensor([[[1.0, 9.0, 3.0], [9.0, 9.0, 9.0], [1.0, 9.0, 1.0]]])
        >>> value = torch.tensor([[[[4.0], [8.0]]]])
        >>> gathered_attention(constants, value, torch.tensor([[0, 2]]), torch.ones(1, 2)).flatten()
        tensor([7., 6.])
    """
    (batch, heads, length, _), slots = value.shape, matrices.shape[-1]
    sequences = max(1, PIECE // max(1, heads * length * length))
    queries = max(1, PIECE // max(1, heads * length * sequences))
    flat, real, dtype = matrices.flatten(1), mask.to(matrices.dtype), accumulation_dtype(matrices.dtype)
    parts = []
    for start in range(0, batch, sequences):
        own, known, values = (one[start : start + sequences] for one in (places, real, value))
        rows = []
        for first in range(0, length, queries):
            pairs = pair_index(own, slots, first, first + queries).flatten(1)[:, None].expand(-1, heads, -1)
            gathered = flat.expand(len(own), -1, -1).gather(2, pairs).view(len(own), heads, -1, length)
            gathered = gathered * known[:, None, None]
            mass = gathered.sum(dim=-1, dtype=dtype).clamp_min(EPS)
            scale = (known[:, None, first : first + queries] / mass)[..., None]
            rows.append((torch.matmul(gathered.to(values.dtype), values) * scale).to(values.dtype).transpose(1, 2))
        parts.append(rows[0] if len(rows) == 1 else torch.cat(rows, dim=1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def pair_index(places: Tensor, slots: int, first: int = 0, last: int | None = None) -> Tensor:
    """Index (B, queries, n) of pairs of tokens with slots (B, n), of some queries, in a flattened (S, S) matrix.

    Example:
        >>> pair_index(torch.tensor([[0, 2]]), slots=3)
        tensor([[[0, 2],
                 [6, 8]]])
    """
    return places[:, first:last, None] * slots + places[:, None]


def _copying_factor(factor: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """A factor of every h entries, (*shape, 1): torch lays out a product as its first factor, so this decides it."""
    return factor.expand(shape).contiguous()[..., None]


def is_symbolic(length: object) -> bool:
    """Whether a size is a symbol of a graph that is being exported, rather than a number."""
    return not isinstance(length, int)


def constant_attention_of_any_size(constants: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """:func:`constant_attention` as graphs have it: contiguous, one path for all sizes, few operators on large tensors.

    Rows of padding queries are not 0 here, but finite: nothing reads them.
    """
    batch, heads, length, size = value.shape
    rows, exact = value.transpose(1, 2), constants.to(accumulation_dtype(constants.dtype))
    if mask is None:
        mass = constant_mass(exact, None)[0, :, :, None]
    else:
        rows = rows * mask.to(value.dtype)[:, :, None, None]
        real = mask.to(exact.dtype).transpose(0, 1).expand(heads, -1, -1)  # matmul itself would look at the sizes
        mass = torch.bmm(exact, real)
    # clone, and not contiguous: that would ask whether the tensor is contiguous already, which depends on its sizes.
    columns = rows.permute(2, 1, 0, 3).clone(memory_format=torch.contiguous_format)
    mixed = torch.bmm(constants.to(value.dtype), columns.view(heads, length, -1)).view(heads, length, batch, size)
    result = (mixed / mass.clamp_min(EPS)[..., None]).to(value.dtype).permute(2, 1, 0, 3)
    return result.clone(memory_format=torch.contiguous_format)


def merge_bias(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """One tensor for PyTorch's fused kernel, out of a padding mask (B, T) and a bias of the scores.

    It is broadcastable to (B, H, T, T), boolean or floating point, as the bias of :func:`attention_probabilities`; None
    when everything may be seen.

    Example:
        >>> merge_bias(torch.tensor([[1, 0]]), torch.tensor([[True, True], [False, True]]))
        tensor([[[[ True, False],
                  [False, False]]]])
    """
    if mask is None:
        return bias
    real = mask.bool()[:, None, None, :]
    if bias is None:
        return real
    return bias & real if bias.dtype == torch.bool else bias.masked_fill(~real, torch.finfo(bias.dtype).min)


def fused_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A padding mask (B, T) as fused kernels of devices read it, (B, 1, T, T): 0, or the lowest number of a dtype.

    A boolean mask is turned into such numbers in every call, and rows of other lengths than multiples of 16 are copied.

    Example:
        >>> fused_mask(torch.tensor([[True, False]]), torch.float32)[0, 0]
        tensor([[ 0.0000e+00, -3.4028e+38],
                [ 0.0000e+00, -3.4028e+38]])
    """
    batch, length = mask.shape
    added = torch.zeros(batch, (length + 15) // 16 * 16, dtype=dtype, device=mask.device)[:, :length]
    added = added.masked_fill_(~mask.bool(), torch.finfo(dtype).min)
    return added[:, None, None].expand(batch, 1, length, length)


def dynamic_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    bias: Tensor | None = None,
    fused: Tensor | None = None,
) -> Tensor:
    """Dot-product attention through PyTorch's fused kernel: mixed values (B, T, H, h) of values (B, H, T, h).

    All but ``dropout``, that of the probabilities, and ``fused``, the :func:`fused_mask` of the mask where there is no
    bias, are as for :func:`attention_probabilities`.
    """
    allowed = merge_bias(mask, bias) if fused is None else fused
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout, scale=scaling)
    return mixed.transpose(1, 2)


def apply_attention(attention: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """Explicit attention matrices (B, H, T, T), or (1, H, T, T) of a whole batch, times values (B, H, T, h).

    The result is (B, T, H, h) in the dtype of ``value``; ``dropout`` is taken independently for each sequence.
    """
    if dropout > 0.0:
        attention = F.dropout(attention.expand(value.shape[0], -1, -1, -1), p=dropout)
    return torch.matmul(attention.to(value.dtype), value).transpose(1, 2)


def gate_mixture(gate_logits: Tensor, dynamic: Tensor, constant: Tensor) -> Tensor:
    """Mixture of dynamic and constant attention, ``sigmoid(g) * dynamic + (1 - sigmoid(g)) * constant``.

    Linear in both, so it serves attention matrices and their products with the values alike. The gate logits, one a
    head, are broadcastable to both; the result has the dtype of ``dynamic``.

    Example:
        >>> gate_mixture(torch.zeros(1), torch.tensor([2.0]), torch.tensor([4.0]))
        tensor([3.])
    """
    gate = torch.sigmoid(gate_logits)
    return (gate * dynamic + (1 - gate) * constant).to(dynamic.dtype)
