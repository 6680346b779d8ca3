"""Constant attention for a graph that is traced once and then serves all batch sizes and lengths.

What runs eagerly, or is compiled with guards, may choose its path by the sizes of a batch. A graph of ``torch.export``
has one path, so the function here asks nothing about sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from papa_lightning.attention.functional import EPS


def is_symbolic(length: object) -> bool:
    """Whether a size is a symbol of a graph that is being exported, rather than a number.

    Example:
        >>> is_symbolic(torch.zeros(2, 3).shape[1])
        False
    """
    return not isinstance(length, int)


def constant_attention_of_any_size(constants: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Constant attention in one product for values and mass.

    The result of :func:`~papa_lightning.attention.functional.constant_attention`; the mass is the product with a
    column of ones beside the values.

    Args:
        constants: (H, T, T), cut to the length of the batch.
        value: (B, H, T, h).
        mask: (B, T), true for a real token, or None.

    Returns:
        (B, T, H, h), contiguous.

    Example:
        >>> constants = torch.tensor([[[1.0, 3.0], [1.0, 1.0]]])
        >>> value = torch.tensor([[[[4.0], [8.0]]]])
        >>> constant_attention_of_any_size(constants, value, torch.tensor([[1, 0]])).flatten()
        tensor([4., 0.])
    """
    batch, heads, length, size = value.shape
    ones = value.new_ones(batch, heads, length, 1)
    extended = torch.cat([value, ones], dim=-1)
    if mask is not None:
        extended = extended * mask.to(value.dtype)[:, None, :, None]
    # clone, and not contiguous: that would ask whether the tensor is contiguous already, which depends on its sizes.
    columns = extended.permute(1, 2, 0, 3).clone(memory_format=torch.contiguous_format)
    mixed = torch.bmm(constants.to(value.dtype), columns.view(heads, length, -1))
    mixed = mixed.view(heads, length, batch, size + 1)
    mass = mixed[..., size:].clamp_min(EPS)
    result = (mixed[..., :size] / mass).permute(2, 1, 0, 3)
    if mask is not None:
        result = result * mask.to(value.dtype)[:, :, None, None]
    return result.clone(memory_format=torch.contiguous_format)
