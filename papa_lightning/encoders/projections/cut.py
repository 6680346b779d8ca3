"""Query and key projections that compute the dynamic heads only.

Each replaces a layer of the encoder and has the same parameters under the same names, so that the state dict and
optimizers see no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from papa_lightning.attention import DynamicHeads
from papa_lightning.attention.head_slices import select_heads
from papa_lightning.attention.parameter_cache import Remembered

#: The computed rows of a layer's weight and bias.
Rows: TypeAlias = "tuple[Tensor, Tensor | None]"
Cut = TypeVar("Cut", bound="CutProjection")


class QueryKeyValue:
    """Query, key and value of one layer, with different numbers of heads.

    Replaces the tensor that the forward of an encoder splits into three equal parts, and has the methods for that only.

    Args:
        parts: Three tensors (B, T, heads x h), each with its own number of heads.
    """

    def __init__(self, *parts: Tensor) -> None:
        self.parts = parts

    def view(self, *shape: int) -> QueryKeyValue:
        """As ``tensor.view(B, T, 3, -1, h)``: each part (B, T, heads, h)."""
        return QueryKeyValue(*(part.view(*shape[:-3], *shape[-2:]) for part in self.parts))

    def unbind(self, dim: int) -> tuple[Tensor, ...]:
        """The three parts."""
        return self.parts

    def split(self, size: int, dim: int) -> tuple[Tensor, ...]:
        """The three parts."""
        return self.parts


class CutProjection:
    """Base of cut projections; each also derives from the class of the layer that it replaces."""

    #: Class of the layers that can be cut; others, such as adapters and quantised layers, stay and compute all heads.
    replaces: type[nn.Module] = nn.Linear
    #: Whether the values come out of the same layer, whose parameters are then used without a dynamic head too.
    holds_values = False
    #: Dimension of the weight that the bias belongs to.
    rows_dim = 0

    heads: DynamicHeads

    @classmethod
    def replace(cls, owner: nn.Module, name: str, heads: DynamicHeads) -> None:
        """Replace a plain layer by a cut projection.

        Args:
            owner: The self-attention module.
            name: Attribute of the layer.
            heads: The heads that are dynamic at the moment, shared with the mixer of the layer.
        """
        original = owner._modules[name]
        if type(original) is cls.replaces:
            cut = cast(Any, cls.__new__(cls))  # __init__ would allocate weights that are thrown away at once
            cut.__dict__.update(original.__dict__)
            cut.heads = heads
            cut.__dict__["_rows"] = Remembered()
            cut.__dict__["_original"] = original  # not a submodule: it has no keys
            cut.__dict__["_place"] = (owner, name)
            setattr(owner, name, cut)

    def original(self) -> nn.Module:
        """The layer that this one replaced, with the parameters as they are now (moved, cast or trained)."""
        original = cast(nn.Module, self.__dict__["_original"])
        added = ("heads", "_rows", "_original", "_place")
        original.__dict__.update({name: held for name, held in self.__dict__.items() if name not in added})
        return original

    @property
    def cuts(self) -> bool:
        """Whether to leave heads out, see :meth:`cuts_to`."""
        return self.cuts_to(self.heads)

    def cuts_to(self, heads: DynamicHeads) -> bool:
        """Whether to leave heads out; not when an adapter wraps this layer, because its output has all heads."""
        owner, name = cast("tuple[nn.Module, str]", self.__dict__["_place"])
        cuts = not heads.all_dynamic and cast(object, owner._modules[name]) is self
        if not cuts and not torch.compiler.is_compiling():
            self._forget()  # adapters change the weight without changing its version
        return cuts

    def kept_rows(self, slices: Sequence[int], width: int) -> Rows:
        """The given slices of the weight and the bias, copied only when one of the tensors has changed.

        Args:
            slices: Numbers of the slices, ascending.
            width: Rows of each slice.
        """
        layer = cast(nn.Linear, self)
        bias = cast("Tensor | None", layer.bias)

        def choose() -> Rows:
            chosen = None if bias is None else select_heads(bias, slices, dim=0, width=width)
            return select_heads(layer.weight, slices, dim=self.rows_dim, width=width), chosen

        return self.keep(choose, slices)

    def keep(self, choose: Callable[[], Rows], slices: Sequence[int]) -> Rows:
        """The result of a function of the weight and the bias for these slices, kept until one of them changes."""
        layer = cast(nn.Linear, self)
        held = [layer.weight] if cast("Tensor | None", layer.bias) is None else [layer.weight, layer.bias]
        return cast("Remembered[Rows]", self.__dict__["_rows"]).recall(choose, held, tuple(slices), layer.training)

    def train(self: Cut, mode: bool = True) -> Cut:
        """See :meth:`torch.nn.Module.train`; the kept rows are taken out anew afterwards."""
        self._forget()
        return cast(Cut, super().train(mode))  # type: ignore[misc]

    def _forget(self) -> None:
        cast("Remembered[Rows]", self.__dict__["_rows"]).forget()


class HeadProjection(CutProjection, nn.Linear):
    """A linear layer to H heads that computes the dynamic heads only."""

    @property
    def num_heads(self) -> int:
        """The number of heads that the layer has rows for."""
        return self.heads.num_heads

    def computed(self, heads: DynamicHeads) -> Sequence[int]:
        """The heads that are computed."""
        return heads.dynamic

    def forward(self, hidden_states: Tensor, heads: DynamicHeads | None = None) -> Tensor:
        """Project to the dynamic heads.

        Args:
            hidden_states: (B, T, hidden).
            heads: Dynamic heads of the layer that runs, in a module that serves several; None takes the mixer's.

        Returns:
            (B, T, dynamic heads x h); with no dynamic head an empty tensor, and nothing is computed.
        """
        heads = self.heads if heads is None else heads
        if not self.cuts_to(heads):
            return F.linear(hidden_states, self.weight, self.bias)
        dynamic = self.computed(heads)
        if not dynamic:
            return hidden_states.new_empty(*hidden_states.shape[:-1], 0)
        return F.linear(hidden_states, *self.kept_rows(dynamic, self.out_features // self.num_heads))


class GroupedKeyProjection(HeadProjection):
    """The key projection of grouped-query attention: a key head is computed if a dynamic head of its group needs it."""

    @property
    def num_heads(self) -> int:
        """The number of key heads."""
        return self.heads.num_heads // self._group

    def computed(self, heads: DynamicHeads) -> Sequence[int]:
        """The key heads that a dynamic head needs."""
        return heads.groups(self._group)

    @property
    def _group(self) -> int:
        owner, _ = cast("tuple[nn.Module, str]", self.__dict__["_place"])
        return cast(int, owner.num_key_value_groups)


class FusedProjection(CutProjection, nn.Linear):
    """One linear layer to all queries, then all keys, then all values (ModernBERT)."""

    holds_values = True

    def forward(self, hidden_states: Tensor) -> Tensor | QueryKeyValue:  # type: ignore[override]
        """Project to the dynamic heads' queries and keys, and to all values.

        Args:
            hidden_states: (B, T, hidden).

        Returns:
            (B, T, 3 H h) while all heads are dynamic, else the three parts.
        """
        if not self.cuts:
            return F.linear(hidden_states, self.weight, self.bias)
        rows = self.kept_rows(fused_rows(self.heads), self.out_features // (3 * self.heads.num_heads))
        return split_fused(F.linear(hidden_states, *rows), self.heads)


class FusedConv1D(CutProjection, Conv1D):
    """A :class:`FusedProjection` with GPT-2's transposed weight (hidden, 3 H h)."""

    replaces = Conv1D
    rows_dim = 1
    holds_values = True

    def forward(self, hidden_states: Tensor) -> Tensor | QueryKeyValue:
        """See :meth:`FusedProjection.forward`."""
        if not self.cuts:
            return cast(Tensor, super().forward(hidden_states))  # type: ignore[no-untyped-call]
        weight, bias = self.kept_rows(fused_rows(self.heads), self.nf // (3 * self.heads.num_heads))
        flat = torch.addmm(cast(Tensor, bias), hidden_states.reshape(-1, hidden_states.shape[-1]), weight)
        return split_fused(flat.view(*hidden_states.shape[:-1], -1), self.heads)


class InterleavedProjection(CutProjection, nn.Linear):
    """One linear layer to query, key and value of head 0, then those of head 1, and so on (DeBERTa)."""

    holds_values = True

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Project to all heads, as the original layer."""
        return F.linear(hidden_states, self.weight, self.bias)

    def split_heads(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """Project to the dynamic heads' queries and keys, and to all values.

        Args:
            hidden_states: (B, T, hidden).

        Returns:
            Query and key (B, T, dynamic heads x h), and value (B, T, H h).
        """
        weight, _ = self.keep(self._in_parts, self.heads.dynamic)
        return split_fused(F.linear(hidden_states, weight), self.heads).parts

    def _in_parts(self) -> Rows:
        """Rows of the dynamic heads' queries, then their keys, then all values; the layer has no bias."""
        dynamic, rows = self.heads.dynamic, self.weight.view(self.heads.num_heads, 3, -1, self.in_features)
        chosen = [select_heads(rows[:, part], dynamic, dim=0) for part in (0, 1)] if dynamic else []
        return torch.cat([part.flatten(0, 1) for part in (*chosen, rows[:, 2])]), None


def fused_rows(heads: DynamicHeads) -> list[int]:
    """Numbers of the computed slices of a fused projection (H of queries, H of keys, H of values)."""
    count = heads.num_heads
    return [*heads.dynamic, *(count + head for head in heads.dynamic), *range(2 * count, 3 * count)]


def split_fused(projected: Tensor, heads: DynamicHeads) -> QueryKeyValue:
    """Split a projection (B, T, heads x h) into the dynamic heads' queries and keys, and all values."""
    width = projected.shape[-1] // (2 * len(heads.dynamic) + heads.num_heads)
    chosen = width * len(heads.dynamic)
    return QueryKeyValue(*torch.split(projected, [chosen, chosen, width * heads.num_heads], dim=-1))
