"""The position ids that an encoder gives its tokens by itself."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from papa_lightning.encoders.seam.batch import ReadBatch
from papa_lightning.errors import PapaError


def native_position_ids(reading: ReadBatch, inputs: Mapping[str, Any]) -> Tensor:
    """Position ids (B, T) that an encoder would give the tokens of a batch; those of the batch where it has some.

    They are the places in the tensor; in families like RoBERTa the numbers of the tokens that are no padding tokens;
    and in rotary encoders swapped to kinds without scores the slots.

    Args:
        reading: The hook that reads the batches of the encoder, attached or not.
        inputs: Batch, with input_ids (B, T) or inputs_embeds (B, T, d), and its attention_mask.

    Raises:
        PapaError: When the batch has neither.

    Example:
        >>> from papa_lightning.encoders import SupportedEncoder
        >>> from transformers import RobertaConfig, RobertaModel
        >>> sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> found = SupportedEncoder.find(RobertaModel(RobertaConfig(pad_token_id=1, **sizes)))
        >>> reading = ReadBatch.of(found)
        >>> native_position_ids(reading, {"input_ids": torch.tensor([[1, 5, 6], [7, 8, 1]])})
        tensor([[1, 2, 3],
                [2, 3, 1]])
    """
    tokens: Tensor | None = inputs.get("input_ids")
    shaped: Tensor | None = inputs.get("inputs_embeds") if tokens is None else tokens
    if shaped is None:
        raise PapaError(f"the batch has {', '.join(inputs) or 'nothing'}, but position ids are those of input_ids.")
    given: Tensor | None = inputs.get("position_ids")
    if given is None:
        given = reading.count_positions(inputs, {}).get("position_ids")
    if given is not None:
        return given.expand(shaped.shape[:2])
    first = reading.first
    if first and tokens is not None:
        numbered = (tokens != first - 1).long()  # the table of positions has the padding token's id as padding_idx
        return numbered.cumsum(dim=1) * numbered + first - 1
    return torch.arange(first, first + shaped.shape[1], device=shaped.device).expand(shaped.shape[:2])
