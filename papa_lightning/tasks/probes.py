"""Probes: small classifiers on the hidden states of an encoder."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from papa_lightning.embeddings import pool
from papa_lightning.errors import PapaError

Pooling = Literal["layerwise", "mean", "class_token"]
"""Pooling of the hidden states of a sequence into one vector."""


class Probe(nn.Module):
    """Base of the probes: ``U dropout(tanh(W f + b)) + c`` of F features; W, b are `dense` and U, c `classifier`."""

    def __init__(self, features: int, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(features, hidden_size)
        self.dropout: nn.Module = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def classify(self, features: Tensor) -> Tensor:
        """Compute the logits (..., C) from features (..., F) of padded hidden states or of stored ones."""
        logits: Tensor = self.classifier(self.dropout(torch.tanh(self.dense(features))))
        return logits


class LayerwiseProbe(Probe):
    r"""Classify a sequence from the hidden states of all levels of an encoder.

    With the hidden states :math:`x_0` (embeddings) to :math:`x_L` (last layer), the attention mask :math:`m` and one
    learned weight :math:`w_{kt}` per level and position,

    .. math::
        v_k = \sum_t w_{kt}\, m_t\, x_{kt}, \qquad
        p = \tanh(W [v_0; \dots; v_L] + b), \qquad
        \text{logits} = U\, \text{dropout}(p) + c .

    Every weight starts at 1/T. The masked weights are *not* divided by their sum, so the weight of a position means
    the same in every sequence; a short sequence has a small :math:`v_k`. Source: Hassid et al. 2022, arXiv 2211.03495.

    Args:
        num_levels: L+1, the number of hidden states (the embeddings and every layer).
        max_length: T, the length to which all sequences are padded.
        hidden_size: d, the size of the hidden states.
        num_labels: C, the number of classes.
        dropout: Share of the pooled features that training sets to zero.

    Attributes:
        position_weights: (L+1, T), the weight of every position of every level.

    Example:
        >>> import torch
        >>> probe = LayerwiseProbe(num_levels=3, max_length=8, hidden_size=16, num_labels=2)
        >>> hidden_states = [torch.randn(5, 8, 16) for _ in range(3)]
        >>> probe(hidden_states, attention_mask=torch.ones(5, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, num_levels: int, max_length: int, hidden_size: int, num_labels: int, dropout: float = 0.1
    ) -> None:
        super().__init__(num_levels * hidden_size, hidden_size, num_labels, dropout)
        self.position_weights = nn.Parameter(torch.full((num_levels, max_length), 1 / max_length))

    def forward(self, hidden_states: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
        """(B, C) of L+1 hidden states (B, T, d), the embeddings first, or stacked; the mask (B, T) may have holes."""
        return self.classify(self._weighted_sums(hidden_states, attention_mask))

    def pool(self, hidden_states: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
        """Compute p (B, d), what the classifier sees before dropout, between -1 and 1; see `forward`."""
        return torch.tanh(self.dense(self._weighted_sums(hidden_states, attention_mask)))

    def _weighted_sums(self, hidden_states: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
        """[v_0; ...; v_L], (B, (L+1)*d)."""
        self._check(hidden_states, attention_mask)
        # Hidden states stored in a smaller dtype follow the probe; under autocast matmul picks its own dtype anyway.
        dtype = self.position_weights.dtype
        mask = attention_mask.to(dtype)
        # Level by level, because stacking would copy all hidden states of the batch once more.
        sums = [
            torch.matmul((weights * mask).unsqueeze(1), level.to(dtype)).flatten(1)  # (B, 1, T) @ (B, T, d)
            for weights, level in zip(self.position_weights, hidden_states, strict=True)
        ]
        return torch.cat(sums, dim=-1)

    def _check(self, hidden_states: Sequence[Tensor], attention_mask: Tensor) -> None:
        levels, max_length = self.position_weights.shape
        _check_levels(len(hidden_states), levels)
        length = hidden_states[0].shape[1]
        if length != max_length:
            raise PapaError(
                f"the sequences are {length} tokens long, but the probe has weights for max_length={max_length}: pad "
                f"all sequences to exactly {max_length} tokens, or build the task with max_length={length}."
            )
        if attention_mask.shape != hidden_states[0].shape[:2]:
            raise PapaError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, but the hidden states are for "
                f"{tuple(hidden_states[0].shape[:2])} (batch, tokens): pass the mask that the encoder was given."
            )


class PooledProbe(Probe):
    r"""Classify a sequence from one vector of the last level.

    .. math:: \text{logits} = U\, \text{dropout}(\tanh(W v + b)) + c,

    where v is the mean of the last hidden states over the real tokens (``"mean"``), or the hidden state of the first
    real token, where the tokenizers of encoders put the class token (``"class_token"``; Devlin et al. 2019, arXiv
    1810.04805). A sequence without any real token has a mean of 0.

    Args:
        pooling: ``"mean"`` or ``"class_token"``.
        hidden_size: d, the size of the hidden states.
        num_labels: C, the number of classes.
        dropout: Share of the features that training sets to zero.

    Example:
        >>> probe = PooledProbe("mean", hidden_size=16, num_labels=2)
        >>> probe([torch.randn(5, 8, 16)], attention_mask=torch.ones(5, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, pooling: Literal["mean", "class_token"], hidden_size: int, num_labels: int, dropout: float = 0.1
    ) -> None:
        super().__init__(hidden_size, hidden_size, num_labels, dropout)
        self.pooling = pooling

    def forward(self, hidden_states: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
        """Logits (B, C) of the last one of the hidden states (B, T, d); the mask (B, T) may have holes."""
        last = hidden_states[-1].to(self.dense.weight.dtype)
        return self.classify(pool(self.pooling, last, attention_mask))


class TokenProbe(Probe):
    r"""Classify every token from the hidden states of all levels of an encoder.

    .. math:: \text{logits}_t = U\, \text{dropout}(\tanh(W [x_{0t}; \dots; x_{Lt}] + b)) + c

    with the hidden states :math:`x_{0t}` (embeddings) to :math:`x_{Lt}` of token t; logits at padding are computed
    but unused. Source: Hassid et al. 2022, arXiv 2211.03495.

    Args:
        num_levels: L+1, the number of hidden states (the embeddings and every layer).
        hidden_size: d, the size of the hidden states.
        num_labels: C, the number of classes.
        dropout: Share of the features that training sets to zero.

    Example:
        >>> probe = TokenProbe(num_levels=3, hidden_size=16, num_labels=7)
        >>> probe([torch.randn(5, 8, 16) for _ in range(3)]).shape
        torch.Size([5, 8, 7])
    """

    def __init__(self, num_levels: int, hidden_size: int, num_labels: int, dropout: float = 0.1) -> None:
        super().__init__(num_levels * hidden_size, hidden_size, num_labels, dropout)
        self.num_levels = num_levels

    def forward(self, hidden_states: Sequence[Tensor], attention_mask: Tensor | None = None) -> Tensor:
        """Logits (..., C) of every token of L+1 hidden states (..., d), the embeddings first; the mask is not read."""
        _check_levels(len(hidden_states), self.num_levels)
        return self.classify(torch.cat([level.to(self.dense.weight.dtype) for level in hidden_states], dim=-1))


def _check_levels(found: int, levels: int) -> None:
    if found != levels:
        raise PapaError(
            f"hidden_states has {found} levels, but the probe was built for {levels} (the embeddings and every "
            "layer): pass all hidden states of the encoder that it was built for."
        )
