"""One self-attention layer of an encoder whose attention is observed or swapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from papa_lightning.attention import DynamicAttention, DynamicHeads, Reach, RowMixing, TokenMixer, Turn
from papa_lightning.attention.heads import select_heads
from papa_lightning.encoders.freezing import Frozen
from papa_lightning.encoders.masks import key_mask, reach_bias, refuse_other_masks
from papa_lightning.encoders.slots import Positions, SlotRule, slots_of
from papa_lightning.exceptions import PapaError

#: Receives the attention matrices (B, H, T, T) and the mask (B, T) of one layer; may overwrite the matrices. The tokens
#: are in the order of their slots, here and in a mixing.
Observer: TypeAlias = Callable[[Tensor, "Tensor | None"], None]
#: From the attention matrices (B, H, T, T), the values (B, H, T, h) and the mask (B, T) of one layer to the mixed
#: values (B, T, H, h) that its output projection gets.
Mixing: TypeAlias = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]

_LAYER = "papa_layer"


@dataclass
class TouchedLayer:
    """What a swapped or observed attention module had before, and who looks at it now.

    Args:
        reach: Which keys its queries can see at all.
        slots: Where its encoder counts slots from.
        turn: Which of its layers runs, for a module that serves several.
        config: The configuration object that the module shared with its encoder, where that was exchanged.
        always_weights: The attention matrices are always asked for: nobody can tell whether they are.
        module: The module that stood in this one's place, where it was exchanged.
        frozen: Its parameters that the swap froze, to be thawed by the restoration.
        frozen_positions: The same of the encoder's parameters outside the layers.
        mixings: While someone looks on: what mixes the values instead, one a layer of the module.
    """

    reach: Reach
    slots: SlotRule = "tensor"
    turn: Turn = field(default_factory=Turn)
    config: PretrainedConfig | None = None
    always_weights: bool = False
    module: nn.Module | None = None
    frozen: Frozen = field(default_factory=Frozen)
    frozen_positions: Frozen = field(default_factory=Frozen)
    mixings: list[Mixing | RowMixing] = field(default_factory=list)


def touch(module: nn.Module, layer: TouchedLayer) -> None:
    """Note on a module what it had before."""
    module.__dict__[_LAYER] = layer


def is_touched(module: nn.Module) -> bool:
    """Whether a module is observed or swapped."""
    return _LAYER in module.__dict__


def layer_of(module: nn.Module) -> TouchedLayer:
    """What :func:`touch` noted."""
    return cast(TouchedLayer, module.__dict__[_LAYER])


def untouch(module: nn.Module) -> TouchedLayer:
    """Forget and return what :func:`touch` noted."""
    return cast(TouchedLayer, module.__dict__.pop(_LAYER))


def mixers_of(module: nn.Module) -> list[TokenMixer]:
    """The mixers that a swap hung on an attention module, one a layer that it serves; empty when it is not swapped."""
    held = module._modules.get("papa")
    if held is None:
        return []
    return cast("list[TokenMixer]", list(held)) if isinstance(held, nn.ModuleList) else [cast(TokenMixer, held)]


def remove_hooks(module: nn.Module, ours: Callable[[Any], bool]) -> None:
    """Remove forward pre-hooks by what they are: handles do not survive copies of a module."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if ours(hook):
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def is_stock(module: nn.Module) -> bool:
    """Whether the layer of a touched module that runs now is the layer of the original encoder, and unobserved."""
    layer, mixers = layer_of(module), mixers_of(module)
    return not layer.mixings and not (mixers and mixers[layer.turn.number].replaces_attention)


def uses_scores(module: nn.Module) -> bool:
    """Whether what stands in the layer that runs now has scores that a bias of positions is added to."""
    layer, mixers = layer_of(module), mixers_of(module)
    return bool(layer.mixings) or not mixers or mixers[layer.turn.number].uses_scores


