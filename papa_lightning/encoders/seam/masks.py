"""Checking attention masks, and reading those that encoders hand to their layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from papa_lightning.attention import Reach
from papa_lightning.attention.functional import is_symbolic
from papa_lightning.errors import PapaError

#: Bound of the numbers that mask a score: old encoders add -10,000, others the lowest number.
_LOW = -1000.0


def check_mask(attention_mask: object, shape: Sequence[int] | None, allow_empty: bool = False) -> None:
    """Refuse a mask that does not say which tokens are real; the PapaError names its type, shape or wrong value.

    Values are checked on a CPU only: elsewhere reading them makes the device wait.

    Args:
        attention_mask: Argument of an encoder.
        shape: Shape (B, T) of the batch; None where it is not known.
        allow_empty: Whether all tokens of a batch may be padding.

    Example:
        >>> check_mask(torch.tensor([[1, 2]]), (1, 2))
        Traceback (most recent call last):
        ...
        papa_lightning.errors.PapaError: attention_mask has the value 2, but...
    """
    if isinstance(attention_mask, (Sequence, np.ndarray)):
        raise PapaError(
            f"attention_mask is a {type(attention_mask).__name__}, but must be a tensor of shape (batch, length): let "
            'the tokenizer return tensors (return_tensors="pt").'
        )
    if not isinstance(attention_mask, Tensor):
        return  # other types that encoders take are read, or refused, by each layer
    found = tuple(attention_mask.shape)
    if attention_mask.dim() == 4:
        _check_scores(attention_mask)
    elif attention_mask.dim() != 2 or (shape is not None and found != tuple(shape)):
        batch = "(batch, length)" if shape is None else f"(batch, length), which is {tuple(shape)}"
        longer = shape is not None and found[:1] == tuple(shape)[:1] and found[1:2] > tuple(shape)[1:]
        kept = " and use_cache=False, for swapped attention knows no earlier tokens" if longer else ""
        raise PapaError(
            f"attention_mask has shape {found}, but must be of shape {batch}: pass that of the tokenizer{kept}."
        )
    else:
        _check_ones(attention_mask, allow_empty)


def _check_ones(mask: Tensor, allow_empty: bool) -> None:
    if mask.is_complex() or mask.is_quantized:
        raise PapaError(f"attention_mask is of {mask.dtype}, but must be of whole numbers (torch.int64) or boolean.")
    if not can_look(mask) or mask.numel() == 0:
        return
    wrong = first_false((mask == 0) | (mask == 1), mask)
    if wrong is not None:
        raise PapaError(
            f"attention_mask has the value {wrong}, but is 1 for a real token and 0 for padding: pass that of the "
            "tokenizer."
        )
    if not allow_empty and is_true_everywhere(mask == 0):
        raise PapaError(
            f"attention_mask of shape {tuple(mask.shape)} is 0 throughout, so that no token is real: pass 1 for the "
            "tokens of the text."
        )


def _check_scores(mask: Tensor) -> None:
    """Check a mask that is added to scores: boolean, or 0 and very low numbers."""
    if not mask.is_floating_point() or not can_look(mask):
        return
    wrong = first_false((mask == 0) | (mask <= _LOW), mask)
    if wrong is not None:
        raise PapaError(
            f"attention_mask of shape {tuple(mask.shape)} has the value {wrong}, but one of four dimensions is added "
            "to the scores, and is 0 or the lowest number: pass a mask of shape (batch, length)."
        )


def can_look(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be read without making a device wait, and outside a graph."""
    return (
        tensor.device.type == "cpu"
        and type(tensor) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def is_true_everywhere(flags: Tensor) -> bool:
    """Whether all flags are true, of a tensor for which :func:`can_look` holds."""
    return bool(flags.numpy().all())


def first_false(flags: Tensor, values: Tensor) -> Any:
    """The first value whose flag is false, or None; of tensors for which :func:`can_look` holds."""
    return None if is_true_everywhere(flags) else values[~flags][0].item()


def key_mask(attention_mask: Tensor | None) -> Tensor | None:
    """The padding mask (B, T), true for a real token, in any that an encoder hands to its attention; None without."""
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor):
        raise PapaError(
            f"attention_mask is a {type(attention_mask).__name__}, which swapped attention cannot read: call "
            'encoder.set_attn_implementation("sdpa"), or pass a mask of shape (batch, length).'
        )
    if attention_mask.dim() == 2:  # 1 for a real token, in whole numbers or not: it is not added to scores
        return attention_mask if attention_mask.dtype == torch.bool else attention_mask != 0
    # A length that is a symbol, in a graph that is being exported, may be 1; the diagonal is right then too.
    keys_only = not is_symbolic(attention_mask.shape[2]) and attention_mask.shape[2] == 1
    return _allowed(attention_mask[:, 0, 0] if keys_only else attention_mask[:, 0].diagonal(dim1=1, dim2=2))


def reach_bias(attention_mask: Tensor | None, reach: Reach, length: int, device: torch.device) -> Tensor | None:
    """The pairs of a layer of limited reach, as a mask for its dynamic heads; None for a layer without a limit."""
    if reach.unlimited:
        return None
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask
    return reach.allowed(length, device)


def score_bias(
    attention_mask: Tensor | None, reach: Reach, query: Tensor, position_bias: Tensor | None = None
) -> Tensor | None:
    """The mask or reach plus a bias (B or 1, H, T, T), as a layer of the original adds them to its scores."""
    if attention_mask is not None and attention_mask.dim() == 4:
        mask = attention_mask
    elif not reach.unlimited:
        mask = reach.allowed(query.shape[2], query.device)
    else:
        return position_bias
    if position_bias is None:
        return mask
    lowest = torch.finfo(position_bias.dtype).min
    return position_bias.masked_fill(~mask, lowest) if mask.dtype == torch.bool else position_bias + mask


def allowed_pairs(reach: Reach, places: Tensor) -> Tensor:
    """The pairs (B, T, T) within the reach of a layer of tokens at these places (B, T)."""
    distances = places[:, :, None] - places[:, None, :]
    allowed = torch.ones_like(distances, dtype=torch.bool)
    if reach.before is not None:
        allowed &= distances <= reach.before
    return allowed if reach.after is None else allowed & (distances >= -reach.after)


def refuse_other_masks(attention_mask: Tensor | None, reach: Reach, places: Tensor | None = None) -> None:
    """Refuse a mask that is not one of padding; a window is counted in the places (B, T) of tokens, if given."""
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 4:
        return
    if attention_mask.shape[1:3] == (1, 1) and reach.unlimited:
        return
    real = key_mask(attention_mask)
    assert real is not None
    within = reach.allowed(real.shape[1], real.device) if places is None else allowed_pairs(reach, places)[:, None]
    expected = real[:, None, None, :] & within
    # Rows of padding are ignored, because encoders differ in them.
    if not ((_allowed(attention_mask) == expected) | ~real[:, None, :, None]).all():
        raise PapaError(
            f"attention_mask of shape {tuple(attention_mask.shape)} allows different keys to different queries or "
            "heads, but swapped attention knows padding only: pass a mask of shape (batch, length)."
        )


def _allowed(mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return mask
    return mask >= 0 if mask.is_floating_point() else mask != 0
