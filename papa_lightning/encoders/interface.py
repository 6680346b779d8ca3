"""The seam: one function in transformers' attention interface, for every family that dispatches through it.

A swapped attention module gets a configuration of its own that names this function. The encoder's
configuration stays as it was, so the masks are those of the original implementation, nothing shows in a saved
configuration, and another encoder that was built from the same configuration object is not touched.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from papa_lightning.attention import TokenMixer
from papa_lightning.attention.functional import apply_attention, attention_probabilities
from papa_lightning.exceptions import PapaError, UnsupportedEncoderError

IMPLEMENTATION = "papa"

#: Receives the attention matrices (B, H, T, T) and the mask (B, T) of one layer; may overwrite the matrices.
Observer: TypeAlias = Callable[[Tensor, "Tensor | None"], None]

_ORIGINAL = "papa_original"
_SUPPORTED = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4")


def papa_config(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of a configuration that dispatches attention to :func:`papa_attention_forward`.

    Raises:
        UnsupportedEncoderError: When the encoder's own implementation makes masks that cannot be read here.
    """
    implementation = config._attn_implementation or "eager"
    if implementation not in _SUPPORTED:
        raise UnsupportedEncoderError(
            f"the encoder's attention implementation is {implementation!r}, but must be one of "
            f"{', '.join(_SUPPORTED)}: "
            'call encoder.set_attn_implementation("sdpa") first.'
        )
    own = copy.copy(config)
    own._attn_implementation_internal = IMPLEMENTATION
    return own


@dataclass
class OriginalAttention:
    """What a swapped or observed attention module had before, and who looks at it now.

    Args:
        config: The configuration object that the module shared with its encoder.
        trainable: Names of its parameters that the swap froze, to be unfrozen by the restoration.
        checks_mask: This layer looks at the mask for all: they get the same one, and a look costs a sync.
        observer: Receives the attention matrices while calibration runs.
    """

    config: PretrainedConfig
    trainable: list[str] = field(default_factory=list)
    checks_mask: bool = False
    observer: Observer | None = None


def attach(module: nn.Module) -> OriginalAttention:
    """Send the attention of a module through :func:`papa_attention_forward`; idempotent."""
    original = original_of(module)
    if original is None:
        original = OriginalAttention(cast(PretrainedConfig, module.config))
        module.config = papa_config(original.config)  # type: ignore[assignment]
        module.__dict__[_ORIGINAL] = original
    return original


def detach(module: nn.Module) -> None:
    """Undo :func:`attach`."""
    original = module.__dict__.pop(_ORIGINAL, None)
    if original is not None:
        module.config = original.config


def original_of(module: nn.Module) -> OriginalAttention | None:
    """What :func:`attach` keeps on a module, or None."""
    return cast("OriginalAttention | None", module.__dict__.get(_ORIGINAL))


def key_mask(attention_mask: Tensor | None) -> Tensor | None:
    """The padding mask behind what an encoder hands to its attention.

    Args:
        attention_mask: None; (B, T), as flash attention has it; or (B, 1, T, T) or (B, 1, 1, T), boolean or
            additive, with equal rows.

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
    rows = attention_mask[:, 0, 0, :] if attention_mask.dim() == 4 else attention_mask
    if rows.dtype == torch.bool:
        return rows
    return rows >= 0 if rows.is_floating_point() else rows != 0


def _refuse_uneven_mask(attention_mask: Tensor | None) -> None:
    """Refuse a mask that differs between queries or heads."""
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 4 or torch.compiler.is_compiling():
        return
    if not (attention_mask == attention_mask[:, :1, :1]).all():
        raise PapaError(
            f"attention_mask of shape {tuple(attention_mask.shape)} allows different keys to different queries or "
            "heads, but swapped attention knows padding only: pass a mask of shape (batch, length)."
        )


def papa_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of one swapped or observed layer, with the signature of transformers' attention interface.

    Args:
        module: The self-attention module.
        query: (B, dynamic heads, T, h).
        key: (B, dynamic heads, T, h).
        value: (B, H, T, h).
        attention_mask: What the encoder's own implementation makes of the padding mask.
        scaling: Factor of the scores; None means ``h ** -0.5``.
        dropout: Attention dropout, 0 outside training.
        **kwargs: Whatever else the encoder passes on.

    Returns:
        Mixed values (B, T, H, h), and attention matrices (B, H, T, T) where they were asked for.

    Raises:
        PapaError: When the mask differs between queries or heads, or the sequences are longer than the constants.
    """
    original = cast(OriginalAttention, original_of(module))
    mixer = mixer_of(module)
    scale = value.shape[-1] ** -0.5 if scaling is None else scaling
    if original.observer is not None:
        return _observed_attention(original, query, key, value, key_mask(attention_mask), scale), None
    if mixer is None or not mixer.replaces_attention:
        stock = _stock_attention(module, original.config)
        return stock(module, query, key, value, attention_mask, scaling=scale, dropout=dropout, **kwargs)
    if original.checks_mask:
        _refuse_uneven_mask(attention_mask)
    need_weights = bool(kwargs.get("output_attentions", original.config.output_attentions))
    mixed, weights = mixer(query, key, value, key_mask(attention_mask), scale, dropout, need_weights)
    return mixed, weights


def mixer_of(module: nn.Module) -> TokenMixer | None:
    """The mixer that a swap hung on an attention module, or None."""
    return cast("TokenMixer | None", module._modules.get("papa"))


def _observed_attention(
    original: OriginalAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    observer = cast(Observer, original.observer)
    attention = attention_probabilities(query, key, mask, scaling)
    mixed = apply_attention(attention, value)
    observer(attention, mask)  # last, because it may overwrite the matrices
    return mixed


def _stock_attention(module: nn.Module, config: PretrainedConfig) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function that the module would call had it never been touched."""
    eager = cast("Callable[..., Any]", getattr(sys.modules[type(module).__module__], "eager_attention_forward", None))
    stock = ALL_ATTENTION_FUNCTIONS.get(config._attn_implementation, eager)
    return cast("Callable[..., tuple[Tensor, Tensor | None]]", stock)


# The encoders' masks are made under their own configuration, but whoever sets this implementation for a whole
# encoder gets a mask too: an unregistered name would silently give none.
ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, papa_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, sdpa_mask)
