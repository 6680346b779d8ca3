"""Additive attention: scores from a sum of query and key instead of their product."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from papa_lightning.attention.aft.checks import check_divides, check_mask, shapes_error
from papa_lightning.attention.aft.layers import ProjectedMixing
from papa_lightning.attention.aft.means import join_groups, masked, recomputed, split_groups
from papa_lightning.attention.functional import accumulation_dtype
from papa_lightning.attention.mixer import KINDS, KindFacts, Place
from papa_lightning.attention.without_constants import ScorelessLayer
from papa_lightning.checks import whole
from papa_lightning.errors import PapaError


def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    chunk: int = 16,
) -> Tensor:
    """Additive attention, ``sum_t' softmax_t'(v . tanh(Q_t + K_t')) V_t'`` over the allowed keys.

    Source: "Neural Machine Translation by Jointly Learning to Align and Translate", Bahdanau et al. 2015, arXiv
    1409.0473. In time O(T^2 n); rows are taken in chunks and computed again in the backward pass, so memory is O(B
    chunk T n). Scores are float32 (float64 for float64 input), also under autocast. Rows without any allowed key are 0.

    Args:
        query: (B, T, n).
        key: (B, T, n).
        value: (B, T, d).
        v: (n,), or (H, n / H) for H heads: neighbouring channels of query, key and value belong to a head, and each
            head has a softmax of its own.
        mask: (B, T), true for a real token, or None.
        causal: Only keys at or before the row.
        chunk: Number of rows that are computed at a time.

    Returns:
        (B, T, d) in the dtype of ``value``.

    Raises:
        PapaError: When shapes do not fit.

    Example:
        >>> x = torch.tensor([[[0.0], [2.0]]])
        >>> additive_attention(x, x, x, torch.zeros(1)).flatten()
        tensor([1., 1.])
        >>> additive_attention(x, x, x, torch.zeros(1), causal=True).flatten()
        tensor([0., 1.])
    """
    heads = v if v.dim() == 2 else v[None]
    _check(query, key, value, heads, mask)
    whole(1)("chunk", chunk)
    dtype = accumulation_dtype(value.dtype)
    with torch.autocast(query.device.type, enabled=False):
        queries, keys = split_groups(query.to(dtype), heads.shape[0]), split_groups(key.to(dtype), heads.shape[0])
        values = split_groups(masked(value, mask, 0.0), heads.shape[0])
        means = []
        for start in range(0, query.shape[1], chunk):
            rows, stop = queries[:, :, start : start + chunk], start + chunk if causal else None
            real = None if mask is None else mask.bool()[:, None, None, :stop]
            own = (rows, keys[:, :, :stop], values[:, :, :stop], heads.to(dtype), real)
            means.append(recomputed(_chunk_of_rows, *own, start if causal else None))
        return join_groups(torch.cat(means, dim=2)).to(value.dtype)


def _chunk_of_rows(
    query: Tensor, keys: Tensor, values: Tensor, heads: Tensor, allowed: Tensor | None, first: int | None
) -> Tensor:
    """(B, H, rows, h): the means of some rows; in causal mode with the number of the first of them."""
    if first is not None:
        seen = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool, device=query.device).tril(first)
        allowed = seen if allowed is None else allowed & seen
    hidden = torch.tanh(query[:, :, :, None] + keys[:, :, None])
    scores = torch.matmul(hidden, heads[:, None, :, None]).squeeze(-1)  # einsum would copy the largest tensor first
    if allowed is None:
        return torch.softmax(scores, dim=-1) @ values
    # The lowest finite number: minus infinity would make rows without keys NaN, also in the gradient.
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return (torch.softmax(scores, dim=-1) @ values).masked_fill(~allowed.any(dim=-1, keepdim=True), 0.0)


def _check(query: Tensor, key: Tensor, value: Tensor, heads: Tensor, mask: Tensor | None) -> None:
    if query.dim() != 3 or query.shape != key.shape or value.dim() != 3 or query.shape[:2] != value.shape[:2]:
        wanted = "must be (sequences, tokens, channels), query and key with the same number of channels"
        raise shapes_error(query, key, value, wanted)
    check_mask(mask, query)
    if heads.dim() != 2 or heads.numel() != query.shape[-1]:
        raise PapaError(
            f"v has {heads.numel()} numbers, but query and key have {query.shape[-1]} channels: it needs one for each."
        )
    check_divides("the heads of v", heads.shape[0], value.shape[-1])


class AdditiveAttention(ProjectedMixing):
    """Additive attention over hidden states, ``softmax_t'(v . tanh(W_q x_t + W_k x_t')) W_v x_t'``.

    Source: as :func:`additive_attention`.

    Args:
        hidden_size: d.
        heads: H, which share d: each has d / H channels of queries, keys, values and v.
        causal: Tokens look at themselves and those before them only.
        chunk: Rows that are computed at a time; a chunk takes B chunk T d numbers.

    Raises:
        PapaError: When a number is smaller than 1, or ``heads`` does not divide ``hidden_size``.

    Example:
        >>> AdditiveAttention(8, heads=2)(torch.randn(2, 10, 8)).shape
        torch.Size([2, 10, 8])
    """

    def __init__(self, hidden_size: int, heads: int = 1, causal: bool = False, chunk: int = 16) -> None:
        whole(1)("heads", heads)
        super().__init__(hidden_size)
        check_divides("heads", heads, hidden_size)
        whole(1)("chunk", chunk)
        self.causal, self.chunk = causal, chunk
        self.v = nn.Parameter(torch.empty(heads, hidden_size // heads))
        bound = self.v.shape[1] ** -0.5  # as nn.Linear(d / H, 1) begins
        nn.init.uniform_(self.v, -bound, bound)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :func:`additive_attention`."""
        return additive_attention(query, key, value, self.v, mask, self.causal, self.chunk)


@KINDS.register("additive")
class AdditiveHeads(ScorelessLayer):
    """Additive attention in every head, ``e_tt' = v . tanh(q_t + k_t')``, softmax over the real keys, times the values.

    q and k are those of the encoder. Source: Bahdanau et al. 2015, arXiv 1409.0473. O(B chunk T d) in memory. Arguments
    are those of :class:`AFTSimpleHeads`.

    Attributes:
        score_weight: v, (H, h); starts as normal numbers with the standard deviation ``h ** -0.5``.
    """

    facts = KindFacts(
        "in each head softmax over t' of `v . tanh(q_t + k_t')`, times V", "d", "T² d tanh", "small random v"
    )
    whole_layer = "mixes whole layers"

    def __init__(self, place: Place, heads: Sequence[int], causal: bool | None = None) -> None:
        super().__init__(place, heads, causal)
        shape = (place.num_heads, place.head_size)
        self.score_weight = nn.Parameter(torch.empty(shape, dtype=place.dtype, device=place.device))
        nn.init.normal_(self.score_weight, std=place.head_size**-0.5)
        self._set_calibrated(True)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :meth:`ScorelessLayer.mix`."""
        queries, keys, values = map(join_groups, (query, key, value))
        mixed = additive_attention(queries, keys, values, self.score_weight, mask, self.causal)
        return mixed.view(*mixed.shape[:2], value.shape[1], -1)