def heads_of(module: nn.Module) -> DynamicHeads | None:
    """Which heads of the layer that runs now are dynamic; None means all."""
    mixers = mixers_of(module)
    return mixers[layer_of(module).turn.number].heads if mixers else None


def attend(
    module: nn.Module,
    query_key_value: tuple[Tensor, Tensor, Tensor],
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float,
    need_weights: bool,
    position_bias: Tensor | None = None,
    positions: Positions | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Mix the tokens of a layer that is observed or swapped.

    Args:
        module: The self-attention module.
        query_key_value: Query (B, heads, T, h) and key (B, key heads, T, h) of all heads or of the dynamic ones only,
            and the value (B, value heads, T, h).
        attention_mask: What the encoder hands to its layers.
        scaling: Factor of the scores.
        dropout: Attention dropout, 0 outside training.
        need_weights: Also return the attention matrices.
        position_bias: (B or 1, H or dynamic heads, T, T), added to the scores.
        positions: What the encoder was told of the positions of its tokens.

    Returns:
        Mixed values (B, T, H, h), and attention matrices (B, H, T, T) or None.

    Raises:
        PapaError: As :func:`~papa_lightning.encoders.interface.papa_attention_forward`.
    """
    layer, (query, key, value) = layer_of(module), query_key_value
    if query.shape[2] != value.shape[2]:
        raise cache_error(f"{query.shape[2]} tokens attend to {value.shape[2]}")
    group = cast(int, getattr(module, "num_key_value_groups", 1))
    if group > 1:
        value = value.repeat_interleave(group, dim=1)
    heads = heads_of(module) or DynamicHeads(value.shape[1])
    query, key = pick_heads(query, heads.dynamic), _keys(key, heads, group)
    bias = reach_bias(attention_mask, layer.reach, value.shape[2], value.device)
    if position_bias is not None:
        bias = pick_heads(position_bias, heads.dynamic)
    attention = DynamicAttention(query, key, key_mask(attention_mask), scaling, bias)
    if not layer.mixings and mixers_of(module)[layer.turn.number].checks_mask and not torch.compiler.is_compiling():
        refuse_other_masks(attention_mask, layer.reach)
    slots = slots_of(attention.mask, layer.slots, positions)
    if slots is None:
        return _mix(module, attention, value, dropout, need_weights)
    mixed, weights = _mix(module, slots.arrange(attention), slots.fill(value), dropout, need_weights)
    return slots.read(mixed), None if weights is None else slots.read_pairs(weights)


def _mix(
    module: nn.Module, attention: DynamicAttention, value: Tensor, dropout: float, need_weights: bool
) -> tuple[Tensor, Tensor | None]:
    layer = layer_of(module)
    if not layer.mixings:
        mixer = mixers_of(module)[layer.turn.number]
        return cast("tuple[Tensor, Tensor | None]", mixer(attention, value, dropout, need_weights))
    mixing = layer.mixings[layer.turn.number]
    if isinstance(mixing, RowMixing):
        return mixing.mix(attention, value), None
    return mixing(attention.matrices(), value, attention.mask), None


def cache_error(found: str) -> PapaError:
    """The error for tokens that are not in the batch."""
    return PapaError(
        f"{found}: earlier tokens come from a cache or a prefix, which swapped attention does not know. Pass "
        "use_cache=False (generate takes it too), or call restore_attention(encoder) first."
    )


def pick_heads(tensor: Tensor, heads: Sequence[int]) -> Tensor:
    """The given heads of a tensor (B, heads, ...) that has all heads, or these only already."""
    if tensor.shape[1] == len(heads):
        return tensor
    return select_heads(tensor, heads, dim=1) if heads else tensor[:, :0]


def _keys(key: Tensor, heads: DynamicHeads, group: int) -> Tensor:
    """One key head for each dynamic head; in grouped-query attention several share one."""
    groups = heads.groups(group)
    key = pick_heads(key, groups)
    if group == 1 or not groups:
        return key
    return torch.stack([key[:, groups.index(head // group)] for head in heads.dynamic], dim=1)
