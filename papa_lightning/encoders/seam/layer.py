"""One self-attention layer of an encoder whose attention is observed or swapped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from papa_lightning.attention import DynamicAttention, DynamicHeads, Reach, RowMixing, TokenMixer, declares, runs_in
from papa_lightning.attention.head_slices import take_heads
from papa_lightning.encoders.projections.joint import JointProjection, ValueProjection
from papa_lightning.encoders.seam.forward import CurrentBatch
from papa_lightning.encoders.seam.masks import can_look, reach_bias, refuse_other_masks
from papa_lightning.encoders.seam.slots import GivenSlots, Positions, SlotRule
from papa_lightning.errors import PapaError
from papa_lightning.kernels import usable

#: Function of the attention matrices (B, H, T, T) and the mask (B, T) of one layer; may overwrite the matrices. Tokens
#: are in the order of their slots, here and in a mixing.
Observer: TypeAlias = Callable[[Tensor, "Tensor | None"], None]
#: Function of the attention matrices (B, H, T, T), the values (B, H, T, h) and the mask (B, T) of one layer; returns
#: the mixed values (B, T, H, h).
Mixing: TypeAlias = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class Frozen:
    """Names of parameters: frozen by a swap, other trainable ones, and all that no loss reaches (idle)."""

    names: tuple[str, ...] = ()  # frozen, and to be thawed
    others: tuple[str, ...] = ()  # if none of them is trainable later, the whole was frozen
    idle: tuple[str, ...] = ()  # also those that were frozen before


def freeze(module: nn.Module, beginnings: Sequence[str]) -> Frozen:
    """Freeze the parameters of a module whose names begin with one of these, before DDP counts trainable ones."""
    own = {name: one for name, one in module.named_parameters() if ".papa." not in f".{name}"}
    idle = tuple(name for name in own if name.startswith(tuple(beginnings)))
    trainable = {name: one for name, one in own.items() if one.requires_grad}
    names = tuple(name for name in idle if name in trainable)
    for name in names:
        trainable[name].requires_grad_(False)
    return Frozen(names, tuple(name for name in trainable if name not in names), idle)


def thaw(module: nn.Module, frozen: Frozen) -> None:
    """Undo :func:`freeze`, unless everything trainable was frozen or wrapped by adapters since."""
    present = dict(module.named_parameters())
    if frozen.others and not any(name in present and present[name].requires_grad for name in frozen.others):
        return
    for name in frozen.names:
        if name in present:  # adapters that were merged are gone
            present[name].requires_grad_(True)


#: Attribute of a touched module: its :class:`TouchedLayer`.
LAYER = "papa_layer"


@dataclass
class TouchedLayer:
    """State of a swapped or observed attention module: the original it came from, and its observers."""

    reach: Reach
    slots: SlotRule = "tensor"
    group: int = 1  # query heads that share a key head and a value head
    batch: CurrentBatch = field(default_factory=CurrentBatch)  # shared by all layers
    value: str = ""  # name of the projection that gives the values of dynamic heads first
    joint: JointProjection | None = None  # that projection with those of queries and keys
    config: PretrainedConfig | None = None  # shared with the encoder, where it was replaced
    frozen: Frozen = field(default_factory=Frozen)
    mixings: list[Mixing | RowMixing] = field(default_factory=list)  # one a layer of the module, while observed
    watcher: int = 0  # the thread that observes; forwards of others are not affected
    warned: bool = False  # of layers without attention matrices
    checked: bool = False  # whether the masks that its encoder makes were checked on a device

    @property
    def watched(self) -> bool:
        """Whether the forward that runs now is observed."""
        return bool(self.mixings) and runs_in(self.watcher)


def is_touched(module: nn.Module) -> bool:
    """Whether a module is observed or swapped."""
    return LAYER in vars(module)


def layer_of(module: nn.Module) -> TouchedLayer:
    """The state of a module that is observed or swapped."""
    return cast(TouchedLayer, vars(module)[LAYER])


def mixers_of(module: nn.Module) -> list[TokenMixer]:
    """The mixers of an attention module, one a layer that it serves; empty when it is not swapped."""
    held = module._modules.get("papa")
    if held is None:
        return []
    return cast("list[TokenMixer]", list(held)) if isinstance(held, nn.ModuleList) else [cast(TokenMixer, held)]


def layers_served(module: nn.Module) -> int:
    """The number of layers that a module serves with mixers or observers of their own; 0 without any."""
    watchers = len(layer_of(module).mixings) if is_touched(module) and layer_of(module).watched else 0
    return max(watchers, len(mixers_of(module)))


def is_stock(module: nn.Module, turn: int = 0) -> bool:
    """Whether a layer, the ``turn``-th that its module serves, is that of the original encoder, and unobserved."""
    mixers = mixers_of(module)
    watched = is_touched(module) and layer_of(module).watched
    return not watched and not (mixers and mixers[turn].replaces_attention)


def gives_matrices(module: nn.Module, turn: int = 0) -> bool:
    """Whether a layer has attention matrices to return."""
    mixers = mixers_of(module)
    return is_stock(module, turn) or layer_of(module).watched or mixers[turn].has_matrices


def uses_scores(module: nn.Module, turn: int = 0) -> bool:
    """Whether a layer has scores that a position bias is added to."""
    mixers = mixers_of(module)
    return layer_of(module).watched or not mixers or mixers[turn].uses_scores


def heads_of(module: nn.Module, turn: int = 0) -> DynamicHeads | None:
    """The dynamic heads of a layer; None means all."""
    mixers = mixers_of(module)
    return mixers[turn].heads if mixers else None


def attend(
    module: nn.Module,
    query_key_value: tuple[Tensor, Tensor, Tensor],
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float,
    need_weights: bool,
    position_bias: Tensor | None = None,
    positions: Positions | None = None,
    turn: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Mix the tokens of an observed or swapped layer to (B, T, H, h), see :meth:`InlineAttention.attend`."""
    layer, (query, key, value) = layer_of(module), query_key_value
    if query.shape[2] != value.shape[2]:
        raise cache_error(f"{query.shape[2]} tokens attend to {value.shape[2]}")
    if layer.group > 1:
        value = value.repeat_interleave(layer.group, dim=1)
    heads = heads_of(module, turn) or DynamicHeads(value.shape[1])
    query, key = pick_heads(query, heads.dynamic), _keys(key, heads, layer.group)
    scores = uses_scores(module, turn)  # without any, nothing is made for them
    bias = reach_bias(attention_mask, layer.reach, value.shape[2], value.device) if scores else None
    if position_bias is not None:
        bias = pick_heads(position_bias, heads.dynamic)
    mask = layer.batch.key_mask(attention_mask)
    if not layer.watched and mixers_of(module)[turn].checks_mask:
        check_padding(layer, attention_mask, positions)
    fused = layer.batch.fused_mask(mask, query.dtype) if scores and bias is None else None
    slots = layer.batch.slots(mask, layer.slots, positions)
    reads = slots is None or _reads_slots(module, turn, value, explicit=need_weights or dropout > 0.0)
    given, order = slots if reads else None, _value_heads(module, layer)
    attention = DynamicAttention(query, key, mask, scaling, bias, given, fused, order)
    if slots is None or reads:
        return _mix(module, turn, attention, value, dropout, need_weights)
    mixed, weights = _mix(module, turn, slots.arrange(attention), slots.fill(value), dropout, need_weights)
    return slots.read(mixed), None if weights is None else slots.read_pairs(weights)


