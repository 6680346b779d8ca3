"""Value projections that give the dynamic heads first, and one product for queries, keys and values."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papa_lightning.attention import DynamicHeads
from papa_lightning.attention.parameter_cache import Remembered, is_plain
from papa_lightning.encoders.projections.cut import CutProjection, HeadProjection, Rows, Slices
from papa_lightning.encoders.projections.joined import joined_linear
from papa_lightning.runtime import is_exporting


class ValueProjection(HeadProjection):
    """A linear layer to the values of H heads, the dynamic ones first, so that neither group of heads is copied."""

    holds_values = True

    def slices(self, heads: Sequence[int]) -> Slices:
        """See :meth:`CutProjection.slices`: all heads, the given ones first."""
        count, given = self.heads.num_heads, tuple(heads)
        return Slices(count, _order(given, count) or tuple(range(count)))

    def order(self) -> tuple[int, ...] | None:
        """The heads in the order of the values that come out; None for their own order."""
        dynamic = self.heads.dynamic
        if not dynamic or is_exporting() or not self.cuts or is_hooked(self):
            return None
        return _order(dynamic, self.heads.num_heads)

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

    It is taken on devices, where nobody looks at one of the three layers.

    Args:
        query: Query projection.
        key: Key projection.
        value: Value projection.
    """

    def __init__(self, query: HeadProjection, key: HeadProjection, value: ValueProjection) -> None:
        self.parts = (query, key, value)
        #: Their names in the self-attention module.
        self.names = tuple(part._place[1] for part in self.parts)
        self._rows: Remembered[Rows] = Remembered()
        #: What a layer keeps that computes with these rows.
        self.prepared: Remembered[Any] = Remembered()
        self._held = _Held()
        self._suits = True
        for part in self.parts:
            part.__dict__["joint"] = self  # no submodule

    @property
    def training(self) -> bool:
        """Whether the layers are in training mode, where weights may be written in ways that torch does not count."""
        return self.parts[0].training

    def anew(self, module: nn.Module) -> JointProjection:
        """The same of the layers that a module has by now under these names, which are the same or trimmed ones."""
        return JointProjection(*(cast(Any, module._modules[name]) for name in self.names))

    def take(self, part: HeadProjection, hidden_states: Tensor) -> Tensor | None:
        """The output of one of the layers, or None where it is to compute its own."""
        if part is self.parts[0]:
            return self._start(hidden_states)
        return self._held.take(part, hidden_states)

    def forget(self) -> None:
        """Drop the kept rows."""
        self._rows.forget()
        self.prepared.forget()

    def serves(self, parts: Mapping[str, nn.Module | None]) -> bool:
        """Whether the three layers are among these parts of a module, plain and with no adapter, and nobody looks on.

        Args:
            parts: The parts of a self-attention module, by their names.
        """
        for name, part in zip(self.names, self.parts, strict=True):
            own = part._parameters
            if parts.get(name) is not part or "weight" not in own or "bias" not in own or is_hooked(part):
                self.forget()  # adapters change the weight without changing its version
                return False
        return True

    def by_head(self, hidden_states: Tensor, dynamic: tuple[int, ...], size: int) -> Sequence[Tensor]:
        """The outputs of all three layers by head, where it :meth:`serves` their module.

        Args:
            hidden_states: (B, T, hidden).
            dynamic: The dynamic heads.
            size: h, size of a head.

        Returns:
            Queries, keys and values of the dynamic heads, and values of the others, each (B, heads, T, h).
        """
        value, some = self.parts[2], len(dynamic)
        others = value.heads.num_heads - some
        if not some:
            nothing, values = _by_head(F.linear(hidden_states, *self.rows_of_values()), size, (0, others))
            return nothing, nothing, nothing, values
        joint = self._together(hidden_states, dynamic)
        if joint is not None:
            return _by_head(joint, size, (some, some, some, others))
        own = [F.linear(hidden_states, *part.rows(dynamic)) for part in self.parts]
        return *_by_head(own[0], size), *_by_head(own[1], size), *_by_head(own[2], size, (some, others))

    def whole(self, hidden_states: Tensor, size: int) -> Sequence[Tensor]:
        """Queries, keys and values of all heads by three products, each (B, H, T, h); otherwise as :meth:`by_head`."""
        return [_by_head(_output(part, hidden_states), size)[0] for part in self.parts]

    def _start(self, hidden_states: Tensor) -> Tensor | None:
        self._suits = self._suits and not self._held.waiting  # a forward that does not ask for all three
        query, key, value = self.parts
        dynamic = query.heads.dynamic
        if not self._suits or not dynamic or torch.compiler.is_compiling() or not self.serves(query._place[0]._modules):
            return None
        joint = self._together(hidden_states, dynamic)
        if joint is None:
            return None
        chosen = joint.shape[-1] * len(dynamic) // (2 * len(dynamic) + value.heads.num_heads)
        parts = joint.split_with_sizes((chosen, chosen, joint.shape[-1] - 2 * chosen), -1)
        self._held.keep(hidden_states, {key: parts[1], value: parts[2]})
        return parts[0]

    def _together(self, hidden_states: Tensor, dynamic: tuple[int, ...]) -> Tensor | None:
        """The output of all three layers side by side, or None where each is to compute its own."""
        rows = self._kept_rows(hidden_states.device, dynamic)
        return self._learning(hidden_states, dynamic) if rows is None else F.linear(hidden_states, *rows)

    def parameters(self, dynamic: tuple[int, ...]) -> list[Tensor]:
        """Weights and biases of all three layers, of which :meth:`rows` are made; none without a dynamic head."""
        held: list[Tensor] = []
        for part in self.parts if dynamic else ():
            held += [parameter for parameter in part._parameters.values() if parameter is not None]
        return held

    def rows(self, dynamic: tuple[int, ...]) -> Rows:
        """Weight and bias of all three layers for the dynamic heads and the values, copied when one has changed."""
        return self._rows.recall(lambda: self._joined(dynamic), self.parameters(dynamic), dynamic, self.training)

    def rows_of_values(self) -> Rows:
        """Weight and bias of the value projection, which are all that a layer without a dynamic head needs."""
        own = self.parts[2]._parameters
        return cast(Tensor, own["weight"]), own["bias"]

    def _kept_rows(self, device: torch.device, dynamic: tuple[int, ...]) -> Rows | None:
        """The rows of all three layers, or None where each is to compute its own output."""
        if not _pays(device):
            return None
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters(dynamic)):
            return None
        return self.rows(dynamic)

    def _learning(self, hidden_states: Tensor, dynamic: tuple[int, ...]) -> Tensor | None:
        """The output of weights that learn, or None where each layer is to compute its own."""
        if not _pays(hidden_states.device):
            return None
        weights = [cast(nn.Linear, part).weight for part in self.parts]
        biases = [cast("Tensor | None", cast(nn.Linear, part).bias) for part in self.parts]
        given = [one for one in biases if one is not None]
        if len(given) not in (0, len(weights)) or not all(map(is_plain, (hidden_states, *weights, *given))):
            return None
        count = self.parts[2].heads.num_heads
        values = (2 * count + head for head in _order(dynamic, count) or range(count))
        heads = (*dynamic, *(count + head for head in dynamic), *values)
        return joined_linear(hidden_states, heads, len(weights[2]) // count, weights, given or None)

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


def _order(first: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    """The numbers of so many heads, some of them first; None where that is their own order."""
    return _ordered(first, count) if torch.compiler.is_compiling() else _kept_order(first, count)


@lru_cache(maxsize=4096)
def _kept_order(first: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    return _ordered(first, count)


def _ordered(first: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    own = tuple(range(count))
    ordered = (*first, *(head for head in own if head not in first))
    return None if ordered == own else ordered


def _output(layer: nn.Module, hidden_states: Tensor) -> Tensor:
    """The output of a linear layer for all heads."""
    own = layer._parameters
    return F.linear(hidden_states, cast(Tensor, own["weight"]), own["bias"])


def _by_head(projected: Tensor, size: int, groups: tuple[int, ...] = ()) -> Sequence[Tensor]:
    """Groups of heads (B, heads, T, h) of (B, T, all heads x h), as views; without groups all heads in one."""
    split = projected.view(*projected.shape[:-1], -1, size).transpose(1, 2)
    return split.split_with_sizes(groups, 1) if groups else (split,)


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody looks at a layer, or has given it another forward, as accelerate does for offloaded weights."""
    if "forward" in module.__dict__:
        return True
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooked)


def order_values(module: nn.Module, name: str, heads: DynamicHeads, queries: tuple[str, ...]) -> JointProjection | None:
    """Let the value projection of a self-attention module give the dynamic heads first, and join it with the others.

    Args:
        module: Self-attention module with cut projections.
        name: Its value projection.
        heads: Heads of its mixer.
        queries: Its query and key projections, in this order.

    Returns:
        The three as one; None where one of them is of another class, as an adapter.
    """
    ValueProjection.replace(module, name, heads)
    value = module._modules[name]
    query, key = (module._modules.get(own) for own in queries)
    if type(value) is ValueProjection and type(query) is HeadProjection and type(key) is HeadProjection:
        return JointProjection(query, key, value)
    return None
