"""A short forward of self-attention through transformers' interface: projections, mixing, result.

Where a batch is small for its device, a layer takes as long as the calls of functions on the way to its kernels.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from papa_lightning.attention import ConstantHeads, DynamicAttention, declares
from papa_lightning.encoders.projections.joint import JointProjection, is_hooked
from papa_lightning.encoders.seam.inline import adopt
from papa_lightning.encoders.seam.interface import wants_weights
from papa_lightning.encoders.seam.layer import LAYER, TouchedLayer, check_padding
from papa_lightning.encoders.seam.prepared import PreparedLayer, takes_prepared
from papa_lightning.encoders.seam.slots import POSITIONS, Positions

#: Arguments of a call that are not for functions of transformers, or are given anyway.
_OURS = (POSITIONS, "papa_weights", "output_attentions", "past_key_values")


class ShortForward(nn.Module):
    """Base of subclasses of a family's self-attention module, which get a short forward beside that of the original.

    It gives what the original's gives, by the same products in the same order, and is taken only where that is all
    that is wanted: outside graphs and training, in a layer of kind "constant" that nobody looks into. Everything else
    goes through transformers' own forward.
    """

    #: Size h of a head, and factor of the scores; families have them under these names.
    attention_head_size: int
    scaling: float

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Attention of one layer: the output (B, T, hidden) and the matrices or None, as the original returns them."""
        mixed = None
        if not args and not self.training and not torch.compiler.is_compiling():
            mixed = self._mixed(hidden_states, attention_mask, kwargs)
        if mixed is None:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        return self.finish(mixed), None

    def finish(self, mixed: Tensor) -> Tensor:
        """What the original does with mixed values (B, T, H h) before it returns them; nothing by default."""
        return mixed

    def _mixed(self, hidden_states: Tensor, attention_mask: Tensor | None, kwargs: Mapping[str, Any]) -> Tensor | None:
        """The mixed values (B, T, H h), or None where the way is that of the original."""
        layer = cast("TouchedLayer | None", vars(self).get(LAYER))
        if layer is None or layer.joint is None or layer.watched or _asks(layer, kwargs):
            return None
        if not layer.joint.serves(self._modules) or _has_any_global_hook():  # type: ignore[no-untyped-call]
            return None
        mixer = cast("ConstantHeads | None", self._modules.get("papa"))
        if mixer is None:
            return None
        if not mixer.replaces_attention:
            return self._stock(layer, layer.joint, hidden_states, attention_mask, kwargs)
        if not layer.reach.unlimited or not declares(mixer, "mixes_parts") or is_hooked(mixer):
            return None
        positions = kwargs.get(POSITIONS)
        if mixer.checks_mask:
            check_padding(layer, attention_mask, positions)
        if takes_prepared(hidden_states):
            prepared = PreparedLayer.of(layer.joint, mixer, hidden_states)
            read = layer.batch.read(attention_mask, layer.slots, positions, prepared.dtype)
            return prepared.mix(hidden_states, read, self.attention_head_size, self.scaling)
        return self._constant(layer, layer.joint, mixer, hidden_states, attention_mask, positions)

    def _stock(
        self,
        layer: TouchedLayer,
        joint: JointProjection,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        kwargs: Mapping[str, Any],
    ) -> Tensor | None:
        """The mixed values of a layer of the original encoder, or None for an attention function of its family."""
        implementation = cast(PretrainedConfig, layer.config)._attn_implementation
        if implementation not in ALL_ATTENTION_FUNCTIONS:
            return None
        function = cast(Any, ALL_ATTENTION_FUNCTIONS[implementation])
        query, key, value = joint.whole(hidden_states, self.attention_head_size)
        others = {name: held for name, held in kwargs.items() if name not in _OURS}
        given = {"dropout": 0.0, "scaling": self.scaling, "output_attentions": False, **others}
        mixed: Tensor = function(self, query, key, value, attention_mask, **given)[0]
        return mixed.flatten(2)

    def _constant(
        self,
        layer: TouchedLayer,
        joint: JointProjection,
        mixer: ConstantHeads,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        positions: Positions | None,
    ) -> Tensor:
        """The mixed values of a layer with constant heads."""
        dynamic = mixer.heads.dynamic
        query, key, own, fixed = joint.by_head(hidden_states, dynamic, self.attention_head_size)
        mask, slots, fused = layer.batch.read(attention_mask, layer.slots, positions, query.dtype)
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


def _asks(layer: TouchedLayer, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call asks for more than the output, or brings more than tokens and their positions."""
    if kwargs.get("past_key_values") is not None or kwargs.get("position_bias") is not None:
        return True
    return wants_weights(cast(PretrainedConfig, layer.config), kwargs)
