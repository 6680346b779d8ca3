"""Reading the attention masks that encoders hand to their layers."""

from __future__ import annotations

import torch
from torch import Tensor

from papa_lightning.attention import Reach
from papa_lightning.attention.exporting import is_symbolic
from papa_lightning.exceptions import PapaError


def key_mask(attention_mask: Tensor | None) -> Tensor | None:
    """The padding mask behind what an encoder hands to its attention.

    Args:
        attention_mask: None; (B, T), as flash attention has it; or (B, 1, T, T) or (B, 1, 1, T), boolean or
            additive. With rows of their own for queries, a token is real if it may attend to itself.

    Returns:
        (B, T) boolean, true for a real token, or None when every token is real.

    Raises:
        PapaError: For a mask that is no tensor, as flex attention makes it.

    Example:
        >>> key_mask(torch.tensor([[[[0.0, -1e9]]]]))
        tensor([[ True, False]])
    """
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor):
        raise PapaError(
            f"attention_mask is a {type(attention_mask).__name__}, which swapped attention cannot read: call "
            'encoder.set_attn_implementation("sdpa"), or pass a mask of shape (batch, length).'
        )
    rows = attention_mask
    if rows.dim() == 4:
        # A length that is a symbol, in a graph that is being exported, may be 1; the diagonal is right then too.
        keys_only = not is_symbolic(rows.shape[2]) and rows.shape[2] == 1
        rows = rows[:, 0, 0] if keys_only else rows[:, 0].diagonal(dim1=1, dim2=2)
    return _allowed(rows)


def reach_bias(attention_mask: Tensor | None, reach: Reach, length: int, device: torch.device) -> Tensor | None:
    """Where the queries of a layer of limited reach may look, for its dynamic heads; None for one without a limit.

    Args:
        attention_mask: As in :func:`key_mask`. One with rows for queries says so itself.
        reach: Of the layer.
        length: T.
        device: Of the result.
    """
    if reach.unlimited:
        return None  # the padding mask says it all
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask
    return reach.allowed(length, device)


def refuse_other_masks(attention_mask: Tensor | None, reach: Reach) -> None:
    """Refuse a mask that says more than which tokens are padding.

    Args:
        attention_mask: As in :func:`key_mask`.
        reach: Of the layer, known to its constants.

    Raises:
        PapaError: When the mask differs between queries or heads in another way than by the reach.
    """
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 4:
        return
    if attention_mask.shape[1:3] == (1, 1) and reach.unlimited:
        return
    real = key_mask(attention_mask)
    assert real is not None
    expected = real[:, None, None, :] & reach.allowed(real.shape[1], real.device)
    # What padding attends to is nobody's business, and encoders differ in it.
    if not ((_allowed(attention_mask) == expected) | ~real[:, None, :, None]).all():
        raise PapaError(
            f"attention_mask of shape {tuple(attention_mask.shape)} allows different keys to different queries or "
            "heads, but swapped attention knows padding only: pass a mask of shape (batch, length)."
        )


def _allowed(mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return mask
    return mask >= 0 if mask.is_floating_point() else mask != 0
