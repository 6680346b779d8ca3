"""The average attention of a project's encoder, computed without the package: one sequence at a time, in float64."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel


def naive_average(encoder: PreTrainedModel, sequences: Iterable[tuple[Tensor, Tensor]], length: int) -> Tensor:
    """The constants of an encoder that is not swapped.

    Args:
        encoder: It stays as it is.
        sequences: Tokens (t,) and mask (t,) of each sequence that the project gives to the encoder.
        length: T.

    Returns:
        (L, H, T, T), float64.
    """
    own = copy.deepcopy(encoder).double().eval()
    own.set_attn_implementation("eager")
    layers, heads = own.config.num_hidden_layers, own.config.num_attention_heads
    sums = torch.zeros(layers, heads, length, length, dtype=torch.float64)
    counts = torch.zeros(length, length, dtype=torch.float64)
    for tokens, mask in sequences:
        with torch.no_grad():
            attentions = own(tokens[None], attention_mask=mask[None], output_attentions=True).attentions
        pairs = torch.outer(mask, mask).double()
        sums[:, :, : len(mask), : len(mask)] += torch.cat(attentions).double() * pairs
        counts[: len(mask), : len(mask)] += pairs
    return torch.where(counts > 0, sums / counts.clamp_min(1), 0.0)
