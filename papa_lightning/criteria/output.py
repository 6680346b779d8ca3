"""Criterion "output": how much a layer's output changes when one head becomes constant."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from papa_lightning.attention import DynamicAttention, RowMixing
from papa_lightning.attention.functional import apply_attention, constant_attention
from papa_lightning.calibration import eval_mode
from papa_lightning.calibration.batches import run_encoder
from papa_lightning.criteria.base import HeadCriterion, RankingInputs, per_layer
from papa_lightning.criteria.projections import OutputProjections
from papa_lightning.encoders import encoder_shape, find_encoder, replace_mixing
from papa_lightning.errors import PapaError


class OutputChange(HeadCriterion):
    """Squared change of the output of a layer's attention when one head alone becomes constant, relative to it.

        score[l,h] = sum over real tokens of |(A_h - C'_h) V_h W_O,h|^2 / sum over real tokens of |output of layer l|^2

    C' are the constants normalised as constant attention does, V_h W_O,h the head's values times its rows of the
    output projection, and the output of the layer is what that projection gives, with its bias and before the
    residual connection. Unlike the divergence it knows that attention to values that are alike or small is of no
    consequence.

    Of the changes D (tokens, h) of a head only D^T D is gathered, h x h; with the Gram matrix of W_O,h it gives the
    sum of squares, so no tensor of tokens x heads x hidden size exists.

    Cost: one forward pass with explicit attention matrices, and the product of constants and values.
    """

    name: ClassVar[str] = "output"
    needs: ClassVar[frozenset[str]] = frozenset({"constants", "batches"})
    passes = 1.3
    magnitude = 1e-6  # squares of differences of whole outputs

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`.

        Raises:
            PapaError: When an output projection cannot be found, or the batches have no real token.
        """
        assert inputs.constants is not None
        assert inputs.batches is not None
        base = find_encoder(inputs.encoder)
        layers, heads = encoder_shape(base)
        found = OutputProjections(layers)
        moments: list[Tensor | float] = [0.0] * layers
        mixings = [RowMixing(partial(_mix, found, moments, layer, own)) for layer, own in enumerate(per_layer(inputs))]
        with torch.no_grad(), eval_mode(base), replace_mixing(base, mixings), found.watching(base):
            for _ in run_encoder(base, inputs.batches, inputs.constants.max_length):
                pass
        if not all(energy > 0 for energy in found.energies):
            raise PapaError("batches has no real token: pass at least one batch whose attention_mask has ones.")
        grams = [found.gram_matrices(layer, heads) for layer in range(layers)]
        changes = [(moment * gram).sum(dim=(1, 2)) for moment, gram in zip(moments, grams, strict=True)]
        return torch.stack([change / energy for change, energy in zip(changes, found.energies, strict=True)])


def _mix(
    found: OutputProjections,
    moments: list[Tensor | float],
    layer: int,
    constants: Tensor,
    attention: DynamicAttention,
    value: Tensor,
) -> Tensor:
    """Mix the values of one layer dynamically, and add up what would change; see RowMixing."""
    length, mask, slots = value.shape[2], attention.mask, attention.slots
    mixed = apply_attention(attention.matrices(), value)
    change = mixed - constant_attention(constants[:, :length, :length], value, mask)
    if mask is not None:
        change = change.masked_fill(~mask.bool()[:, :, None, None], 0.0)
    tokens = change.flatten(0, 1).transpose(0, 1)  # (H, B T, h)
    moments[layer] += torch.bmm(tokens.transpose(1, 2), tokens).double()
    if slots is None:
        found.expect(layer, mask, mixed)
    else:  # the projection gets the tokens in the order of the batch
        found.expect(layer, slots.real, slots.read(mixed))
    return mixed
