"""Constant attention without matrices: a relative profile and a weight for each column, or factors of low rank.

Shapes: B sequences, H heads, T tokens, h features a head. A *profile* is (H, 2 w + 1): entry ``w + o`` is rho(o), the
weight of the key ``o`` positions before the query. *Columns* are (H, T): alpha(j). A mask is (B, T), or None.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from papa_lightning.attention.functional import EPS, accumulation_dtype, constant_attention
from papa_lightning.attention.mixer import Reach

#: Default width w of a profile.
WIDTH = 64

#: Queries that share one block of the band. Measured at T = 4096 and 12 heads of size 64, 64 is the best of 64, 128 and
#: 256 for widths of 16 to 128: a block reads b + 2 w keys for b queries, but a small one makes poor matrix products.
BLOCK = 64


def profile_width(profile: Tensor) -> int:
    """The width w of a profile (H, 2 w + 1)."""
    return profile.shape[-1] // 2


def cut_profile(profile: Tensor, reach: Reach) -> Tensor:
    """The profile (H, 2 w + 1) with 0 at the offsets beyond a reach."""
    width = profile_width(profile)
    offsets = torch.arange(-width, width + 1, device=profile.device)
    if reach.before is not None:
        profile = profile.masked_fill(offsets > reach.before, 0.0)
    if reach.after is not None:
        profile = profile.masked_fill(offsets < -reach.after, 0.0)
    return profile


def band_matrix(profile: Tensor, queries: int) -> Tensor:
    """Weights ``M[q,k] = rho(q - k + w)`` of b neighbouring queries, (H, b, b + 2 w): a view, of Toeplitz form."""
    width = profile_width(profile)
    padded = F.pad(profile.flip(-1), (queries - 1, queries - 1))
    return padded.unfold(-1, queries + 2 * width, 1).flip(-2)


def expand_profile(profile: Tensor, columns: Tensor, reach: Reach | None = None) -> Tensor:
    """The matrices themselves, ``C[i,j] = rho(i - j) + alpha(j)``, 0 beyond the reach: (H, T, T)."""
    width, length = profile_width(profile), columns.shape[-1]
    if width >= length:
        profile, width = profile[:, width - length + 1 : width + length], length - 1
    matrices = band_matrix(profile, length)[..., width : width + length] + columns[:, None]
    return matrices if reach is None else reach.cut(matrices)


def profile_product(profile: Tensor, tokens: Tensor) -> Tensor:
    """A banded Toeplitz product with tokens (B, T, H, h), ``out_i = sum_j rho(i - j) x_j``, in O(T (b + w))."""
    # One matrix a head serves all blocks, whose keys are a view of the tokens between zeros. This takes two thirds of
    # the time of copied windows, or of the FFT's, and a tenth of a grouped convolution's (T = 4096, w = 64).
    (batch, length, heads, size), width = tokens.shape, profile_width(profile)
    matrix = band_matrix(profile, BLOCK).to(tokens.dtype)
    gap = -(-width // BLOCK) * BLOCK  # zeros between two sequences, in whole blocks: all blocks are one batch
    rows = -(-length // BLOCK) * BLOCK + gap
    padded = tokens.new_zeros(batch * rows + 2 * gap, heads, size)
    padded[gap : gap + batch * rows].view(batch, rows, heads, size)[:, :length] = tokens
    windows = padded[gap - width :].unfold(0, BLOCK + 2 * width, BLOCK)[: batch * rows // BLOCK]
    mixed = [
        torch.bmm(matrix[head].expand(len(windows), -1, -1), windows[:, head].transpose(1, 2)) for head in range(heads)
    ]
    return torch.stack(mixed, dim=2).view(batch, rows, heads, size)[:, :length]


def column_product(columns: Tensor, tokens: Tensor, reach: Reach) -> Tensor:
    """``out_i = sum_j alpha_j x_j`` over the keys in reach: (B, T, H, h), or (B, 1, H, h) for an unlimited reach."""
    if reach.unlimited:
        return torch.einsum("hj,bjhd->bhd", columns.to(tokens.dtype), tokens)[:, None]
    weighted = tokens * columns.T[..., None].to(tokens.dtype)
    last = tokens.shape[1] - 1
    if reach.before is None:
        ends = torch.arange(last + 1, device=tokens.device) + (last if reach.after is None else reach.after)
        return weighted.cumsum(dim=1).index_select(1, ends.clamp_max(last))
    width = min(max(reach.before, last if reach.after is None else reach.after), last)
    return profile_product(cut_profile(columns.new_ones(columns.shape[0], 2 * width + 1), reach), weighted)


def profile_mass(profile: Tensor, columns: Tensor, mask: Tensor | None, reach: Reach) -> Tensor:
    """Row sums in reach, ``mass[b,h,i] = sum_j (rho(i - j) + alpha(j)) m[b,j]``: (B or 1, H, T), at least float32."""
    dtype = accumulation_dtype(profile.dtype)
    exact, weights = cut_profile(profile, reach).to(dtype), columns.to(dtype)
    real = exact.new_ones(1, columns.shape[-1]) if mask is None else mask.to(dtype)
    heads, length, width = len(exact), real.shape[1], profile_width(exact)
    blocks = -(-length // BLOCK)
    # Half precision of an autocast region would make every row a little wrong.
    with torch.autocast(device_type=profile.device.type, enabled=False):
        windows = F.pad(real, (width, blocks * BLOCK - length + width)).unfold(1, BLOCK + 2 * width, BLOCK)
        banded = F.linear(windows, band_matrix(exact, BLOCK).flatten(0, 1)).view(-1, blocks, heads, BLOCK)
        tokens = real[:, :, None, None].expand(-1, -1, heads, 1)
        by_column = column_product(weights, tokens, reach)[..., 0].transpose(1, 2)
    return banded.transpose(1, 2).flatten(2)[..., :length] + by_column


def profile_attention(
    profile: Tensor, columns: Tensor, value: Tensor, mask: Tensor | None = None, reach: Reach | None = None
) -> Tensor:
    """Constant attention of ``C[i,j] = rho(i - j) + alpha(j)`` with values (B, H, T, h): (B, T, H, h), in O(T w)."""
    reach = reach or Reach()
    if value.shape[2] <= 2 * (BLOCK + 2 * profile_width(profile)):  # a matrix costs no more than the band
        return constant_attention(expand_profile(profile, columns, reach), value, mask)
    scale = profile_mass(profile, columns, mask, reach).clamp_min(EPS).reciprocal()
    tokens = value.transpose(1, 2)
    if mask is not None:
        scale = scale * mask.to(scale.dtype)[:, None]
        tokens = tokens * mask.to(value.dtype)[..., None, None]
    mixed = profile_product(cut_profile(profile, reach), tokens) + column_product(columns, tokens, reach)
    return (mixed * scale.transpose(1, 2)[..., None]).to(value.dtype)


def low_rank_attention(left: Tensor, right: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Constant attention of ``C = L R^T``, factors (H, T, r), in O(T r): ``out = m (L (R^T (m V))) / (L (R^T m))``."""
    dtype = accumulation_dtype(left.dtype)
    real = left.new_ones(1, left.shape[1], dtype=dtype) if mask is None else mask.to(dtype)
    with torch.autocast(device_type=left.device.type, enabled=False):
        mass = torch.einsum("hir,hrb->bhi", left.to(dtype), torch.einsum("hjr,bj->hrb", right.to(dtype), real))
    scale = mass.clamp_min(EPS).reciprocal()
    if mask is not None:
        scale = scale * mask.to(scale.dtype)[:, None]
        value = value * mask.to(value.dtype)[:, None, :, None]
    gathered = torch.einsum("hjr,bhjd->bhrd", right.to(value.dtype), value)
    mixed = torch.einsum("hir,bhrd->bihd", left.to(value.dtype), gathered)
    return (mixed * scale.transpose(1, 2)[..., None]).to(value.dtype)
