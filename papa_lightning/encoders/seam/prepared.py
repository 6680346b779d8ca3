"""A layer with constant heads, prepared for forwards without gradients on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from papa_lightning.attention import ConstantHeads, DynamicAttention
from papa_lightning.attention.functional import dynamic_attention
from papa_lightning.encoders.projections.joint import JointProjection
from papa_lightning.encoders.seam.forward import ReadMask

if TYPE_CHECKING:
    from papa_lightning.kernels.constant.product import RepeatedProduct


class PreparedLayer:
    """Projections and mixing of a layer, which are looked up once.

    To look them up at every call takes as long as several kernels, and batches that are small for a device wait for it.

    Args:
        joint: The projections of the layer.
        mixer: The mixer of the layer.
        like: A tensor with the dtype and the device of the values.
    """

    def __init__(self, joint: JointProjection, mixer: ConstantHeads, like: Tensor) -> None:
        self.dtype = like.dtype  # of queries, keys and values
        self._joint, self._mixer, some = joint, mixer, len(mixer.heads.dynamic)
        self._groups = (some, some, some, mixer.heads.num_heads - some)
        self._rows = joint.rows(mixer.heads.dynamic) if some else None
        plain = type(mixer) is ConstantHeads  # another class may mix in another way
        self._product: RepeatedProduct | None = mixer.repeated_product(like) if plain else None

    @classmethod
    def of(cls, joint: JointProjection, mixer: ConstantHeads, hidden_states: Tensor) -> PreparedLayer:
        """The layer for hidden states (B, T, hidden), kept until parameters, constants or dtypes change."""
        dynamic, device, dtype = mixer.heads.dynamic, hidden_states.device, hidden_states.dtype
        if device.type != "meta" and torch.is_autocast_enabled(device.type):  # which knows no such device
            dtype = torch.get_autocast_dtype(device.type)
        found: PreparedLayer = joint.prepared.recall(
            lambda: cls(joint, mixer, hidden_states.new_empty(0, dtype=dtype)),
            [*joint.parameters(dynamic), mixer.constants],
            (dynamic, device, dtype),
            joint.training,
        )
        return found

    def mix(self, hidden_states: Tensor, read: ReadMask, size: int, scaling: float) -> Tensor:
        """Mixed values (B, T, H h).

        Args:
            hidden_states: (B, T, hidden).
            read: The mask of the batch.
            size: h, size of a head.
            scaling: Factor of the scores.
        """
        mask, slots, fused = read
        rows = self._joint.rows_of_values() if self._rows is None else self._rows
        projected = F.linear(hidden_states, *rows)
        by_head = projected.view(*projected.shape[:-1], -1, size).transpose(1, 2)
        if self._product is None or slots is not None or by_head.shape[2] > self._mixer.certain_length:
            query, key, own, fixed = by_head.split_with_sizes(self._groups, 1)
            attention = DynamicAttention(query, key, mask, scaling, None, slots, fused)
            return self._mixer.mix_parts(attention, None if self._rows is None else own, fixed).flatten(2)
        dynamic = None
        if self._rows is not None:
            query, key, own, by_head = by_head.split_with_sizes(self._groups, 1)
            dynamic = dynamic_attention(query, key, own, mask, scaling, fused=fused)
        return self._product(self._mixer.constants, by_head, mask, dynamic).flatten(2)


def takes_prepared(hidden_states: Tensor) -> bool:
    """Whether a forward is one without gradients on a device, of a tensor that is no stand-in."""
    return (
        hidden_states.device.type != "cpu"
        and not torch.is_grad_enabled()
        and type(hidden_states) is Tensor
        and not torch._C._functorch.is_functorch_wrapped_tensor(hidden_states)
    )