def check_padding(layer: TouchedLayer, attention_mask: Tensor | None, positions: Positions | None) -> None:
    """Refuse a mask that is not one of padding; on a device once, or where the caller made it, because it waits."""
    if torch.compiler.is_compiling() or not isinstance(attention_mask, Tensor):
        return
    if not can_look(attention_mask):
        if layer.checked and not layer.batch.foreign:
            return
        if attention_mask.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        layer.checked = True
    given = positions.slots if isinstance(positions, GivenSlots) else None
    refuse_other_masks(attention_mask, layer.reach, None if given is None else given.places)


def _value_heads(module: nn.Module, layer: TouchedLayer) -> tuple[int, ...] | None:
    """The heads in the order of the values that a module gets from its projection; None: ascending."""
    projection = module._modules.get(layer.value)
    return projection.order() if isinstance(projection, ValueProjection) else None


def _reads_slots(module: nn.Module, turn: int, value: Tensor, explicit: bool) -> bool:
    """Whether a layer takes tokens in the order of the batch with their slots; one with explicit matrices does not."""
    if layer_of(module).watched:
        mixing = layer_of(module).mixings[turn]
        return isinstance(mixing, RowMixing) and mixing.reads_slots
    if explicit or (torch.compiler.is_compiling() and not usable(value)):
        return False
    return declares(mixers_of(module)[turn], "reads_slots")


def _mix(
    module: nn.Module, turn: int, attention: DynamicAttention, value: Tensor, dropout: float, need_weights: bool
) -> tuple[Tensor, Tensor | None]:
    layer = layer_of(module)
    if not layer.watched:
        mixer = mixers_of(module)[turn]
        return cast("tuple[Tensor, Tensor | None]", mixer(attention, value, dropout, need_weights))
    mixing, weights = layer.mixings[turn], attention.matrices() if need_weights else None
    if isinstance(mixing, RowMixing):
        return mixing.mix(attention, value), weights
    return mixing(attention.matrices(), value, attention.mask), weights


def cache_error(found: str) -> PapaError:
    """The error for tokens that are not in the batch."""
    return PapaError(
        f"{found}: earlier tokens come from a cache or a prefix, which swapped attention does not know. Pass "
        "use_cache=False (generate takes it too), or call restore_attention(encoder) first."
    )


def pick_heads(tensor: Tensor, heads: Sequence[int]) -> Tensor:
    """The given heads of a tensor (B, heads, ...), which has all heads or just these."""
    if tensor.shape[1] == len(heads):
        return tensor
    return take_heads(tensor, heads, dim=1) if heads else tensor[:, :0]


def _keys(key: Tensor, heads: DynamicHeads, group: int) -> Tensor:
    """One key head for each dynamic head; in grouped-query attention several share one."""
    groups = heads.groups(group)
    key = pick_heads(key, groups)
    if group == 1 or not groups:
        return key
    return torch.stack([key[:, groups.index(head // group)] for head in heads.dynamic], dim=1)
