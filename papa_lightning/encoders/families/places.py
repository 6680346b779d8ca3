"""Arguments that encoders make from the order of the tensor, for tokens that were moved in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from papa_lightning.encoders.seam.inline import InlineAttention


@dataclass(frozen=True)
class PlacedArgument:
    """An argument of some modules, from the places of the tokens of a batch.

    Args:
        modules: The modules, which are called with the argument by its name.
        name: Name of the argument.
        value: Function of a module that gives the argument.
    """

    modules: Sequence[nn.Module]
    name: str
    value: Callable[[Any], Any]


def deberta(encoder: Any, places: Tensor) -> PlacedArgument:
    """DeBERTa's distances, (B, 1, n, n), a shape by which its opened layers know that tokens were moved."""
    distances = _distances(places)[:, None]
    return PlacedArgument([encoder.encoder], "relative_pos", lambda module: distances)


def deberta_v2(encoder: Any, places: Tensor) -> PlacedArgument:
    """DeBERTa v2's buckets of distances, (1, B H, n, n), the only shape in which its layers take those of sequences."""
    loop, buckets = encoder.encoder, _distances(places)
    if getattr(loop, "position_buckets", -1) > 0:
        buckets = make_log_bucket_position(buckets, loop.position_buckets, loop.max_relative_positions).long()
    layers = [layer.attention.self for layer in loop.layer] if loop.relative_attention else []
    return PlacedArgument(
        layers, "relative_pos", lambda layer: buckets.repeat_interleave(layer.num_attention_heads, dim=0)[None]
    )


def mpnet(encoder: Any, places: Tensor) -> PlacedArgument:
    """MPNet's position bias, (B, H, n, n)."""
    loop = encoder.encoder
    bias = loop.relative_attention_bias(loop.relative_position_bucket(-_distances(places))).permute(0, 3, 1, 2)
    return PlacedArgument([layer.attention for layer in loop.layer], "position_bias", lambda layer: bias)


def roformer(encoder: Any, places: Tensor) -> PlacedArgument:
    """RoFormer's sines and cosines, (B, 1, n, h); kinds without scores have them by slot, see InlineAttention."""
    table = encoder.encoder.embed_positions

    def value(layer: Any) -> Tensor:
        by_slot = isinstance(layer, InlineAttention) and not layer.uses_scores and not layer.rotary_value
        numbers = (places - places[:, :1]).clamp(min=0) if by_slot else places  # below 0 for padding alone
        rows: Tensor = table(places.shape, position_ids=numbers)
        return rows[:, None]

    return PlacedArgument([layer.attention.self for layer in encoder.encoder.layer], "sinusoidal_pos", value)


def t5(encoder: Any, places: Tensor) -> PlacedArgument:
    """T5's position bias, (B, H, n, n); the first layer hands it to the others."""
    first = encoder.get_encoder().block[0].layer[0]  # of a T5EncoderModel, or of its stack, which returns itself
    table = first.SelfAttention
    sizes = (table.relative_attention_num_buckets, table.relative_attention_max_distance)
    bias = table.relative_attention_bias(table._relative_position_bucket(-_distances(places), True, *sizes))
    return PlacedArgument([first], "position_bias", lambda layer: bias.permute(0, 3, 1, 2))


def _distances(places: Tensor) -> Tensor:
    """How far each query (B, n, n) stands behind each key."""
    return places[:, :, None] - places[:, None, :]
