"""Criterion "output": change of a layer's output when one head becomes constant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from papa_lightning.attention import DynamicAttention, RowMixing
from papa_lightning.attention.functional import apply_attention, constant_attention, gathered_attention
from papa_lightning.calibration import eval_mode
from papa_lightning.calibration.batches import run_encoder
from papa_lightning.criteria.base import CRITERIA, HeadCriterion, RankingInputs, per_layer
from papa_lightning.encoders import encoder_shape, find_encoder, replace_mixing
from papa_lightning.errors import PapaError


@CRITERIA.register("output")
class OutputChange(HeadCriterion):
    """Squared change of the output of a layer's attention when one head alone becomes constant, relative to it.

        score[l,h] = sum over real tokens of |(A_h - C'_h) V_h W_O,h|^2 / sum over real tokens of |output of layer l|^2

    C' are the constants normalised as constant attention does, V_h W_O,h the head's values times its rows of the output
    projection, and the output of the layer is what that projection gives, with its bias and before the residual
    connection. Unlike the divergence it knows that attention to values that are alike or small is of no consequence.

    Cost: one forward pass with explicit attention matrices, and the product of constants and values.
    """

    formula = "squared norm of (A - C') V W_O over that of the layer's attention output, real tokens"
    needs = frozenset({"constants", "batches"})
    passes = 1.3
    magnitude = 1e-6  # squares of differences of whole outputs

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`; no output projection to read, or no real token, is refused."""
        assert inputs.constants is not None
        assert inputs.batches is not None
        base = find_encoder(inputs.encoder)
        layers, heads = encoder_shape(base)
        found = OutputProjections(layers)
        moments: list[Tensor | float] = [0.0] * layers
        mixings = [
            RowMixing(partial(_mix, found, moments, layer, own), reads_slots=True)
            for layer, own in enumerate(per_layer(inputs))
        ]
        with torch.no_grad(), eval_mode(base), replace_mixing(base, mixings), found.watching(base):
            for _ in run_encoder(base, inputs.batches, inputs.constants.max_length, inputs.packing):
                pass
        if not all(energy > 0 for energy in found.energies):
            raise PapaError("batches has no real token: pass at least one batch whose attention_mask has ones.")
        changes = [(moment * found.gram_matrices(layer, heads)).sum((1, 2)) for layer, moment in enumerate(moments)]
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
    if slots is None:
        constant = constant_attention(constants[:, :length, :length], value, mask)
    else:
        constant = gathered_attention(constants, value, slots.places, slots.real)
    change = mixed - constant
    if mask is not None:
        change = change.masked_fill(~mask.bool()[:, :, None, None], 0.0)
    tokens = change.flatten(0, 1).transpose(0, 1)  # (H, B T, h); its Gram matrix and that of W_O give the squares
    moments[layer] += torch.bmm(tokens.transpose(1, 2), tokens).double()
    found.expect(layer, mask, mixed)
    return mixed


class OutputProjections:
    """Output projections W_O, the linear layers that run next after the mixing, and `energies`, their squared norms."""

    def __init__(self, num_layers: int) -> None:
        self.energies = [0.0] * num_layers
        self._found: list[nn.Module | None] = [None] * num_layers
        self._next: tuple[int, Tensor | None, Tensor] | None = None

    def expect(self, layer: int, mask: Tensor | None, mixed: Tensor) -> None:
        """Register that a layer has mixed its values, to (B, T, H, h), for a mask (B, T) or None."""
        if self._next is not None:
            raise _missing(self._next[0])
        self._next = (layer, mask, mixed)

    @contextmanager
    def watching(self, encoder: nn.Module) -> Iterator[None]:
        """Watch the linear layers of a bare encoder; a layer without output projection is refused."""
        linear = [module for module in encoder.modules() if isinstance(module, (nn.Linear, Conv1D))]
        handles = [module.register_forward_hook(self._after) for module in linear]
        try:
            yield
            missing = [layer for layer, module in enumerate(self._found) if module is None]
            if self._next is not None or (missing and len(missing) < len(self._found)):
                raise _missing(missing[0] if self._next is None else self._next[0])
        finally:
            for handle in handles:
                handle.remove()

    def gram_matrices(self, layer: int, num_heads: int) -> Tensor:
        """``W_O,h W_O,h^T`` of each head of a layer, (H, h, h), float64; W_O,h has the rows (h, d) of the head."""
        weight = _weight(cast(nn.Module, self._found[layer])).double()
        rows = weight.reshape(num_heads, -1, weight.shape[1])
        return torch.bmm(rows, rows.transpose(1, 2))

    def _after(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if self._next is None:
            return
        (layer, mask, mixed), self._next = self._next, None
        if self._found[layer] is None:
            self._found[layer] = _checked(layer, module, args[0], mixed)
        squares = torch.linalg.vector_norm(output, dim=-1).double().square()
        self.energies[layer] += float((squares if mask is None else squares * mask.bool()).sum())


def _checked(layer: int, module: nn.Module, taken: Tensor, mixed: Tensor) -> nn.Module:
    """The output projection: a linear layer with a weight to read, which takes the mixed values as they are."""
    weight = _weight(module)
    if weight.dim() != 2 or weight.shape[0] != mixed.shape[2] * mixed.shape[3] or not weight.is_floating_point():
        raise PapaError(
            f"layer {layer} has no output projection that can be read: the linear layer after its attention has a "
            f"weight of shape {tuple(weight.shape)} and dtype {weight.dtype}, but the mixed values are "
            f"{mixed.shape[2]} heads of {mixed.shape[3]} features. Load the encoder without quantisation, or rank by "
            "another criterion."
        )
    if taken.numel() != mixed.numel() or not torch.equal(taken.reshape(mixed.shape), mixed):
        raise PapaError(
            f"layer {layer} has no output projection: the linear layer that runs next after its attention takes "
            "something else than the mixed values. Rank by another criterion."
        )
    return module


def _weight(module: nn.Module) -> Tensor:
    """(in, out): Conv1D has it that way, linear layers the other way round."""
    weight = cast(Tensor, module.weight).detach()
    return weight if isinstance(module, Conv1D) else weight.T


def _missing(layer: int) -> PapaError:
    return PapaError(
        f"layer {layer} has no output projection: no linear layer ran after its attention. Rank by another criterion."
    )
