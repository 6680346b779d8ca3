"""ALBERT: one attention module serves several layers; an argument of the call, and no counter, says which runs."""

from typing import Any, cast

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.albert.modeling_albert import AlbertAttention, AlbertTransformer

from papa_lightning.attention import DynamicHeads
from papa_lightning.encoders.projections.cut import HeadProjection
from papa_lightning.encoders.seam.inline import InlineAttention, adopt, release
from papa_lightning.encoders.seam.interface import check_implementation, matrices_of, wants_weights
from papa_lightning.encoders.seam.layer import heads_of, is_stock, layers_served
from papa_lightning.encoders.seam.slots import POSITIONS
from papa_lightning.errors import PapaError


def layers_in_order(encoder: nn.Module) -> list[nn.Module]:
    """The self-attention modules of an AlbertModel in the order in which they run, each as often as it runs."""
    groups: Any = encoder.get_submodule("encoder.albert_layer_groups")
    return [layer.attention for group in _groups_in_order(encoder.config) for layer in groups[group].albert_layers]


def _groups_in_order(config: Any) -> list[int]:
    """The number of the layer group that runs in each iteration of the encoder's loop."""
    repeats = config.num_hidden_layers / config.num_hidden_groups
    return [int(number / repeats) for number in range(config.num_hidden_layers)]


class NumberedTransformer(AlbertTransformer):
    """ALBERT's loop over its layers, which also passes on how often the group ran before in this forward."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> BaseModelOutput:
        """Run all layers; arguments and results are those of the original."""
        hidden_states, groups = self.embedding_hidden_mapping_in(hidden_states), _groups_in_order(self.config)
        for number, group in enumerate(groups):
            turn = groups[:number].count(group)
            hidden_states = self.albert_layer_groups[group](hidden_states, attention_mask, papa_turn=turn, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class SwappedAlbertAttention(InlineAttention, AlbertAttention):
    """ALBERT's attention with exchangeable heads of their own for each layer that the module serves."""

    hears_positions = True

    @staticmethod
    def check(original: nn.Module) -> None:
        """Refuse an implementation whose masks cannot be read."""
        check_implementation(cast(PretrainedConfig, original.config))

    @classmethod
    def prepare_encoder(cls, encoder: nn.Module) -> None:
        """Put a :class:`NumberedTransformer` in the place of the encoder's loop."""
        encoder.set_submodule("encoder", adopt(NumberedTransformer, encoder.get_submodule("encoder")))

    @classmethod
    def reset_encoder(cls, encoder: nn.Module) -> None:
        """Put the original loop back."""
        loop = encoder.get_submodule("encoder")
        if isinstance(loop, NumberedTransformer):
            encoder.set_submodule("encoder", release(loop))

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, papa_turn: int | None = None, **kwargs: Any
    ) -> Any:
        """Attention of one layer, as the original; ``papa_turn`` is the layer's number among those of the module."""
        if papa_turn is None and layers_served(self) > 1:
            raise PapaError(
                f"a layer of an ALBERT was called by itself, but it serves {layers_served(self)} layers with attention "
                "of their own: call the encoder, which passes on which of them runs, or restore_attention(encoder)."
            )
        turn, need_weights = papa_turn or 0, wants_weights(self.config, kwargs)
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

    def _project(self, layer: nn.Module, hidden_states: Tensor, heads: DynamicHeads | None) -> Tensor:
        """The projection (B, heads, T, h) of the dynamic heads, or of all where an adapter wraps the layer."""
        cut = heads is not None and isinstance(layer, HeadProjection) and "forward" not in layer.__dict__
        return self.split_heads(layer(hidden_states, heads) if cut else layer(hidden_states))
