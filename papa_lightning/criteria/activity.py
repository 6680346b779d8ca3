"""Criteria "output_norm" and "entropy": size of a head's output, and spread of its attention, from one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from papa_lightning.attention import DynamicAttention, RowMixing, Slots
from papa_lightning.attention.functional import apply_attention, clear_padding
from papa_lightning.calibration import eval_mode
from papa_lightning.calibration.batches import run_encoder
from papa_lightning.criteria.base import CRITERIA, HeadCriterion, RankingInputs
from papa_lightning.criteria.output import OutputProjections
from papa_lightning.encoders import SupportedEncoder, compute_device, position_limit, replace_mixing
from papa_lightning.errors import PapaError

_SOURCE = "Sandoval-Segura et al. 2025, arXiv 2504.03889"


class HeadActivity:
    """Sums of what the heads of an encoder do with the tokens of batches, taken while it runs.

    Args:
        encoder: The encoder; its dynamic attention is measured, swapped or not.
    """

    def __init__(self, encoder: SupportedEncoder) -> None:
        self._heads, self._projections = encoder.num_heads, OutputProjections(encoder.num_layers)
        zeros = partial(torch.zeros, encoder.num_layers, dtype=torch.float64, device=compute_device(encoder.model))
        self._entropies, self._rows = zeros(encoder.num_heads), zeros(1)
        self._moments: list[Tensor | float] = [0.0] * encoder.num_layers

    def mix(self, layer: int, attention: DynamicAttention, value: Tensor) -> Tensor:
        """Mix the values (B, H, t, h) of a layer to (B, t, H, h), and add up; see RowMixing."""
        matrices, slots = attention.matrices(), attention.slots
        mixed = apply_attention(matrices, value)
        real = value.new_ones(len(value), value.shape[2]) if attention.mask is None else attention.mask
        real = real.to(matrices.dtype)
        tokens = mixed.masked_fill(~real.bool()[:, :, None, None], 0.0).flatten(0, 1).transpose(0, 1)
        # (H, B t, h): the squares of A V W_O follow from this Gram matrix and that of W_O.
        self._moments[layer] += torch.bmm(tokens.transpose(1, 2), tokens).double()
        self._projections.expect(layer, attention.mask, mixed)
        self._rows[layer] += real.sum(dtype=torch.float64)
        clear_padding(matrices, real)
        self.look(layer, matrices, slots)
        entropies = torch.special.entr(matrices, out=matrices).sum(dim=-1)
        self._entropies[layer] += entropies.sum(dim=(0, 2), dtype=torch.float64)
        return mixed

    def look(self, layer: int, matrices: Tensor, slots: Slots | None) -> None:
        """Look at the matrices (B, H, t, t) of a batch, 0 at padding; for subclasses."""

    @contextmanager
    def watching(self, encoder: SupportedEncoder) -> Iterator[None]:
        """Watch the output projections while the encoder runs, and refuse a run without a real token."""
        with self._projections.watching(encoder.model):
            yield
        if not bool((self._rows > 0).all()):
            raise PapaError("batches has no real token: pass at least one batch whose attention_mask has ones.")

    @property
    def entropy(self) -> Tensor:
        """Mean entropy of a real row of attention, in nats: (L, H), float64."""
        return self._entropies / self._rows

    @property
    def output_norm(self) -> Tensor:
        """Root mean square of the norm of a head's output ``A V_h W_O,h`` at a real token: (L, H), float64."""
        squares = [
            (moment * self._projections.gram_matrices(layer, self._heads)).sum(dim=(1, 2))
            for layer, moment in enumerate(self._moments)
        ]
        return (torch.stack(squares).clamp_min(0.0) / self._rows).sqrt()

    @property
    def relative_output_norm(self) -> Tensor:
        """The output norm over the mean of the heads of its layer: (L, H), float64."""
        return self.output_norm / self.output_norm.mean(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def measure_activity(inputs: RankingInputs) -> HeadActivity:
    """The activity of all heads over the batches of `inputs`, in one forward pass."""
    assert inputs.batches is not None
    found = SupportedEncoder.find(inputs.encoder)
    length = position_limit(found.model) or max(_length(batch) for batch in inputs.batches)
    activity = HeadActivity(found)
    mixings = [RowMixing(partial(activity.mix, layer), reads_slots=True) for layer in range(found.num_layers)]
    with torch.no_grad(), eval_mode(found.model), replace_mixing(found, mixings), activity.watching(found):
        for _ in run_encoder(found.model, inputs.batches, length, inputs.packing):
            pass
    return activity


@CRITERIA.register("output_norm")
class OutputNorm(HeadCriterion):
    """Root mean square of the norm of a head's output at a real token, relative to the heads of its layer.

        score[l,h] = r[l,h] / mean over heads of r[l],  r[l,h]^2 = mean over real tokens of |A V_h W_O,h|^2

    A head that adds little to the output of its layer is inactive, whatever it looks at. Source: P. Sandoval-Segura et
    al., Identifying and Evaluating Inactive Heads in Pretrained LLMs, 2025, arXiv 2504.03889, who find average output
    norms relative to the layer the best sign of inactive heads; here it is the root mean square, with W_O. It says
    nothing about how constant the attention is.

    Cost: one forward pass with explicit attention matrices.
    """

    formula = "root mean square over real tokens of A V W_O, over its mean in the layer"
    source = _SOURCE
    needs = frozenset({"batches"})
    passes = 1.3

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`; no output projection to read, or no real token, is refused."""
        return measure_activity(inputs).relative_output_norm


@CRITERIA.register("entropy")
class AttentionEntropy(HeadCriterion):
    """Mean entropy of a real row of attention, in nats.

        score[l,h] = mean over real rows of H(A_i),  H(a) = - sum over j of a_j log a_j

    It is 0 for a head that always picks one token, as an attention sink or a head for the previous token does, and
    log n for one that gives n tokens the same weight. It knows neither whether the token is always the same nor what
    the values are. Of the entropy as a sign of inactive heads see P. Sandoval-Segura et al., Identifying and Evaluating
    Inactive Heads in Pretrained LLMs, 2025, arXiv 2504.03889.

    Cost: one forward pass with explicit attention matrices.
    """

    formula = "mean over real rows of the entropy of A's row"
    source = _SOURCE
    needs = frozenset({"batches"})
    passes = 1.3
    magnitude = 0.25  # logarithms of the order of 1 are added up, over many rows

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`; batches without a real token are refused."""
        return measure_activity(inputs).entropy


def _length(batch: Mapping[str, Any]) -> int:
    return max((entry.shape[1] for entry in batch.values() if isinstance(entry, Tensor) and entry.dim() > 1), default=1)
