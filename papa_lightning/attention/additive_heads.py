"""Kind "additive": scores from a sum of query and key instead of their product, in a layer of an encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from papa_lightning.attention.additive import additive_attention
from papa_lightning.attention.mixer import Place
from papa_lightning.attention.scoreless import ScorelessLayer


class AdditiveHeads(ScorelessLayer):
    """Additive attention in every head, ``e_tt' = v . tanh(q_t + k_t')``, softmax over the real keys, times the values.

    q and k are those of the encoder. Source: Bahdanau et al. 2015, arXiv 1409.0473. O(B chunk T d) in memory.

    Args:
        place: See :class:`~papa_lightning.attention.mixer.TokenMixer`; with the size of the heads.
        heads: All heads of the layer.
        causal: None: as the encoder. Anything else than that is refused.

    Attributes:
        score_weight: v, (H, h); starts as normal numbers with the standard deviation ``h ** -0.5``.
    """

    kind = "additive"
    whole_layer = "mixes whole layers"

    def __init__(self, place: Place, heads: Sequence[int], causal: bool | None = None) -> None:
        super().__init__(place, heads, causal)
        shape = (place.num_heads, place.head_size)
        self.score_weight = nn.Parameter(torch.empty(shape, dtype=place.dtype, device=place.device))
        nn.init.normal_(self.score_weight, std=place.head_size**-0.5)
        self._set_calibrated(True)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :meth:`ScorelessLayer.mix`."""
        queries, keys, values = (tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value))
        mixed = additive_attention(queries, keys, values, self.score_weight, mask, self.causal)
        return mixed.view(*mixed.shape[:2], value.shape[1], -1)
