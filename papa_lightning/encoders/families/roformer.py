"""RoFormer: rotary positions, and attention inside the module."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.roformer.modeling_roformer import RoFormerSelfAttention

from papa_lightning.encoders.seam.inline import InlineAttention


class SwappedRoFormerSelfAttention(InlineAttention, RoFormerSelfAttention):
    """RoFormer's self-attention with exchangeable heads."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        sinusoidal_pos: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        past_key_values: Any = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Attention of one layer; arguments and results are those of the original."""
        if self.is_stock:
            return super().forward(
                hidden_states,
                attention_mask,
                sinusoidal_pos,
                encoder_hidden_states,
                past_key_values,
                output_attentions,
                **kwargs,
            )
        query, key = self.split_dynamic(self.query(hidden_states)), self.split_dynamic(self.key(hidden_states))
        value = self.split_heads(self.value(hidden_states))
        if sinusoidal_pos is not None:
            rotate = self.apply_rotary_position_embeddings
            if not self.uses_scores:
                sinusoidal_pos = self.by_slot(sinusoidal_pos, attention_mask)
            query, key = rotate(sinusoidal_pos, query, key)
            if self.rotary_value:
                value, _ = rotate(sinusoidal_pos, value, value)
        scaling = self.attention_head_size**-0.5
        return self.attend(query, key, value, attention_mask, scaling, self.dropout, output_attentions)
