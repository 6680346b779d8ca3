"""Query and key projections that compute the dynamic heads only; parameters keep their names, also for optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from papa_lightning.attention import DynamicHeads
from papa_lightning.attention.head_slices import take_heads
from papa_lightning.attention.parameter_cache import Remembered

if TYPE_CHECKING:
    from papa_lightning.encoders.projections.joint import JointProjection

#: The computed rows of a layer's weight and bias.
Rows: TypeAlias = "tuple[Tensor, Tensor | None]"
Cut = TypeVar("Cut", bound="CutProjection")


class QueryKeyValue:
    """Query, key and value (B, T, heads x h), each with its own number of heads, where a forward splits one tensor."""

    def __init__(self, *parts: Tensor) -> None:
        self.parts = parts

    def view(self, *shape: int) -> QueryKeyValue:
        """``tensor.view(B, T, 3, -1, h)``: each part as (B, T, heads, h)."""
        return QueryKeyValue(*(part.view(*shape[:-3], *shape[-2:]) for part in self.parts))

    def split(self, *sizes: int, dim: int) -> tuple[Tensor, ...]:
        """The three parts."""
        return self.parts

    unbind = split


@dataclass(frozen=True)
class Slices:
    """The slices that some heads need (``kept``, in order) among ``total`` equal ones of a projection's output."""

    total: int
    kept: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is left out."""
        return len(self.kept) == self.total

    def cut(self, tensor: Tensor, dim: int) -> Tensor:
        """The part of a weight or a bias that belongs to the kept slices."""
        if not self.kept:
            return tensor.narrow(dim, 0, 0)
        return take_heads(tensor, self.kept, dim=dim, width=tensor.shape[dim] // self.total)


class CutProjection:
    """Base of cut projections; each also derives from the class of the layer that it replaces."""

    #: Class of the layers that can be cut; others, such as adapters and quantised layers, stay and compute all heads.
    replaces: type[nn.Module] = nn.Linear
    #: Whether the values come out of the same layer, whose parameters are then used without a dynamic head too.
    holds_values = False
    #: Dimension of the weight that the bias belongs to.
    rows_dim = 0

    heads: DynamicHeads
    _rows: Remembered[Rows]
    _original: nn.Module
    _place: tuple[nn.Module, str]

    @classmethod
    def replace(cls, owner: nn.Module, name: str, heads: DynamicHeads) -> None:
        """Replace a plain layer of a self-attention module by a cut one, which shares its heads with the mixer."""
        original = owner._modules[name]
        if type(original) is cls.replaces:
            cut = cast(Any, cls.__new__(cls))  # __init__ would allocate weights that are thrown away at once
            # In __dict__ the original is no submodule, which would have keys.
            cut.__dict__.update(original.__dict__, _original=original, _place=(owner, name))
            cut.__dict__.update(heads=heads, _rows=Remembered())
            setattr(owner, name, cut)

    def original(self) -> nn.Module:
        """The layer that this one replaced, with the parameters as they are now (moved, cast or trained)."""
        added = ("heads", "_rows", "_original", "_place", "joint")
        self._original.__dict__.update({name: held for name, held in self.__dict__.items() if name not in added})
        return self._original

    @property
    def cuts(self) -> bool:
        """Whether to leave heads out, see :meth:`cuts_to`."""
        return self.cuts_to(self.heads)

    def cuts_to(self, heads: DynamicHeads) -> bool:
        """Whether to leave heads out; not when an adapter wraps this layer, because its output has all heads."""
        owner, name = self._place
        if cast(object, owner._modules[name]) is self:
            return not heads.all_dynamic
        if not torch.compiler.is_compiling():
            self._forget()  # adapters change the weight without changing its version
        return False

    def slices(self, heads: Sequence[int]) -> Slices:
        """The slices that the given heads (ascending) need; values are needed by all heads."""
        raise NotImplementedError

    def rows(self, heads: Sequence[int]) -> Rows:
        """Weight and bias for the given heads, copied only when one of the tensors has changed."""
        layer = cast(nn.Linear, self)
        held = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        return self._rows.recall(lambda: self.cut_rows(heads), held, tuple(heads), layer.training)

    def cut_rows(self, heads: Sequence[int]) -> Rows:
        """Weight and bias for the given heads, copied anew."""
        layer, slices = cast(nn.Linear, self), self.slices(heads)
        bias = cast("Tensor | None", layer.bias)
        return slices.cut(layer.weight, self.rows_dim), None if bias is None else slices.cut(bias, 0)

    def train(self: Cut, mode: bool = True) -> Cut:
        """See :meth:`torch.nn.Module.train`; the kept rows are taken out anew afterwards."""
        self._forget()
        return cast(Cut, super().train(mode))  # type: ignore[misc]

    def _forget(self) -> None:
        self._rows.forget()


class HeadProjection(CutProjection, nn.Linear):
    """A linear layer to H heads that computes the dynamic heads only."""

    #: What computes it together with the other projections of its layer.
    joint: JointProjection | None = None

    def slices(self, heads: Sequence[int]) -> Slices:
        """See :meth:`CutProjection.slices`: one slice a head."""
        return Slices(self.heads.num_heads, tuple(heads))

    def forward(self, hidden_states: Tensor, heads: DynamicHeads | None = None) -> Tensor:
        """Project (B, T, hidden) to (B, T, dynamic heads x h), with the heads of the layer that runs or the mixer's."""
        heads = self.heads if heads is None else heads
        if not self.cuts_to(heads):
            return F.linear(hidden_states, self.weight, self.bias)
        if not heads.dynamic:
            return hidden_states.new_empty(*hidden_states.shape[:-1], 0)
        held = self.joint.take(self, hidden_states) if self.joint is not None and heads is self.heads else None
        return F.linear(hidden_states, *self.rows(heads.dynamic)) if held is None else held

    def _forget(self) -> None:
        super()._forget()
        if self.joint is not None:
            self.joint.forget()


