"""ALBERT: one attention module serves several layers. Which of them runs comes with the call, as an argument.

The encoder's loop over the layers is the only place that knows it. It hands it on through the arguments that the layers
pass down to their attention, so that forwards of several threads, layers that run again for a backward pass, and
forwards that an error ended know it alike.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.albert.modeling_albert import AlbertAttention, AlbertTransformer

from papa_lightning.attention import DynamicHeads
from papa_lightning.encoders.projections.cut import HeadProjection
from papa_lightning.encoders.seam.inline import InlineAttention
from papa_lightning.encoders.seam.interface import check_implementation, matrices_of, wants_weights
from papa_lightning.encoders.seam.layer import heads_of, is_stock, layers_served
from papa_lightning.encoders.seam.slots import POSITIONS
from papa_lightning.errors import PapaError


def layers_in_order(encoder: nn.Module) -> list[nn.Module]:
    """The self-attention modules in the order in which a pass runs them, the same one again and again.

    Args:
        encoder: An AlbertModel.
    """
    groups: Any = encoder.get_submodule("encoder.albert_layer_groups")
    return [layer.attention for group in groups_in_order(encoder.config) for layer in groups[group].albert_layers]


def groups_in_order(config: Any) -> list[int]:
    """The number of the group of layers that runs in each round of an ALBERT.

    Args:
        config: Of the encoder.
    """
    repeats = config.num_hidden_layers / config.num_hidden_groups
    return [int(number / repeats) for number in range(config.num_hidden_layers)]


class NumberedTransformer(AlbertTransformer):
    """ALBERT's loop over its layers, which also tells each module the how-manieth of its layers runs."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> BaseModelOutput:
        """With the arguments and results of the original."""
        hidden_states, groups = self.embedding_hidden_mapping_in(hidden_states), groups_in_order(self.config)
        for number, group in enumerate(groups):
            turn = groups[:number].count(group)
            hidden_states = self.albert_layer_groups[group](hidden_states, attention_mask, papa_turn=turn, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class SwappedAlbertAttention(InlineAttention, AlbertAttention):
    """ALBERT's attention with exchangeable heads, those of each layer that it serves its own."""

    hears_positions = True

    @staticmethod
    def check(original: nn.Module) -> None:
        """Refuse an implementation whose masks cannot be read."""
        check_implementation(cast(PretrainedConfig, original.config))

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, papa_turn: int | None = None, **kwargs: Any
    ) -> Any:
        """With the arguments and results of the original.

        Args:
            hidden_states: (B, T, hidden).
            attention_mask: What the encoder hands to its layers.
            papa_turn: Which of the layers that the module serves runs; see :class:`NumberedTransformer`.
            **kwargs: Whatever else the encoder passes on.
        """
        turn, need_weights = self._known(papa_turn), wants_weights(self.config, kwargs)
        positions = kwargs.pop(POSITIONS, None)
        if is_stock(self, turn) and (not need_weights or self.config._attn_implementation == "eager"):
            return super().forward(hidden_states, attention_mask, **kwargs)
        heads = heads_of(self, turn)
        query, key = (self._project(layer, hidden_states, heads) for layer in (self.query, self.key))
        if is_stock(self, turn):
            output, _ = super().forward(hidden_states, attention_mask, **{**kwargs, "output_attentions": False})
            return output, matrices_of(self, query, key, attention_mask, self.scaling)
        value, dropout = self.split_heads(self.value(hidden_states)), self.attention_dropout
        mixed, weights = self.attend(
            query, key, value, attention_mask, self.scaling, dropout, need_weights, None, positions, turn
        )
        return self.LayerNorm(hidden_states + self.output_dropout(self.dense(mixed))), weights

    def _known(self, turn: int | None) -> int:
        if turn is None and layers_served(self) > 1:
            raise PapaError(
                f"a layer of an ALBERT was called by itself, but it serves {layers_served(self)} layers with attention "
                "of their own: call the encoder, which tells it which of them runs, or restore_attention(encoder)."
            )
        return turn or 0

    def _project(self, layer: nn.Module, hidden_states: Tensor, heads: DynamicHeads | None) -> Tensor:
        """(B, heads, T, h): of the dynamic heads, or of all where an adapter took the layer in."""
        cut = heads is not None and isinstance(layer, HeadProjection) and "forward" not in layer.__dict__
        return self.split_heads(layer(hidden_states, heads) if cut else layer(hidden_states))


def number_layers(encoder: nn.Module) -> None:
    """Let the modules of an ALBERT be told from now on which of their layers runs.

    Args:
        encoder: The bare encoder.
    """
    encoder.get_submodule("encoder").__class__ = NumberedTransformer


def stop_numbering(encoder: nn.Module) -> None:
    """Undo :func:`number_layers`."""
    encoder.get_submodule("encoder").__class__ = AlbertTransformer
