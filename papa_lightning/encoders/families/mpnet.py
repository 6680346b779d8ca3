"""MPNet: attention with a relative position bias, inside the module."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from papa_lightning.encoders.seam.inline import InlineAttention


class SwappedMPNetSelfAttention(InlineAttention, MPNetSelfAttention):
    """MPNet's self-attention with exchangeable heads; the bias is made once for all layers, by the encoder."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Attention of one layer; arguments and results are those of the original."""
        if self.is_stock:
            return super().forward(hidden_states, attention_mask, position_bias, output_attentions, **kwargs)
        mixed, weights = self.attend(
            self.split_dynamic(self.q(hidden_states)),
            self.split_dynamic(self.k(hidden_states)),
            self.split_heads(self.v(hidden_states)),
            attention_mask,
            self.attention_head_size**-0.5,
            self.dropout,
            output_attentions,
            position_bias,
        )
        return (self.o(mixed), weights) if output_attentions else (self.o(mixed),)
