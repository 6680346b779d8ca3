"""Attention-free mixing straight from its formulas, in float64, with all (B, T, T, d) numbers, to compare with."""

import torch

MASKS = ("none", "holes", "left", "empty")


def direct(query, key, value, bias, mask=None, causal=False):
    """bias: (d, T, T), a position bias for each channel."""
    length = query.shape[1]
    logits = key.double()[:, None] + bias.double().permute(1, 2, 0)
    allowed = torch.ones(query.shape[0], length, length, dtype=torch.bool)
    if mask is not None:
        allowed = allowed & mask.bool()[:, None]
    if causal:
        allowed = allowed.tril()
    shares = torch.softmax(logits.masked_fill(~allowed[..., None], -torch.inf), dim=2)
    shares = torch.where(allowed.any(2)[..., None, None], shares, 0.0)
    return torch.sigmoid(query.double()) * torch.einsum("bijd,bjd->bid", shares, value.double())


def offsets(length):
    """(T, T): t' - t."""
    return torch.arange(length) - torch.arange(length)[:, None]


def toeplitz(kernel, length, own):
    """(H, s) to (H, T, T), 0 beyond the kernel; ``own`` is the entry of the row itself."""
    index = offsets(length) + own
    inside = (index >= 0) & (index < kernel.shape[1])
    return torch.where(inside, kernel[:, index.clamp(0, kernel.shape[1] - 1)], 0.0)


def toeplitz_of_grid(kernel, side):
    """(H, s, s) to (H, T, T) for cells row by row."""
    cells = torch.arange(side * side)
    size, own = kernel.shape[1], (kernel.shape[1] - 1) // 2
    down, right = (place - place[:, None] + own for place in (cells // side, cells % side))
    inside = (down >= 0) & (down < size) & (right >= 0) & (right < size)
    return torch.where(inside, kernel[:, down.clamp(0, size - 1), right.clamp(0, size - 1)], 0.0)


def make_mask(kind, batch, length):
    if kind == "none":
        return None
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(length)) < 0.6
    if kind == "left":
        mask = torch.arange(length).expand(batch, -1) >= length // 2
    elif kind == "empty":
        mask[0] = False
    return mask


def make_rows(shape, seed=0, spread=1.0):
    """Queries, keys and values (B, T, d) in float64; keys from -spread to spread when that is not 1."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    return query, key if spread == 1.0 else key.sign() * spread, value
