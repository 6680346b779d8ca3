"""What layers on plain hidden states have in common: projections to queries, keys, values and back."""

from __future__ import annotations

from torch import Tensor, nn

from papa_lightning.attention.aft.checks import check_count
from papa_lightning.errors import PapaError


class ProjectedMixing(nn.Module):
    """Queries, keys and values of hidden states, mixed, and projected back: ``W_o mix(W_q x, W_k x, W_v x)``.

    Args:
        hidden_size: d.
        key_size: Channels of a key; None: d.
    """

    def __init__(self, hidden_size: int, key_size: int | None = None) -> None:
        super().__init__()
        check_count("hidden_size", hidden_size, least=1)
        self.hidden_size = hidden_size
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size if key_size is None else key_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix the tokens of each sequence.

        Args:
            hidden: (B, T, d).
            mask: (B, T), true for a real token, or None: all are real. It may have holes.

        Returns:
            (B, T, d). The rows of padding have no meaning.

        Raises:
            PapaError: When shapes do not fit the layer.
        """
        if hidden.dim() != 3 or hidden.shape[-1] != self.hidden_size:
            raise PapaError(
                f"hidden has the shape {tuple(hidden.shape)}, but must be (sequences, tokens, {self.hidden_size})."
            )
        mixed: Tensor = self.output(self.mix(self.query(hidden), self.key(hidden), self.value(hidden), mask))
        return mixed

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """What a kind does between the projections.

        Args:
            query: (B, T, d).
            key: (B, T, d), or the layer's ``key_size``.
            value: (B, T, d).
            mask: (B, T), or None.

        Returns:
            (B, T, d).
        """
        raise NotImplementedError
