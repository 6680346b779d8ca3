"""DeBERTa, MPNet and RoFormer: attention by relative positions, inside the module.

DeBERTa's scores are ``(Q K^T + c2p + p2c) / sqrt(h (1 + number of terms))`` (He et al. 2021, arXiv 2006.03654).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.deberta import modeling_deberta as v1
from transformers.models.deberta_v2 import modeling_deberta_v2 as v2
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention
from transformers.models.roformer.modeling_roformer import RoFormerSelfAttention

from papa_lightning.encoders.projections.cut import InterleavedProjection
from papa_lightning.encoders.seam.inline import InlineAttention
from papa_lightning.encoders.seam.slots import POSITIONS, Positions
from papa_lightning.errors import UnsupportedEncoderError


class SwappedDebertaSelfAttention(InlineAttention, v1.DisentangledSelfAttention):
    """DeBERTa's self-attention with exchangeable heads."""

    @staticmethod
    def check(original: nn.Module) -> None:
        """Refuse talking heads, which mix the matrices of all heads."""
        if original.talking_head:
            raise UnsupportedEncoderError(
                f"the encoder's configuration has talking_head, a variant of {type(original).__name__} whose heads "
                "cannot be exchanged one by one: use an encoder without it."
            )

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        """Split into the dynamic heads, for the original's method for the position terms."""
        return super().transpose_for_scores(x) if self.is_stock else self.split_dynamic(x)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Any = None,
        rel_embeddings: Any = None,
        papa_positions: Positions | None = None,
    ) -> Any:
        """Attention of one layer; arguments and results are those of the original."""
        if self.is_stock:
            return super().forward(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        query, key, value = self._project(hidden_states)
        terms = len(self.pos_att_type)
        scaling, bias = (self.attention_head_size * (1 + terms)) ** -0.5, None
        if self.relative_attention and terms and query.shape[1] and self.uses_scores:
            positions = self.pos_dropout(rel_embeddings)
            bias = self.disentangled_att_bias(query * scaling, key, relative_pos, positions, 1 + terms)
        return self.attend(
            query, key, value, attention_mask.bool(), scaling, self.dropout, output_attentions, bias, papa_positions
        )

    def disentangled_att_bias(
        self, query_layer: Tensor, key_layer: Tensor, relative_pos: Tensor, rel_embeddings: Tensor, scale_factor: int
    ) -> Any:
        """The position terms; the original's distances end at the number of tokens, those of moved tokens do not."""
        if relative_pos.dim() == 3:
            return super().disentangled_att_bias(query_layer, key_layer, relative_pos, rel_embeddings, scale_factor)
        middle = self.max_relative_positions
        span = min(int(relative_pos.max()) + 1, middle)
        table, score = rel_embeddings[None, middle - span : middle + span], torch.zeros_like(query_layer[..., :1])
        distances = relative_pos.expand(-1, query_layer.shape[1], -1, -1)
        if "c2p" in self.pos_att_type:
            terms = query_layer @ self.transpose_for_scores(self.pos_proj(table)).transpose(2, 3)
            score = score + terms.gather(3, (span + distances).clamp(0, 2 * span - 1))
        if "p2c" in self.pos_att_type:
            positions = self.transpose_for_scores(self.pos_q_proj(table))
            terms = key_layer @ (positions / v1.scaled_size_sqrt(positions, scale_factor)).transpose(2, 3)
            score = score + terms.gather(3, (span - distances).clamp(0, 2 * span - 1)).transpose(2, 3)
        return score

    def _project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(self.in_proj, InterleavedProjection) and self.in_proj.cuts:
            query, key, value = map(self.split_heads, self.in_proj.split_heads(hidden_states))
        else:
            parts = self.in_proj(hidden_states).unflatten(-1, (-1, 3 * self.attention_head_size)).chunk(3, dim=-1)
            query, key, value = (part.flatten(2) for part in parts)
            query, key, value = self.split_dynamic(query), self.split_dynamic(key), self.split_heads(value)
        query = query + self.split_dynamic(self.q_bias[None, None])
        return query, key, value + self.split_heads(self.v_bias[None, None])


class SwappedDebertaV2SelfAttention(InlineAttention, v2.DisentangledSelfAttention):
    """DeBERTa-v2's and v3's self-attention with exchangeable heads; the original folds them into the batch."""

    @property
    def num_attention_heads(self) -> int:
        """The number of dynamic heads, by which the original's method for the position terms repeats positions."""
        dynamic = self.dynamic
        return self.__dict__["num_attention_heads"] if dynamic is None else len(dynamic)

    def transpose_for_scores(self, x: Tensor, attention_heads: int) -> Tensor:
        """Split (B, T, heads x h) into the dynamic heads, (B x heads, T, h)."""
        if self.is_stock:
            return super().transpose_for_scores(x, attention_heads)
        return self.split_dynamic(x).flatten(0, 1)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Any = None,
        rel_embeddings: Any = None,
        papa_positions: Positions | None = None,
    ) -> Any:
        """Attention of one layer; arguments and results are those of the original."""
        if self.is_stock:
            return super().forward(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        query = self.split_dynamic(self.query_proj(hidden_states if query_states is None else query_states))
        key, value = self.split_dynamic(self.key_proj(hidden_states)), self.split_heads(self.value_proj(hidden_states))
        terms = sum(term in self.pos_att_type for term in ("c2p", "p2c"))
        scaling, bias = (self.attention_head_size * (1 + terms)) ** -0.5, None
        if self.relative_attention and terms and query.shape[1] and self.uses_scores:
            folded = (query.flatten(0, 1), key.flatten(0, 1))
            positions = self.pos_dropout(rel_embeddings)
            bias = self.disentangled_attention_bias(*folded, relative_pos, positions, 1 + terms)
            bias = bias.unflatten(0, query.shape[:2])
        return self.attend(
            query, key, value, attention_mask.bool(), scaling, self.dropout, output_attentions, bias, papa_positions
        )


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
        query, key = self.split_dynamic(self.q(hidden_states)), self.split_dynamic(self.k(hidden_states))
        value, scaling = self.split_heads(self.v(hidden_states)), self.attention_head_size**-0.5
        positions = kwargs.get(POSITIONS)
        mixed, weights = self.attend(
            query, key, value, attention_mask, scaling, self.dropout, output_attentions, position_bias, positions
        )
        return (self.o(mixed), weights) if output_attentions else (self.o(mixed),)


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
            others = (encoder_hidden_states, past_key_values, output_attentions)
            return super().forward(hidden_states, attention_mask, sinusoidal_pos, *others, **kwargs)
        query, key = self.split_dynamic(self.query(hidden_states)), self.split_dynamic(self.key(hidden_states))
        value, positions = self.split_heads(self.value(hidden_states)), kwargs.get(POSITIONS)
        if sinusoidal_pos is not None:
            rotate = self.apply_rotary_position_embeddings
            if positions is None and not self.uses_scores:
                sinusoidal_pos = self.by_slot(sinusoidal_pos, attention_mask)
            query, key = rotate(sinusoidal_pos, query, key)
            if self.rotary_value:
                value, _ = rotate(sinusoidal_pos, value, value)
        scaling = self.attention_head_size**-0.5
        return self.attend(
            query, key, value, attention_mask, scaling, self.dropout, output_attentions, positions=positions
        )
