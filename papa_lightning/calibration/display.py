"""What prompts and notebooks show of constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Displayed:
    """Base of constants: one line at a prompt, a picture in a notebook, and a table by layer and head."""

    metadata: Mapping[str, Any]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of layers L, number of heads H and number of slots T."""
        raise NotImplementedError

    def head_columns(self) -> dict[str, Any]:
        """Numbers or words (L, H) of every head, by name of their column."""
        raise NotImplementedError

    def _picture(self, title: str) -> Figure:
        raise NotImplementedError

    def __repr__(self) -> str:
        layers, heads, length = self.sizes
        parts = [f"{layers} layers", f"{heads} heads", f"max_length={length}"]
        model, sequences = self.metadata.get("model"), self.metadata.get("sequences")
        if isinstance(sequences, int):
            parts.append(f"{sequences:,} sequences")
        if isinstance(model, Mapping) and model.get("name"):
            parts.append(f"of {model['name']}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_html_(self) -> str:
        from papa_lightning.figures.html import notebook_html  # imported late: matplotlib is slow to load

        return notebook_html(repr(self), self._picture("Constants"))

    def table(self) -> pd.DataFrame:
        """A row for each head, by layer and head.

        Returns:
            A DataFrame whose index is (layer, head): ``table().loc[3]`` has the heads of layer 3, and
            ``table()["variance"].unstack()`` the matrix (L, H) of a column.
        """
        import pandas as pd  # imported late: it is slow to load

        layers, heads, _ = self.sizes
        index = pd.MultiIndex.from_product([range(layers), range(heads)], names=["layer", "head"])
        columns = {name: values.flatten().tolist() for name, values in self.head_columns().items()}
        return pd.DataFrame(columns, index=index)


def matrix_columns(values: Tensor, pair_counts: Tensor) -> dict[str, Tensor]:
    """Entropy and distance of constant matrices, averaged over their rows with the number of sequences behind each.

        entropy  = -sum over j of p[i,j] ln p[i,j], in nats
        distance = sum over j of p[i,j] |i - j|, in positions

    with p the constants, each row divided by its sum.

    Args:
        values: Constants (L, H, T, T).
        pair_counts: Number (T, T) of sequences that held a real token at both positions.

    Returns:
        Both as (L, H) in float64; 0 for heads that attend to nothing.
    """
    weights = pair_counts.diagonal().double()
    weights = weights / weights.sum().clamp_min(1)
    places = torch.arange(len(weights), device=values.device)
    apart = (places[:, None] - places).abs().double()
    found: dict[str, list[Tensor]] = {"entropy": [], "distance": []}
    for layer in values.detach():  # a layer at a time: all in float64 would take twice the memory of the constants
        rows = layer.double()
        rows = rows / rows.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        found["entropy"].append((torch.special.entr(rows).sum(dim=-1) * weights).sum(dim=-1))
        found["distance"].append(((rows * apart).sum(dim=-1) * weights).sum(dim=-1))
    return {name: torch.stack(layers).cpu() for name, layers in found.items()}
