"""Finding the output projection of each self-attention layer while an encoder runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from papa_lightning.errors import PapaError


class OutputProjections:
    """The output projections W_O of an encoder: in each layer, the linear layer that runs next after the mixing.

    Families give it different names and places, some outside the self-attention module; what they have in common is
    that the mixed values go into it first.

    Args:
        num_layers: L.

    Attributes:
        energies: For each layer, the sum of the squared norms of what the projection gave for real tokens.
    """

    def __init__(self, num_layers: int) -> None:
        self.energies = [0.0] * num_layers
        self._found: list[nn.Module | None] = [None] * num_layers
        self._next: tuple[int, Tensor | None, Tensor] | None = None

    def expect(self, layer: int, mask: Tensor | None, mixed: Tensor) -> None:
        """Say that a layer has mixed its values.

        Args:
            layer: Its number.
            mask: (B, T), true for a real token, or None.
            mixed: (B, T, H, h), what the projection takes.

        Raises:
            PapaError: When the layer before had no output projection.
        """
        if self._next is not None:
            raise _missing(self._next[0])
        self._next = (layer, mask, mixed)

    @contextmanager
    def watching(self, encoder: nn.Module) -> Iterator[None]:
        """Watch the linear layers of an encoder.

        Args:
            encoder: The bare encoder.

        Raises:
            PapaError: When a layer has no output projection.
        """
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
        """``W_O,h W_O,h^T`` of each head, (H, h, h), float64, for W_O,h the rows (h, d) that its values meet.

        Args:
            layer: Number of the layer.
            num_heads: H.
        """
        module = self._found[layer]
        assert module is not None
        weight = _weight(module).double()
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
    weight: Any = module.weight
    own: Tensor = (weight if isinstance(module, Conv1D) else weight.T).detach()
    return own


def _missing(layer: int) -> PapaError:
    return PapaError(
        f"layer {layer} has no output projection: no linear layer ran after its attention. Rank by another criterion."
    )
