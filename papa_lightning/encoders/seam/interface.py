"""The seam of families that dispatch through transformers' attention interface: one function in that interface."""

import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from papa_lightning.attention import DynamicAttention, Reach
from papa_lightning.encoders.seam.inline import original_class
from papa_lightning.encoders.seam.layer import attend, is_stock, is_touched, layer_of
from papa_lightning.encoders.seam.masks import score_bias
from papa_lightning.encoders.seam.slots import POSITIONS
from papa_lightning.errors import UnsupportedEncoderError
from papa_lightning.runtime import is_exporting

IMPLEMENTATION = "papa"

_SUPPORTED = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4")


def check_implementation(config: PretrainedConfig) -> None:
    """Refuse an attention implementation whose masks cannot be read."""
    implementation = config._attn_implementation or "eager"
    if implementation not in _SUPPORTED:
        raise UnsupportedEncoderError(
            f"the encoder's attention implementation is {implementation!r}, but must be one of {', '.join(_SUPPORTED)}"
            ': call encoder.set_attn_implementation("sdpa") first.'
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
    """Attention of one swapped or observed layer, as transformers' interface wants it; shapes as :func:`attend`."""
    # Another thread may have stopped observing since this forward began: then the module has its own configuration.
    config = cast(PretrainedConfig, layer_of(module).config if is_touched(module) else module.config)
    scale = value.shape[-1] ** -0.5 if scaling is None else scaling
    positions, need_weights = kwargs.pop(POSITIONS, None), wants_weights(config, kwargs)
    if is_stock(module):
        attention_mask = _exported_mask(module, attention_mask)
        kwargs["output_attentions"] = False  # implementations without matrices would warn
        eager = getattr(sys.modules[original_class(module).__module__], "eager_attention_forward", None)
        stock: Any = ALL_ATTENTION_FUNCTIONS.get(config._attn_implementation, cast(Any, eager))
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


def _exported_mask(module: nn.Module, attention_mask: Tensor | None) -> Tensor | None:
    """The mask of a layer that sees all real keys as (B, 1, 1, T) in a graph, as other layers read it."""
    if attention_mask is None or not is_exporting() or not is_touched(module) or attention_mask.dtype != torch.bool:
        return attention_mask
    layer = layer_of(module)
    if attention_mask.dim() != 4 or not layer.reach.unlimited or layer.batch.exported is None:
        return attention_mask
    return cast(Tensor, layer.batch.key_mask(attention_mask))[:, None, None]


def wants_weights(config: PretrainedConfig, kwargs: Mapping[str, Any]) -> bool:
    """Whether matrices are asked for, also by ``papa_weights``, a request that the encoder does not pass on."""
    for name in ("papa_weights", "output_attentions"):
        if name in kwargs:
            return bool(kwargs[name])
    return bool(config.output_attentions)  # last, because a configuration takes long to look up


def matrices_of(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    position_bias: Tensor | None = None,
) -> Tensor:
    """Attention matrices (B, H, T, T) of the original layer, whose implementation returns none."""
    group = cast(int, getattr(module, "num_key_value_groups", 1))
    reach = layer_of(module).reach if is_touched(module) else Reach()
    bias = score_bias(attention_mask, reach, query, position_bias)
    key = key.repeat_interleave(group, dim=1) if group > 1 else key
    padding = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
    return DynamicAttention(query, key, padding, scaling, bias).matrices().to(query.dtype)


# Masks are made under the encoder's own configuration. The mask function is for encoders on which this implementation
# is set as a whole: without one, transformers would make no mask.
ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, papa_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, sdpa_mask)
