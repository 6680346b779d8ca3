"""A small pre-norm Transformer on tokens or image patches, and its weights in another number of heads."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from papa_lightning.errors import PapaError
from papa_lightning.from_scratch.configuration import TransformerConfig, check_heads


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Dot-product attention written out, ``softmax(Q K^T scaling + mask) V``; transformers finds it by its name."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    attention = F.dropout(F.softmax(scores, dim=-1), dropout, training=module.training)
    return torch.matmul(attention, value).transpose(1, 2), attention


class TransformerAttention(nn.Module):
    """Self-attention that dispatches through transformers' attention interface."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.is_causal = config.causal
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> tuple[Tensor, Any]:
        """Mixed tokens (B, T, d), and the attention matrices where the implementation has them."""
        rows, head_size = hidden_states.shape[:-1], self.config.hidden_size // self.num_heads
        query, key, value = (
            # The swapped query and key projections have fewer heads.
            projection(hidden_states).view(*rows, -1, head_size).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend: Callable[..., tuple[Tensor, Any]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        mixed, attention = attend(
            self, query, key, value, attention_mask, scaling=head_size**-0.5, dropout=dropout, **kwargs
        )
        return self.o_proj(mixed.reshape(*rows, -1)), attention


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = TransformerAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward_in = nn.Linear(config.hidden_size, config.intermediate_size)
        self.feed_forward_out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> tuple[Tensor, Any]:
        """Hidden states (B, T, d) of the next level, and the attention matrices where there are any."""
        mixed, attention = self.attention(self.attention_norm(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.dropout(mixed)
        inner = F.gelu(self.feed_forward_in(self.feed_forward_norm(hidden_states)))
        return hidden_states + self.dropout(self.feed_forward_out(inner)), attention


class TransformerModel(PreTrainedModel):
    """A pre-norm Transformer of tokens or image patches, causal or not, with learned positions and a norm at the end.

    It is an encoder like those of transformers: `swap_attention`, `calibrate`, the callbacks and the rankings take it,
    ``save_pretrained`` writes it and ``AutoModel.from_pretrained`` reads it.

    Args:
        config: The sizes of the model.

    Example:
        >>> config = TransformerConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, causal=True)
        >>> model = TransformerModel(config)
        >>> model(input_ids=torch.tensor([[7, 8, 9]])).last_hidden_state.shape
        torch.Size([1, 3, 16])
    """

    config_class = TransformerConfig
    config: TransformerConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["TransformerLayer"]  # noqa: RUF012 - its type in transformers
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        if config.grid is None:
            self.token_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        else:
            self.main_input_name = "pixel_values"
            side = config.patch_size
            self.patch_embeddings = nn.Conv2d(config.num_channels, config.hidden_size, side, stride=side)
        self.position_embeddings = nn.Parameter(torch.empty(1, config.max_position_embeddings, config.hidden_size))
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList([TransformerLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if module is self:
            init.normal_(self.position_embeddings, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        """The table of tokens, or the map of patches."""
        return self.token_embeddings if self.config.grid is None else self.patch_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Exchange the table of tokens, or the map of patches."""
        setattr(self, "token_embeddings" if self.config.grid is None else "patch_embeddings", value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Last hidden states (B, T, d) of tokens, embeddings or images; if asked L+1 levels, the last one normed."""
        hidden_states = self._embed(input_ids, inputs_embeds, pixel_values)
        inputs: dict[str, Any] = {"inputs_embeds": hidden_states, "attention_mask": attention_mask}
        if self.config.causal:
            mask = create_causal_mask(self.config, past_key_values=None, **inputs)
        else:
            mask = create_bidirectional_mask(self.config, **inputs)
        wants_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        options = {"output_attentions": True} if wants_attentions else {}
        levels, attentions = [hidden_states], []
        for layer in self.layers:
            hidden_states, attention = layer(hidden_states, mask, **options)
            levels.append(hidden_states)
            attentions.append(attention)
        levels[-1] = self.norm(hidden_states)
        wants_levels = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = BaseModelOutput(
            last_hidden_state=levels[-1],
            hidden_states=tuple(levels) if wants_levels else None,
            attentions=tuple(attentions) if wants_attentions else None,
        )
        return output.to_tuple() if return_dict is False else output

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, pixel_values: Tensor | None) -> Tensor:
        """Tokens or patches with their positions, (B, T, d)."""
        if self.config.image_size is not None:
            expected = (self.config.num_channels, *self.config.image_size)
            found = None if pixel_values is None else tuple(pixel_values.shape[1:])
            if found != expected:
                raise PapaError(
                    f"pixel_values has images of shape {found}, but the model takes {expected} (channels, height, "
                    "width): pass image_size and num_channels of the data, or resize the images."
                )
            embedded = self.patch_embeddings(pixel_values).flatten(2).transpose(1, 2)
        elif (input_ids is None) == (inputs_embeds is None):
            raise PapaError("the model takes tokens: pass either input_ids or inputs_embeds.")
        else:
            embedded = self.token_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        length, positions = embedded.shape[1], self.config.max_position_embeddings
        if length > positions:
            raise PapaError(
                f"the sequences are {length} tokens long, but the model has positions for {positions}: cut them, or "
                "build it with a larger max_position_embeddings."
            )
        hidden_states: Tensor = self.dropout(embedded + self.position_embeddings[:, :length])
        return hidden_states


Model = TypeVar("Model", bound=nn.Module)


def resplit_heads(model: Model, heads: int) -> Model:
    """Split the weights of a model into another number of heads, in place.

    Head i of H takes the rows i d/H to (i+1) d/H of the query, key and value projections: parameters and
    multiply-accumulates stay, but the function changes, so that a trained model has to be trained further.

    Args:
        model: A :class:`TransformerModel`, or a module that holds one, such as a task.
        heads: H, a divisor of d.

    Returns:
        The model that was passed.

    Raises:
        PapaError: When there is no such model, its attention is swapped, or H does not divide d.

    Example:
        >>> model = TransformerModel(TransformerConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=12))
        >>> resplit_heads(model, 1).config.num_attention_heads
        1
    """
    transformers = [part for part in model.modules() if isinstance(part, TransformerModel)]
    if len(transformers) != 1:
        raise PapaError(
            f"{type(model).__name__} holds {len(transformers)} models of papa_lightning.from_scratch, but must hold "
            "one: only models made here know how their heads are split."
        )
    transformer = transformers[0]
    layers = [part for part in transformer.modules() if isinstance(part, TransformerAttention)]
    if any("papa" in layer._modules for layer in layers):
        raise PapaError("the attention of the model is swapped: call restore_attention(model) first.")
    check_heads(transformer.config.hidden_size, heads)
    transformer.config.num_attention_heads = heads
    for layer in layers:
        layer.num_heads = heads
    return model