class GroupedKeyProjection(HeadProjection):
    """The key projection of grouped-query attention: a key head is computed if a dynamic head of its group needs it."""

    def slices(self, heads: Sequence[int]) -> Slices:
        """See :meth:`CutProjection.slices`: one slice a key head."""
        group = cast(int, self._place[0].num_key_value_groups)
        return Slices(self.heads.num_heads // group, tuple(dict.fromkeys(head // group for head in heads)))


class FusedLayout(CutProjection):
    """Base of layers to all queries, then all keys, then all values."""

    holds_values = True

    def slices(self, heads: Sequence[int]) -> Slices:
        """See :meth:`CutProjection.slices`: H slices of queries, H of keys, H of values."""
        count = self.heads.num_heads
        return Slices(3 * count, (*heads, *(count + head for head in heads), *range(2 * count, 3 * count)))


class FusedProjection(FusedLayout, nn.Linear):
    """One linear layer to all queries, then all keys, then all values (ModernBERT)."""

    def forward(self, hidden_states: Tensor) -> Tensor | QueryKeyValue:  # type: ignore[override]
        """Project (B, T, hidden) to (B, T, 3 H h), or to three parts: queries and keys of dynamic heads, all values."""
        if not self.cuts:
            return F.linear(hidden_states, self.weight, self.bias)
        return split_fused(F.linear(hidden_states, *self.rows(self.heads.dynamic)), self.heads)


class FusedConv1D(FusedLayout, Conv1D):
    """A :class:`FusedProjection` with GPT-2's transposed weight (hidden, 3 H h)."""

    replaces = Conv1D
    rows_dim = 1

    def forward(self, hidden_states: Tensor) -> Tensor | QueryKeyValue:
        """See :meth:`FusedProjection.forward`."""
        if not self.cuts:
            return cast(Tensor, super().forward(hidden_states))  # type: ignore[no-untyped-call]
        weight, bias = self.rows(self.heads.dynamic)
        flat = torch.addmm(cast(Tensor, bias), hidden_states.reshape(-1, hidden_states.shape[-1]), weight)
        return split_fused(flat.view(*hidden_states.shape[:-1], -1), self.heads)


class InterleavedProjection(CutProjection, nn.Linear):
    """One linear layer to query, key and value of head 0, then those of head 1, and so on (DeBERTa)."""

    holds_values = True

    def slices(self, heads: Sequence[int]) -> Slices:
        """See :meth:`CutProjection.slices`; queries, keys and values come one after the other, as when split."""
        count = self.heads.num_heads
        parts = [*(3 * head for head in heads), *(3 * head + 1 for head in heads)]
        return Slices(3 * count, (*parts, *range(2, 3 * count, 3)))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Project to all heads, as the original layer."""
        return F.linear(hidden_states, self.weight, self.bias)

    def split_heads(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """Project (B, T, hidden) to queries and keys (B, T, dynamic heads x h), and to all values (B, T, H h)."""
        return split_fused(F.linear(hidden_states, *self.rows(self.heads.dynamic)), self.heads).parts


def split_fused(projected: Tensor, heads: DynamicHeads) -> QueryKeyValue:
    """Split a projection (B, T, heads x h) into the dynamic heads' queries and keys, and all values."""
    width = projected.shape[-1] // (2 * len(heads.dynamic) + heads.num_heads)
    chosen = width * len(heads.dynamic)
    return QueryKeyValue(*torch.split(projected, [chosen, chosen, width * heads.num_heads], dim=-1))
