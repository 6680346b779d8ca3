"""The seam: one function in transformers' attention interface, for every family that dispatches through it.

A swapped attention module gets a configuration of its own that names this function. The encoder's
configuration stays as it was, so the masks are those of the original implementation, nothing shows in a saved
configuration, and another encoder that was built from the same configuration object is not touched.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from papa_lightning.attention import DynamicAttention, Reach
from papa_lightning.encoders.seam.layer import attend, is_stock, is_touched, layer_of
from papa_lightning.encoders.seam.masks import score_bias
from papa_lightning.encoders.seam.slots import POSITIONS
from papa_lightning.errors import UnsupportedEncoderError

IMPLEMENTATION = "papa"

_SUPPORTED = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4")


def papa_config(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of a configuration that dispatches attention to :func:`papa_attention_forward`.

    Raises:
        UnsupportedEncoderError: When the encoder's own implementation makes masks that cannot be read here.
    """
    check_implementation(config)
    own = copy.copy(config)
    own._attn_implementation_internal = IMPLEMENTATION
    return own


def check_implementation(config: PretrainedConfig) -> None:
    """Refuse an attention implementation whose masks cannot be read.

    Raises:
        UnsupportedEncoderError: Names it, and those that can.
    """
    implementation = config._attn_implementation or "eager"
    if implementation not in _SUPPORTED:
        raise UnsupportedEncoderError(
            f"the encoder's attention implementation is {implementation!r}, but must be one of "
            f"{', '.join(_SUPPORTED)}: "
            'call encoder.set_attn_implementation("sdpa") first.'
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
        query: (B, H or dynamic heads, T, h).
        key: (B, key heads, T, h), all or those that the dynamic heads need.
        value: (B, value heads, T, h); fewer than H in grouped-query attention.
        attention_mask: What the encoder's own implementation makes of the padding mask.
        scaling: Factor of the scores; None means ``h ** -0.5``.
        dropout: Attention dropout, 0 outside training.
        **kwargs: Whatever else the encoder passes on; a ``position_bias`` is added to the scores.

    Returns:
        Mixed values (B, T, H, h), and attention matrices (B, H, T, T) where they were asked for.

    Raises:
        PapaError: When the mask is not that of padding, the sequences are longer than the constants, or a cache of
            earlier tokens is in use.
    """
    # Another thread may have stopped observing since this forward began: then the module has its own configuration.
    config = cast(PretrainedConfig, layer_of(module).config if is_touched(module) else module.config)
    scale = value.shape[-1] ** -0.5 if scaling is None else scaling
    positions, need_weights = kwargs.pop(POSITIONS, None), wants_weights(config, kwargs)
    if is_stock(module):
        kwargs["output_attentions"] = False  # what has no matrices to give would only warn of it
        stock = _stock_attention(module, config)
        mixed, weights = stock(module, query, key, value, attention_mask, scaling=scale, dropout=dropout, **kwargs)
        if need_weights and weights is None:
            weights = matrices_of(module, query, key, attention_mask, scale, kwargs.get("position_bias"))
        return mixed, weights
    return attend(
        module,
        (query, key, value),
        attention_mask,
        scale,
        dropout,
        need_weights,
        position_bias=kwargs.get("position_bias"),
        positions=positions,
    )


def wants_weights(config: PretrainedConfig, kwargs: Mapping[str, Any]) -> bool:
    """Whether a forward is asked for the attention matrices, by an argument or by the configuration.

    Args:
        config: Of the encoder.
        kwargs: What a layer is given; ``papa_weights`` stands for a request that the encoder keeps from its layers.
    """
    return bool(kwargs.get("papa_weights", kwargs.get("output_attentions", config.output_attentions)))


def matrices_of(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    position_bias: Tensor | None = None,
) -> Tensor:
    """The attention matrices of a layer of the original encoder, whose implementation does not give them.

    Args:
        module: The self-attention module.
        query: (B, H, T, h).
        key: (B, key heads, T, h).
        attention_mask: What the encoder hands to its layers.
        scaling: Factor of the scores.
        position_bias: (B or 1, H, T, T), added to the scores.

    Returns:
        (B, H, T, T), before dropout.
    """
    group = cast(int, getattr(module, "num_key_value_groups", 1))
    reach = layer_of(module).reach if is_touched(module) else Reach()
    bias = score_bias(attention_mask, reach, query, position_bias)
    key = key.repeat_interleave(group, dim=1) if group > 1 else key
    padding = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
    return DynamicAttention(query, key, padding, scaling, bias).matrices().to(query.dtype)


def _stock_attention(module: nn.Module, config: PretrainedConfig) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function that the module would call had it never been touched."""
    eager = cast("Callable[..., Any]", getattr(sys.modules[type(module).__module__], "eager_attention_forward", None))
    stock = ALL_ATTENTION_FUNCTIONS.get(config._attn_implementation, eager)
    return cast("Callable[..., tuple[Tensor, Tensor | None]]", stock)


# The encoders' masks are made under their own configuration, but whoever sets this implementation for a whole
# encoder gets a mask too: an unregistered name would silently give none.
ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, papa_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, sdpa_mask)
