"""Splitting the weights of a model into another number of heads."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from papa_lightning.errors import PapaError
from papa_lightning.from_scratch.configuration import check_heads
from papa_lightning.from_scratch.transformer import TransformerAttention, TransformerModel

Model = TypeVar("Model", bound=nn.Module)


def resplit_heads(model: Model, heads: int) -> Model:
    """Split the weights of a model into another number of heads, in place.

    Head i of H takes the rows i d/H to (i+1) d/H of the query, key and value projections, so that H heads of size d/H
    have the same parameters and multiply-accumulates for every H. The number of attention matrices changes, and with it
    the function, so that a trained model has to be trained further.

    Args:
        model: A :class:`TransformerModel`, or a module that holds one, such as a task.
        heads: H, a divisor of d.

    Returns:
        The model that was passed.

    Raises:
        PapaError: When there is no such model, its attention is swapped, or H does not divide d.

    Example:
        >>> from papa_lightning.from_scratch import TransformerConfig
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
