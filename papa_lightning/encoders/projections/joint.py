"""Value projections that give the dynamic heads first, and one product for queries, keys and values."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papa_lightning.attention import DynamicHeads
from papa_lightning.attention.parameter_cache import Remembered
from papa_lightning.encoders.projections.cut import CutProjection, HeadProjection, Rows, Slices


class ValueProjection(HeadProjection):
    """A linear layer to the values of H heads, the dynamic ones first, so that neither group of heads is copied."""

    holds_values = True

    def slices(self, heads: Sequence[int]) -> Slices:
        """See :meth:`CutProjection.slices`: all heads, the given ones first."""
        count = self.heads.num_heads
        return Slices(count, (*heads, *(head for head in range(count) if head not in heads)))

    def order(self) -> tuple[int, ...] | None:
        """The heads in the order of the values that come out; None for their own order."""
        dynamic = self.heads.dynamic
        if not dynamic or torch.compiler.is_exporting() or not self.cuts or _is_hooked(self):
            return None
        kept = self.slices(dynamic).kept
        return None if kept == tuple(range(len(kept))) else kept

    def forward(self, hidden_states: Tensor, heads: DynamicHeads | None = None) -> Tensor:
        """Project (B, T, hidden) to (B, T, H h), heads in the order of :meth:`order`."""
        held = self.joint.take(self, hidden_states) if self.joint is not None else None
        if held is not None:
            return held
        if self.order() is None:
            return F.linear(hidden_states, self.weight, self.bias)
        return F.linear(hidden_states, *self.rows(self.heads.dynamic))


class JointProjection:
    """One matrix product for queries, keys and values of a layer, which begins with the query.

    It is taken on devices, of weights that do not learn, where nobody looks at one of the three layers.

    Args:
        query: Query projection.
        key: Key projection.
        value: Value projection.
    """

    def __init__(self, query: HeadProjection, key: HeadProjection, value: ValueProjection) -> None:
        self.parts = (query, key, value)
        self._rows: Remembered[Rows] = Remembered()
        self._held = _Held()
        self._suits = True
        for part in self.parts:
            part.__dict__["joint"] = self  # no submodule

    def take(self, part: HeadProjection, hidden_states: Tensor) -> Tensor | None:
        """The output of one of the layers, or None where it is to compute its own."""
        if part is self.parts[0]:
            return self._start(hidden_states)
        return self._held.take(part, hidden_states)

    def forget(self) -> None:
        """Drop the kept rows."""
        self._rows.forget()

    def _start(self, hidden_states: Tensor) -> Tensor | None:
        self._suits = self._suits and not self._held.waiting  # a forward that does not ask for all three
        query, key, value = self.parts
        if not self._suits or not _pays(hidden_states.device) or torch.compiler.is_compiling():
            return None
        dynamic = query.heads.dynamic
        if not dynamic or not all(part.cuts and not _is_hooked(part) for part in self.parts):
            return None
        layers = [cast(nn.Linear, part) for part in self.parts]
        held = [tensor for layer in layers for tensor in (layer.weight, layer.bias) if tensor is not None]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in held):
            return None
        rows = self._rows.recall(lambda: self._joined(dynamic), held, dynamic)
        chosen = rows[0].shape[0] - value.weight.shape[0]
        sizes = [chosen // 2, chosen // 2, value.weight.shape[0]]
        parts = torch.split(F.linear(hidden_states, *rows), sizes, dim=-1)
        self._held.keep(hidden_states, {key: parts[1], value: parts[2]})
        return parts[0]

    def _joined(self, dynamic: tuple[int, ...]) -> Rows:
        rows = [part.cut_rows(dynamic) for part in self.parts]
        if all(bias is None for _, bias in rows):
            return torch.cat([weight for weight, _ in rows]), None
        biases = [weight.new_zeros(weight.shape[0]) if bias is None else bias for weight, bias in rows]
        return torch.cat([weight for weight, _ in rows]), torch.cat(biases)


class _Held(threading.local):
    """Outputs of the layers that did not ask for theirs yet, in one thread."""

    def __init__(self) -> None:
        self._source: Tensor | None = None
        self._outputs: dict[CutProjection, Tensor] = {}

    @property
    def waiting(self) -> bool:
        """Whether an output was not taken."""
        return bool(self._outputs)

    def keep(self, source: Tensor, outputs: dict[CutProjection, Tensor]) -> None:
        """Keep the outputs for an input."""
        self._source, self._outputs = source, outputs

    def take(self, part: CutProjection, source: Tensor) -> Tensor | None:
        """The output of a layer for an input, once; None for another input."""
        found = self._outputs.pop(part, None) if source is self._source else None
        if not self._outputs:
            self._source = None
        return found

    def __reduce__(self) -> tuple[type[_Held], tuple[()]]:
        """Copies begin empty."""
        return type(self), ()


def _pays(device: torch.device) -> bool:
    """Whether one product is faster than three; on a CPU it is not."""
    return device.type != "cpu"


def _is_hooked(module: nn.Module) -> bool:
    """Whether somebody looks at a layer, or has given it another forward, as accelerate does for offloaded weights."""
    if "forward" in module.__dict__:
        return True
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def order_values(module: nn.Module, name: str, heads: DynamicHeads, queries: tuple[str, ...]) -> None:
    """Let the value projection of a self-attention module give the dynamic heads first, and join it with the others.

    Args:
        module: Self-attention module with cut projections.
        name: Its value projection.
        heads: Heads of its mixer.
        queries: Its query and key projections, in this order.
    """
    ValueProjection.replace(module, name, heads)
    value = module._modules[name]
    query, key = (module._modules.get(own) for own in queries)
    if type(value) is ValueProjection and type(query) is HeadProjection and type(key) is HeadProjection:
        JointProjection(query, key, value)
