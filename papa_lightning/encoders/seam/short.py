"""A short forward of self-attention through transformers' interface: projections, mixing, result.

Where a batch is small for its device, a layer takes as long as the calls of functions on the way to its kernels.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers import PretrainedConfig

from papa_lightning.attention import ConstantHeads, DynamicAttention, TokenMixer, declares
from papa_lightning.encoders.projections.joint import JointProjection, is_hooked
from papa_lightning.encoders.seam.inline import adopt
from papa_lightning.encoders.seam.interface import wants_weights
from papa_lightning.encoders.seam.layer import LAYER, TouchedLayer, check_padding
from papa_lightning.encoders.seam.slots import POSITIONS


class ShortForward(nn.Module):
    """Base of subclasses of a family's self-attention module, which get a short forward beside that of the original.

    It gives what the original's gives, by the same products in the same order, and is taken only where that is all
    that is wanted: outside graphs and training, in a layer of kind "constant" that nobody looks into, whose projections
    are those of the swap. Everything else goes through transformers' own forward.
    """

    #: Size h of a head, and factor of the scores; families have them under these names.
    attention_head_size: int
    scaling: float

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Attention of one layer: the output (B, T, hidden) and the matrices or None, as the original returns them."""
        mixed = None
        if not args and not torch.compiler.is_compiling():
            mixed = self._mixed(hidden_states, attention_mask, kwargs)
        if mixed is None:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        return self.finish(mixed), None

    def finish(self, mixed: Tensor) -> Tensor:
        """What the original does with mixed values (B, T, H h) before it returns them; nothing by default."""
        return mixed

    def _mixed(self, hidden_states: Tensor, attention_mask: Tensor | None, kwargs: Mapping[str, Any]) -> Tensor | None:
        """The mixed values (B, T, H h), or None where the way is that of the original."""
        layer, mixer = cast("TouchedLayer | None", vars(self).get(LAYER)), self._modules.get("papa")
        if layer is None or mixer is None or self.training or not _suits(layer, mixer) or _asks(layer, kwargs):
            return None
        joint, mixer = cast(JointProjection, layer.joint), cast(ConstantHeads, mixer)
        if not joint.serves(self._modules):
            return None
        positions, dynamic = kwargs.get(POSITIONS), mixer.heads.dynamic
        if mixer.checks_mask:
            check_padding(layer, attention_mask, positions)
        query, key, own, fixed = joint.by_head(hidden_states, dynamic, self.attention_head_size)
        mask = layer.batch.key_mask(attention_mask)
        slots, fused = layer.batch.slots(mask, layer.slots, positions), layer.batch.fused_mask(mask, query.dtype)
        attention = DynamicAttention(query, key, mask, self.scaling, None, slots, fused)
        return mixer.mix_parts(attention, own if dynamic else None, fixed).flatten(2)


def shorten(kind: type[ShortForward] | None, module: nn.Module) -> nn.Module:
    """The module that takes the place of one of the original class; the same where somebody else changed its forward.

    Args:
        kind: A subclass of the module's class; None or another for none.
        module: A self-attention module.
    """
    changed = "forward" in vars(module) or module._compiled_call_impl is not None
    return module if kind is None or changed or not issubclass(kind, type(module)) else adopt(kind, module)


def _suits(layer: TouchedLayer, mixer: nn.Module) -> bool:
    """Whether a layer has a mixer for the short way, which nobody observes, and no limit of its reach."""
    if layer.joint is None or layer.watched or not layer.reach.unlimited or _has_any_global_hook():  # type: ignore[no-untyped-call]
        return False
    held = cast(TokenMixer, mixer)
    return declares(held, "mixes_parts") and held.replaces_attention and not is_hooked(held)


def _asks(layer: TouchedLayer, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call asks for more than the output, or brings more than tokens and their positions."""
    if kwargs.get("past_key_values") is not None or kwargs.get("position_bias") is not None:
        return True
    return wants_weights(cast(PretrainedConfig, layer.config), kwargs)
